"""What the operator has to know of the history windows of a diskbox: which named checkpoints they have passed, and which
windows the byte limit has cut.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Checkpoint
from rephub.projections.window import window_seconds
from rephub.schemas import events as ev


class WindowWatch:
    """Compares the catalogue with the windows, once a round.

    Args:
        catalogue: the fold so far.
        volumes: by name; shared with the diskbox.
        jobs: of the diskbox.
        facts: to say it.
    """

    def __init__(
        self, catalogue: Catalogue, volumes: Mapping[str, BoxVolume], jobs: Jobs, facts: Facts
    ) -> None:
        self._catalogue, self._volumes, self._jobs, self._facts = catalogue, volumes, jobs, facts

    def round(self) -> None:
        """Begin to say what is new."""
        for checkpoint in self._catalogue.checkpoints.values():
            if checkpoint.state == "created":
                for name, offset in checkpoint.offsets.items():
                    if name not in checkpoint.expired and self._has_passed(name, offset):
                        key = ("expired", checkpoint.event_id, name)
                        self._jobs.once(key, functools.partial(self._say_expired, checkpoint, name, offset))

        for name, box in self._volumes.items():
            volume, projector = self._catalogue.volumes.get(name), box.projector
            if volume is None or projector is None or not volume.live:
                continue
            if projector.cut and not volume.history_short:
                self._jobs.once(
                    ("cut", name, str(projector.floor_offset)), functools.partial(self._say_cut, projector)
                )
            elif volume.history_short:
                projector.cut = False
                left = window_seconds(projector.timeline)
                if left >= projector.history.seconds:
                    key = ("whole", name, str(projector.floor_offset))
                    self._jobs.once(key, functools.partial(self._say_whole, projector, left))

    async def _say_cut(self, projector: Projector) -> None:
        projector.cut = False
        history, timeline = projector.history, projector.timeline
        earliest = timeline.earliest_offset()
        await self._facts.tell(
            ev.HistoryShortened,
            self._catalogue.volumes[projector.volume].start_id,
            f"{projector.volume}@{projector.floor_offset}",
            volume=projector.volume,
            earliest_offset=projector.floor_offset if earliest is None else earliest,
            window_seconds=window_seconds(timeline),
            asked_seconds=history.seconds,
            limit_bytes=history.bytes,
        )

    async def _say_whole(self, projector: Projector, left: float) -> None:
        await self._facts.tell(
            ev.HistoryRestored,
            self._catalogue.volumes[projector.volume].start_id,
            f"{projector.volume}@{projector.floor_offset}",
            volume=projector.volume,
            window_seconds=left,
        )

    def _has_passed(self, name: str, offset: int) -> bool:
        box = self._volumes.get(name)
        return (
            box is not None
            and box.projector is not None
            and box.projector.divergence is None
            and offset < box.projector.floor_offset
        )

    async def _say_expired(self, checkpoint: Checkpoint, name: str, offset: int) -> None:
        projector = self._volumes[name].projector
        if projector is None:
            return
        earliest = projector.timeline.earliest_offset()
        await self._facts.tell(
            ev.CheckpointExpired,
            checkpoint.event_id,
            f"{checkpoint.name}/{name}",
            checkpoint=checkpoint.name,
            volume=name,
            offset=offset,
            earliest_offset=projector.floor_offset if earliest is None else earliest,
        )
