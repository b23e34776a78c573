"""Applies events to a recovery volume so that a crash at any instant loses nothing and leaves no doubt.

Order, with a named crash point before and after each step: intent recorded durably → coalesced writes → fdatasync →
applied recorded durably. Replaying from applied gives the same content, so nothing between two records matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rephub.consumers.diskbox.position import Position, save_position
from rephub.consumers.diskbox.recovery import RecoveryVolume
from rephub.core.codec.runs import Event, Item, Run, data_bytes, last_offset
from rephub.projections.coalesce import Change, coalesce
from rephub.projections.journal_fold import JournalFold, Verdict
from rephub.schemas.journal import SyncData, Write, Zero

CRASH_POINTS = (
    "before_intent", "after_intent", "after_half_of_the_writes", "after_writes", "after_fdatasync", "after_applied",
)  # fmt: skip
"""Where a test may let the process die."""

CrashPoint = Callable[[str], None]


def go_on(_name: str) -> None:
    """Nothing happens at a crash point, outside of tests."""


class Applier:
    """One recovery volume and its position.

    Args:
        directory: holds the position.
        position: as loaded; kept up to date.
        recovery: the volume.
        crash_point: called with each name of CRASH_POINTS.
    """

    def __init__(
        self, directory: Path, position: Position, recovery: RecoveryVolume, crash_point: CrashPoint = go_on
    ) -> None:
        self.directory = directory
        self.position = position
        self.recovery = recovery
        self._crash_point = crash_point
        self.applied_events = self.applied_bytes = 0
        """Since it was opened: journal events, and the data that they held."""

    @property
    def applied_offset(self) -> int:
        """The last event that is surely in the recovery volume."""
        return self.position.applied_offset

    @property
    def intent_offset(self) -> int:
        """The last event that may be in it."""
        return self.position.intent_offset

    async def set_intent(self, intent_offset: int) -> None:
        """Record durably that everything up to the offset may be applied from now on.

        Raises:
            StorageError: not recorded; nothing may be applied.
        """
        self._crash_point("before_intent")
        await self._save(replace(self.position, intent_offset=intent_offset))
        self._crash_point("after_intent")

    async def apply(self, items: Sequence[Item]) -> None:
        """Apply the events and runs that follow the applied offset, up to the intent at most.

        Raises:
            StorageError: half of it may be in the volume; open it anew and apply again from `applied_offset`.
        """
        if not items:
            return
        if last_offset(items[-1]) > self.intent_offset:
            raise ValueError(f"offset {last_offset(items[-1])} is above the intent {self.intent_offset}")
        before = self.applied_offset
        fold = JournalFold(replace(self.position.applied))
        changes: list[Change | Run] = []
        for event in _judged(fold, items):
            if isinstance(event, Run):
                changes.append(event)
                continue
            journal_offset, record = event
            size_bytes = fold.state.size_bytes
            verdict = fold.feed(journal_offset, record)
            if verdict is Verdict.APPLY and isinstance(record, (Write, SyncData, Zero)):
                changes.append(record)
            elif fold.state.size_bytes != size_bytes:
                await self._write(changes)
                changes = []
                await self.recovery.resize(fold.state.size_bytes)
        await self._write(changes)
        self._crash_point("after_writes")
        await self.recovery.fdatasync()
        self._crash_point("after_fdatasync")
        await self._save(replace(self.position, applied=fold.state))
        self.applied_events += self.applied_offset - before
        self.applied_bytes += sum(map(data_bytes, items))
        self._crash_point("after_applied")

    async def _write(self, changes: list[Change | Run]) -> None:
        writes = coalesce(changes)
        half = (len(writes) + 1) // 2
        if half:
            await self.recovery.write(writes[:half])
            self._crash_point("after_half_of_the_writes")
        if writes[half:]:
            await self.recovery.write(writes[half:])

    async def update(self, position: Position) -> None:
        """Record another position durably (promoted, retired). Raises StorageError."""
        await self._save(position)

    async def _save(self, position: Position) -> None:
        await asyncio.to_thread(save_position, self.directory, position)
        self.position = position


def _judged(fold: JournalFold, items: Sequence[Item]) -> Iterator[Event | Run]:
    """The items, those runs that the fold has taken in as a whole as runs, all else one by one and not yet fed."""
    for item in items:
        if isinstance(item, Run) and not fold.feed_run(item):
            yield from item.events()
        else:
            yield item
