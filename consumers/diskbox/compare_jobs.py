"""What a round does about comparisons: accept them, answer what a round of digests found, forget those that ended."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.failback import Failbacks
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.errors import RephubError
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Comparison
from rephub.schemas import events as ev


class CompareJobs:
    """Starts the jobs of all comparisons of one diskbox.

    Args:
        diskbox: its id.
        catalogue: the fold of all events.
        volumes: of the diskbox.
        jobs: runs the work.
        facts: writes the answers.
        failbacks: know what can differ after a fail-over.
    """

    def __init__(
        self,
        diskbox: str,
        catalogue: Catalogue,
        volumes: Mapping[str, BoxVolume],
        jobs: Jobs,
        facts: Facts,
        failbacks: Failbacks,
    ) -> None:
        self._diskbox = diskbox
        self._catalogue = catalogue
        self._volumes = volumes
        self._jobs = jobs
        self._facts = facts
        self._failbacks = failbacks

    def begin_again(self, box: BoxVolume) -> None:
        """Before the projector reads: digests of comparisons that are under way count from the first one on."""
        comparison = self._catalogue.comparison_of(box.name)
        if comparison is not None and comparison.state != "requested" and box.comparer is not None:
            box.comparer.begin(comparison.name)

    def round(self) -> None:
        """Do what is missing."""
        for comparison in list(self._catalogue.comparisons.values()):
            volume = self._catalogue.volumes.get(comparison.volume)
            box = self._volumes.get(comparison.volume)
            if volume is None or volume.diskbox != self._diskbox or box is None or box.comparer is None:
                continue
            if comparison.ended:
                box.comparer.end(comparison.name)
            elif comparison.state == "requested":
                # From here on its digests are known, whenever the agent begins.
                box.comparer.begin(comparison.name)
                key = ("accept", comparison.name, str(comparison.round))
                self._jobs.once(key, functools.partial(self._accept, comparison, comparison.round))
            elif comparison.state == "comparing":
                key = ("compare", comparison.name, str(comparison.round))
                self._jobs.once(key, functools.partial(self._answer, comparison, comparison.round, box))

    async def _accept(self, comparison: Comparison, round_: int) -> None:
        volume = self._catalogue.volumes.get(comparison.volume)
        known = self._failbacks.written(volume) if comparison.sync and volume is not None else None
        extents = (
            None
            if known is None
            else tuple(ev.ExtentItem(start=start, length=length) for start, length in known)
        )
        await self._facts.tell(
            ev.ComparisonAccepted, comparison.event_id, f"{comparison.name}/{round_}", comparison.command_id,
            run=comparison.name, volume=comparison.volume, diskbox=self._diskbox, extents=extents,
        )  # fmt: skip

    async def _answer(self, comparison: Comparison, round_: int, box: BoxVolume) -> None:
        name, volume, cause_id = comparison.name, comparison.volume, comparison.event_id
        comparer = box.comparer
        try:
            if comparer is None:
                return
            result = await comparer.result(name, round_, comparison.last_offset, comparison.digested_bytes)
        except RephubError as exc:
            if not comparison.ended:
                # A sync goes on after it, and may fail again; a verify ends once, whoever says so.
                subject = f"{name}/{round_}" if comparison.sync else name
                await self._facts.tell(
                    ev.VerifyFailed, cause_id, subject, comparison.command_id,
                    verify=name, volume=volume, error=exc.to_json(),
                )  # fmt: skip
            return
        await self._facts.tell(
            ev.ExtentsCompared, cause_id, f"{name}/{round_}", comparison.command_id,
            run=name, round=round_, volume=volume, offset=result.offset, compared_bytes=result.compared_bytes,
            differing_bytes=result.differing_bytes,
            differing=tuple(ev.ExtentItem(start=start, length=length) for start, length in result.differing),
        )  # fmt: skip
