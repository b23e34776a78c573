"""The diskbox half of one volume, on a journal in memory and a real file."""

from __future__ import annotations

from pathlib import Path

from journal_model import JournalModel
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume, Wanted
from rephub.core.journal.memory import MemoryJournalStore
from rephub.projections.points import resolve
from rephub.projections.window import History, floor_target

WAIT = 10.0


class Site:
    """A volume, its journal and its diskbox half; `restart` is a kill and a new start."""

    def __init__(
        self, directory: Path, model: JournalModel, history: History, crash_point=lambda _name: None
    ) -> None:
        self.store = MemoryJournalStore()
        self.model = model
        self.directory = directory / "v"
        self.history = history
        self.crash_point = crash_point
        self.told: list[tuple] = []
        self.recovery: str | None = None
        self.box: BoxVolume | None = None

    async def start(self) -> Projector:
        await self.store.create("v")
        self.box = BoxVolume(
            "v", self.directory, self.store, crash_point=self.crash_point, pace_seconds=0.0,
            on_stopped=lambda *args: self.told.append(("stopped", *args)),
            on_resumed=lambda *args: self.told.append(("resumed", *args)),
        )  # fmt: skip
        await self.box.make(Wanted("v", self.model.size, "start-1", 0, -1, self.recovery, self.history))
        await self.box.open(self.history)
        self.tasks = self.box.start()
        return self.box.projector

    async def publish(self) -> None:
        """Append what the model made since the last time."""
        writer = self.store.writer("v")
        await writer.start()
        reader = self.store.reader("v")
        published = await reader.next_offset()
        for first in range(published, len(self.model.values), 7):
            await writer.append(self.model.values[first : first + 7])

    async def settle(self) -> None:
        """Read all, apply what may be applied."""
        projector = self.box.projector
        await projector.catch_up(WAIT)

        def settled() -> bool:
            target = floor_target(projector.timeline, projector.history, projector.pins.values())
            return projector.applier.applied_offset >= target and projector.floor_offset >= target

        await projector.changed.wait_for(settled, WAIT, "settling")

    async def kill(self) -> None:
        await self.box.close()

    async def read(self, offset: int) -> bytes:
        projector = self.box.projector
        assert resolve(projector.timeline, "offset", str(offset)).offset == offset
        return bytes(await View(projector, offset, None).read(0, self.model.size))


def rot(site: Site, offset: int) -> None:
    value = bytearray(site.model.values[offset])
    value[-1] ^= 1
    site.store.corrupt("v", offset, bytes(value))
