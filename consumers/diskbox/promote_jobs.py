"""What a round does about promotions: plan, then copy or carry out, and answer with events."""

from __future__ import annotations

import functools

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.promotions import Promotions, done_items
from rephub.consumers.diskbox.signals import Signal
from rephub.core.errors import IndeterminateError, RephubError, UnavailableError
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Promotion
from rephub.schemas import events as ev


class PromoteJobs:
    """Starts the jobs of all promotions of one diskbox.

    Args:
        diskbox: its id.
        catalogue: the fold of all events.
        promotions: does the work.
        jobs: runs it.
        facts: writes the answers.
        folded: notified when the catalogue may have changed.
    """

    def __init__(
        self,
        diskbox: str,
        catalogue: Catalogue,
        promotions: Promotions,
        jobs: Jobs,
        facts: Facts,
        folded: Signal,
    ) -> None:
        self._diskbox = diskbox
        self._catalogue = catalogue
        self._promotions = promotions
        self._jobs = jobs
        self._facts = facts
        self._folded = folded

    def round(self) -> None:
        """Do what is missing; a promotion that ended holds nothing."""
        for promotion in list(self._catalogue.promotions.values()):
            if promotion.diskbox != self._diskbox:
                continue
            name = promotion.name
            if promotion.ended:
                if not self._jobs.is_running("plan", name):
                    self._promotions.unpin(name)
            elif promotion.state == "requested":
                self._jobs.once(("plan", name), functools.partial(self._plan, promotion))
            elif promotion.to is not None or promotion.state == "started":
                if promotion.cancel_id:
                    self._promotions.wake(promotion)
                self._jobs.once(("promote", name), functools.partial(self._promote, promotion))

    async def _plan(self, promotion: Promotion) -> None:
        try:
            plans = await self._promotions.plan(promotion, self._catalogue.checkpoints)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            await self._failed(promotion, exc)
            return
        await self._facts.tell(
            ev.PromotePlanned, promotion.event_id, promotion.name, promotion.command_id,
            promotion=promotion.name, plans=plans,
        )  # fmt: skip

    async def _promote(self, promotion: Promotion) -> None:
        try:
            if promotion.to is not None:
                await self._promotions.copy(promotion)
            else:
                await self._promotions.carry_out(
                    promotion, lambda: set(promotion.volumes) <= set(promotion.detached), self._folded
                )
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            await self._failed(promotion, exc)
        else:
            self._promotions.unpin(promotion.name)
            await self._facts.tell(
                ev.Promoted, promotion.event_id, promotion.name, promotion.command_id,
                promotion=promotion.name, plans=done_items(promotion),
            )  # fmt: skip

    async def _failed(self, promotion: Promotion, error: RephubError) -> None:
        self._promotions.unpin(promotion.name)
        text = error.to_json()
        await self._facts.tell(
            ev.PromoteFailed,
            promotion.event_id,
            promotion.name,
            promotion.command_id,
            promotion=promotion.name,
            error=text,
        )
