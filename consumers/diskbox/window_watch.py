"""What the history windows of a diskbox leave behind: says which named checkpoints they have passed."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Checkpoint
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
