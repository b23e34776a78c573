"""What a round does about fail-overs: plan, open, fold, commit, undo, close, and answer with events."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.failovers import Failovers
from rephub.consumers.diskbox.jobs import Jobs
from rephub.core.errors import IndeterminateError, RephubError, UnavailableError
from rephub.projections.catalogue import Catalogue, Failover
from rephub.projections.failover import SERVED
from rephub.schemas import events as ev


class FailoverJobs:
    """Starts the jobs of all fail-overs of one diskbox.

    Args:
        diskbox: its id.
        catalogue: the fold of all events.
        failovers: does the work.
        jobs: runs it.
        facts: writes the answers.
    """

    def __init__(
        self, diskbox: str, catalogue: Catalogue, failovers: Failovers, jobs: Jobs, facts: Facts
    ) -> None:
        self._diskbox = diskbox
        self._catalogue = catalogue
        self._failovers = failovers
        self._jobs = jobs
        self._facts = facts

    def round(self) -> None:
        """Do what is missing."""
        for failover in list(self._catalogue.failovers.values()):
            if failover.diskbox == self._diskbox:
                self._round_of(failover)

    def _round_of(self, failover: Failover) -> None:
        name, state = failover.name, failover.state
        busy = any(
            self._jobs.is_running(what, name) for what in ("fo-plan", "fo-open", "fo-fold", "fo-commit")
        )
        if state == "drained" or (state == "requested" and not failover.to_drain):
            self._once("fo-plan", failover, self._plan)
        elif state == "started" or (state in SERVED and name not in self._failovers.open):
            # Once for each state: after a restart it is served anew.
            self._once("fo-open", failover, self._open, state)
        elif state in ("opened", "committing") and not failover.folded:
            self._once("fo-fold", failover, self._fold)
        elif state == "committing":
            self._once("fo-commit", failover, self._commit)
        elif busy or failover.redirected:
            pass
        elif state == "rolling_back":
            self._once("fo-undo", failover, self._undo)
        elif state == "closing":
            self._once("fo-close", failover, self._close)
        elif state in ("failed", "rolled_back"):
            self._once("fo-tidy", failover, self._tidy)

    def _once(
        self, what: str, failover: Failover, job: Callable[[Failover], Awaitable[None]], *more: str
    ) -> None:
        self._jobs.once((what, failover.name, *more), functools.partial(job, failover))

    async def _tell(self, kind: type[ev.Record], failover: Failover, **fields: Any) -> None:
        cause = failover.end_id or failover.commit_id or failover.event_id
        await self._facts.tell(
            kind, cause, failover.name, failover.command_id, failover=failover.name, **fields
        )

    async def _plan(self, failover: Failover) -> None:
        try:
            plans = await self._failovers.plan(failover, self._catalogue.checkpoints)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            await self._failed(failover, exc)
            return
        await self._tell(ev.FailoverPlanned, failover, plans=plans)

    async def _open(self, failover: Failover) -> None:
        try:
            opened = await self._failovers.start(failover)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            if failover.state != "started":
                # A VM may have written to it: it is neither given up nor shown as anything else.
                self._failovers.note(failover, exc)
                raise UnavailableError(exc.message) from exc
            await self._failed(failover, exc)
            return
        self._failovers.note(failover, None)
        if failover.state == "started":
            await self._tell(ev.FailoverOpened, failover, views=opened.items, plans=opened.plans)

    async def _fold(self, failover: Failover) -> None:
        if await self._failovers.fold(failover, lambda: failover.state in ("opened", "committing")):
            await self._tell(ev.FailoverFolded, failover)

    async def _commit(self, failover: Failover) -> None:
        try:
            await self._failovers.commit(failover)
        except RephubError as exc:
            self._failovers.note(failover, exc)
            raise UnavailableError(exc.message) from exc
        self._failovers.note(failover, None)
        await self._tell(ev.FailoverCommitted, failover, plans=_done(failover))

    async def _undo(self, failover: Failover) -> None:
        await self._failovers.undo(failover)
        await self._tell(ev.FailoverRolledBack, failover, reason=failover.reason)

    async def _close(self, failover: Failover) -> None:
        await self._failovers.close(failover)
        await self._tell(ev.FailoverClosed, failover, reason="closed", plans=_done(failover))

    async def _tidy(self, failover: Failover) -> None:
        """It ended without us, or half done."""
        await self._failovers.undo(failover)

    async def _failed(self, failover: Failover, error: RephubError) -> None:
        await self._failovers.undo(failover)
        await self._tell(ev.FailoverFailed, failover, error=error.to_json())


def _done(failover: Failover) -> tuple[ev.PlanItem, ...]:
    """The plan as what was done."""
    return tuple(ev.PlanItem(**plan) for plan in failover.plans)
