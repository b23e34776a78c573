"""What a round does about fail-over tests: start and stop them, and answer with events."""

from __future__ import annotations

import functools

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.fots import Fots
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.promotions import Promotions
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.errors import IndeterminateError, RephubError, UnavailableError
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Fot
from rephub.schemas import events as ev


class FotJobs:
    """Starts the jobs of all fail-over tests of one diskbox.

    Args:
        diskbox: its id.
        catalogue: the fold of all events.
        volumes: those that are here.
        fots: does the work.
        promotions: lets go of promoted volumes that only a test held.
        jobs: runs it.
        facts: writes the answers.
    """

    def __init__(
        self,
        diskbox: str,
        catalogue: Catalogue,
        volumes: dict[str, BoxVolume],
        fots: Fots,
        promotions: Promotions,
        jobs: Jobs,
        facts: Facts,
    ) -> None:
        self._diskbox = diskbox
        self._catalogue = catalogue
        self._volumes = volumes
        self._fots = fots
        self._promotions = promotions
        self._jobs = jobs
        self._facts = facts

    def running(self) -> list[Fot]:
        """Those whose views are served, or were by a former process."""
        return [
            fot
            for fot in self._catalogue.fots.values()
            if fot.diskbox == self._diskbox and fot.views and not fot.ended
        ]

    def round(self) -> None:
        """Do what is missing."""
        for fot in list(self._catalogue.fots.values()):
            if fot.diskbox == self._diskbox:
                self._round_of(fot)

    async def stop_all_of(self, volume: str, reason: str) -> None:
        """End every open test of a volume, and say why."""
        for name in self._fots.of_volume(volume):
            await self._stop(self._catalogue.fots[name], reason)

    def _round_of(self, fot: Fot) -> None:
        is_open, starting = fot.name in self._fots.open, self._jobs.is_running("fot", fot.name)
        if fot.state == "requested" and not is_open:
            self._jobs.once(("fot", fot.name), functools.partial(self._start, fot))
        elif fot.state in ("started", "stopping") and not starting:
            if is_open:
                self._round_of_open(fot)
            over = fot.name in self._fots.forced
            if not is_open and not over and fot.views and (fot.state == "started" or fot.redirected):
                # Also for a VM that is to let go of it: it may have writes under way.
                self._jobs.once(("fot-again", fot.name), functools.partial(self._resume, fot))
            elif fot.state == "stopping" and not fot.redirected:
                self._jobs.once(("unfot", fot.name), functools.partial(self._stop, fot, "stopped"))
        elif fot.ended and is_open and not starting:
            self._jobs.once(("unfot", fot.name), functools.partial(self._fots.stop, fot.name))

    def _round_of_open(self, fot: Fot) -> None:
        """Hydrate at the pace that is asked for; say what its user cannot know."""
        if fot.state == "started":
            key = ("hydrate", fot.name, fot.hydration_id)
            self._jobs.once(key, functools.partial(self._fots.hydrate, fot))
        for name in fot.volumes:
            limit = self._fots.full.get((fot.name, name))
            if limit is not None and name not in fot.full:
                self._jobs.once(
                    ("full", fot.name, name), functools.partial(self._tell_full, fot, name, limit)
                )
        reason = self._fots.forced.get(fot.name)
        if reason is not None:
            self._jobs.once(("unfot", fot.name), functools.partial(self._stop, fot, reason))

    async def _tell_full(self, fot: Fot, volume: str, limit: int) -> None:
        cause = f"{fot.event_id}/{volume}"
        await self._facts.tell(
            ev.FotScratchFull,
            cause,
            fot.name,
            fot.command_id,
            fot=fot.name,
            volume=volume,
            scratch_bytes=limit,
        )

    async def _start(self, fot: Fot) -> None:
        try:
            views = await self._fots.start(fot, self._catalogue.checkpoints)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            fields = {"fot": fot.name, "error": exc.to_json()}
            await self._facts.tell(ev.FotFailed, fot.event_id, fot.name, fot.command_id, **fields)
            return
        await self._facts.tell(
            ev.FotStarted, fot.event_id, fot.name, fot.command_id, fot=fot.name, views=views
        )

    async def _resume(self, fot: Fot) -> None:
        try:
            await self._fots.resume(fot)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            await self._stop(fot, f"diskbox restarted: {exc.message}")

    async def _stop(self, fot: Fot, reason: str) -> None:
        await self._fots.stop(fot.name)
        self._fots.unpin(fot)
        for name in fot.volumes:
            if name in self._volumes:
                await self._promotions.let_go(self._volumes[name])
        await self._facts.tell(
            ev.FotStopped, fot.stop_id or fot.event_id, fot.name, fot.command_id, fot=fot.name, reason=reason
        )
