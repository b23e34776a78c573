"""Reads along with one journal: feeds the head fold, the index and the timeline, and ends sections.

Here: what a record that was just read means for the volume. Not here: applying it, the floor, pins (`projector.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from rephub.consumers.diskbox.journal_source import JournalSource
from rephub.consumers.diskbox.recent import Recent
from rephub.consumers.diskbox.sections import Sections, restore
from rephub.consumers.diskbox.signals import Signal
from rephub.core.codec.runs import Event, Item, Run, decode_all
from rephub.core.errors import IntegrityError, RephubError
from rephub.core.journal.port import JournalReader, StoredRecords
from rephub.projections.head import Head
from rephub.projections.journal_fold import Verdict
from rephub.schemas.journal import Digest

log = logging.getLogger(__name__)

ROOM_SECONDS = 1.0
"""Between two looks whether the applier has taken what waits for it; it notifies, this only bounds the wait."""


class Follower:
    """Follows one journal.

    Args:
        volume: name.
        head: at the applied offset.
        sections: of lives before.
        source: of the journal.
        changed: notified after whatever was read.
        applies_at_once: whether what is read in a gap is applied as soon as it is read.
        on_stopped: called with (offset, error) when an event stops the volume.
        on_resumed: called with the offset from which it goes on.
    """

    def __init__(
        self,
        volume: str,
        head: Head,
        sections: Sections,
        source: JournalSource,
        changed: Signal,
        *,
        applies_at_once: Callable[[], bool],
        on_stopped: Callable[[int, RephubError], None],
        on_resumed: Callable[[int], None],
    ) -> None:
        self.volume = volume
        self.head = head
        self.recent = Recent()
        """What was read in a gap, for the applier."""
        self.on_digest: Callable[[int, Digest], None] | None = None
        """Called with each digest of the current attachment in the loop turn in which it is read: it may pin its offset."""
        self._sections = sections
        self._source = source
        self._changed = changed
        self._applies_at_once = applies_at_once
        self._on_stopped, self._on_resumed = on_stopped, on_resumed
        sections.drop(head.offset)

    @property
    def is_in_gap(self) -> bool:
        """Whether the floor is in a gap, where there is no history to keep."""
        return self.head.timeline.gap_at(self.head.timeline.floor_offset) is not None

    @property
    def poison(self) -> IntegrityError | None:
        """An event stopped the volume; what follows is looked at for a full sync only."""
        state = self.head.state
        offset = state.poison_offset
        if offset is None:
            return None
        return IntegrityError(
            f"{self.volume} stopped at journal offset {offset}: {state.poison_reason}",
            hint=f"points up to {offset - 1} stay good; rephub resync {self.volume}",
            journal_offset=offset,
        )

    async def run(self, reader: JournalReader) -> None:
        """Follow until cancelled.

        Raises:
            IntegrityError: the journal diverged.
            NotFoundError: it is gone.
        """
        await restore(self.head, self._sections, self._source, self._take_all, self._adopted)
        self._changed.notify()
        async for records in reader.tail(self.head.offset + 1):
            for item in decode_all(records):
                for part in self._parts(item):
                    self._take(part, records)
                    await self._cut()
            self._changed.notify()
            await asyncio.sleep(0)
            while self.recent.is_full:
                await self._changed.wait(ROOM_SECONDS)

    def rots(self, items: list[Item]) -> bool:
        """Whether one of the events could be read once and cannot be any more; points that depend on it end here."""
        before = self.head.state.poison_offset
        found = self.head.rots(items)
        if found is None:
            return False
        journal_offset, error, poison = found
        self._sections.forget(0)
        if poison and before is None:
            self._say_poison(before)
        log.error("volume=%s rotten_offset=%d error=%s", self.volume, journal_offset, error.message)
        self._changed.notify()
        return True

    def drop(self, applied_offset: int) -> None:
        """Forget what lies below the applied offset."""
        self.head.drop(applied_offset)
        self._sections.drop(applied_offset)

    def _adopted(self, poison_before: int | None) -> None:
        """A section was taken in in place of its records."""
        self._say_poison(poison_before)
        self._changed.notify()

    async def _cut(self) -> None:
        """End a section where one should."""
        if self.head.is_cut_due:
            section = self.head.cut()
            if section is not None and not self.is_in_gap:
                await self._sections.keep(section)

    def _take_all(self, records: StoredRecords) -> None:
        """Take in records without ending sections where they are full."""
        for item in decode_all(records):
            self._take(item, records)

    def _parts(self, item: Item) -> Iterator[Item]:
        """An event as it is, a run in parts that do not go beyond the end of a section."""
        if not isinstance(item, Run):
            yield item
            return
        first = 0
        while first < len(item):
            next_ = min(len(item), first + max(1, self.head.room))
            yield item.part(first, next_)
            first = next_

    def _take(self, item: Item, records: StoredRecords) -> None:
        """Take in an event or a run: one of these records, or several."""
        if not isinstance(item, Run):
            self._take_event(item, records.value_bytes(item[0]))
        elif self.head.take_run(item):
            self._keep_recent(item, int(item.value_bytes.sum()))
        else:
            for event in item.events():
                self._take_event(event, records.value_bytes(event[0]))

    def _keep_recent(self, item: Item, value_bytes: int) -> None:
        if self.is_in_gap and self._applies_at_once():
            self.recent.add(item, value_bytes)

    def _take_event(self, event: Event, value_bytes: int) -> None:
        journal_offset, record = event
        before = self.head.state.poison_offset
        verdict = self.head.take(journal_offset, record, value_bytes)
        self._keep_recent(event, value_bytes)
        if verdict is Verdict.MARKER and isinstance(record, Digest) and self.on_digest is not None:
            self.on_digest(journal_offset, record)
        self._say_poison(before)

    def _say_poison(self, before: int | None) -> None:
        """Tell of what stops the volume now, or does no more.

        Args:
            before: offset of the poison before the last records.
        """
        offset = self.head.state.poison_offset
        if offset is not None and offset != before:
            assert self.poison is not None
            self._on_stopped(offset, self.poison)
        elif offset is None and before is not None:
            self._on_resumed(self.head.offset)
