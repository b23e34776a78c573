"""The fold at the head of a journal, and all that is known of (applied, head]: index, timeline, what could be read.

Fed with each record once. Now and then what the last records gave is *cut* into a section (`section.py`), which can be kept
and *adopted* by a later life of the fold in place of these records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rephub.core.codec.runs import Item, Run
from rephub.core.errors import IntegrityError
from rephub.projections.index import DATA, ZERO, Index
from rephub.projections.journal_fold import FoldState, JournalFold, Verdict
from rephub.projections.rot import Readable
from rephub.projections.section import Facts, Section
from rephub.projections.timeline import Timeline
from rephub.schemas.journal import Record, SyncData, Write, Zero

SECTION_BYTES = 256 << 20
SECTION_RECORDS = 65_536
"""A section ends here where its events do not fill a segment of the index before: what is read again after a restart is
twice this at most, at its beginning and at its end."""


class Head:
    """The head fold of one journal.

    Args:
        state: of the fold at the applied offset; not kept.
        floor_offset: no earlier point can be opened; at or above applied.
    """

    def __init__(self, state: FoldState, floor_offset: int) -> None:
        self.fold = JournalFold(replace(state))
        self.timeline = Timeline(self.fold.state)
        self.index = Index(state.last_offset)
        self.timeline.drop(floor_offset)
        self._readable = Readable()
        self._before = replace(state)
        self._bytes = 0
        self._spoiled = False

    @property
    def state(self) -> FoldState:
        """Of the fold, after the last record."""
        return self.fold.state

    @property
    def offset(self) -> int:
        """The last record that was taken in."""
        return self.fold.state.last_offset

    def take(self, journal_offset: int, record: Record | IntegrityError, record_bytes: int) -> Verdict:
        """Take in the next record.

        Args:
            journal_offset: its offset.
            record: decoded, or why it could not be.
            record_bytes: length of its value in the journal.

        Returns:
            What the fold says of it.
        """
        verdict = self.fold.feed(journal_offset, record)
        if verdict is Verdict.APPLY:
            if isinstance(record, Zero):
                self.index.add(journal_offset, record.start, record.length, ZERO)
            elif isinstance(record, (Write, SyncData)):
                self.index.add(journal_offset, record.start, len(record.data), DATA)
        self._readable.note(journal_offset, record, verdict)
        self.timeline.feed(self.fold.state, record, verdict, record_bytes)
        self._bytes += record_bytes
        return verdict

    def take_run(self, run: Run) -> bool:
        """Take in a run; where sections are to end in time, one that is no longer than `room`.

        Returns:
            False: not all of it is to be applied; nothing was taken in, it has to be taken one by one.
        """
        if not self.fold.feed_run(run):
            return False
        self.index.add_all(run.first_offset, run.starts, run.lengths, DATA)
        self.timeline.feed_run(run)
        self._bytes += int(run.value_bytes.sum())
        return True

    @property
    def room(self) -> int:
        """Records until a section should end; 0 or less: here."""
        if self._bytes >= SECTION_BYTES:
            return 0
        return min(self.index.room, SECTION_RECORDS - (self.offset - self._before.last_offset))

    @property
    def is_cut_due(self) -> bool:
        """Whether a section should end here."""
        return self.room <= 0

    def cut(self) -> Section | None:
        """End a section at the last record.

        Returns:
            The section; None once something was spoiled: what is known does not follow from the records alone any more.
        """
        segment = self.index.seal()
        stretch, curves = self.timeline.cut()
        before, self._before, self._bytes = self._before, replace(self.state), 0
        if self._spoiled or before.last_offset == self.offset:
            return None
        facts = Facts(before, self._before, self.timeline.floor_offset, stretch, self._readable.copy())
        return Section(facts, segment, curves)

    def adopt(self, section: Section) -> bool:
        """Take in a section in place of its records, if it is the next one and made in the very state that the fold is in.

        Returns:
            Whether it was so.
        """
        if self._spoiled or section.facts.before != self.state:
            return False
        if self._before != self.state:
            self.cut()
        facts = section.facts
        self.fold.state = replace(facts.after)
        if section.segment is not None:
            self.index.adopt(section.segment)
        self.timeline.adopt(facts.after.last_offset, facts.stretch, section.curves)
        self.timeline.drop(facts.floor_offset)
        self._readable = facts.readable.copy()
        self._readable.drop(self.index.applied_offset)
        self._before, self._bytes = replace(facts.after), 0
        return True

    def rots(self, events: Sequence[Item]) -> tuple[int, IntegrityError, bool] | None:
        """Look for an event that could be read once and cannot be any more; points that depend on it end here.

        Args:
            events: as they are read now.

        Returns:
            Its offset, why, and whether it is poison: no sync that relies on nothing before it came since, or is under
            way. None: there is none.
        """
        found = self._readable.rotten(events)
        if found is None:
            return None
        self._spoiled = True
        journal_offset, error = found
        next_offset = self._readable.whole_after(journal_offset)
        self.timeline.spoil(journal_offset, next_offset, error.message)
        if next_offset is not None:
            return journal_offset, error, False
        poison = not self._readable.is_under_way_after(journal_offset)
        answering = self._readable.is_answered_after(journal_offset)
        reason = f"it cannot be read any more: {error.message}"
        self.fold.spoil(journal_offset, reason, poison=poison, answering=answering)
        return journal_offset, error, poison

    def drop(self, applied_offset: int) -> None:
        """Forget what lies below the applied offset."""
        self.index.drop(applied_offset)
        self._readable.drop(applied_offset)
