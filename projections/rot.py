"""Records that could be read once and cannot be any more: a log that rots after the projector has read it.

The head fold has taken such a record in; the applied fold, which reads it a second time, cannot. Points from it on depend
on it, up to the next sync that relies on no event before it. What is here only remembers and finds; the projector acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rephub.core.codec.runs import Item, Run
from rephub.core.errors import IntegrityError
from rephub.projections.journal_fold import ESTABLISHING, Verdict
from rephub.schemas.journal import EpochStarted, Record, SyncCompleted, SyncStarted


@dataclass(slots=True)
class Readable:
    """What the head fold has seen of (applied, head]."""

    judged: set[int] = field(default_factory=set)
    """Offsets of records that could not be read at first; the folds have judged them."""
    epoch_offset: int = -1
    establishing: bool = False
    whole: list[tuple[int, int]] = field(default_factory=list)
    """(offset of its EpochStarted, of its SyncCompleted) of syncs that rely on nothing before their epoch."""

    def copy(self) -> Readable:
        """As it is now."""
        return replace(self, judged=set(self.judged), whole=list(self.whole))

    def note(self, journal_offset: int, record: Record | IntegrityError, verdict: Verdict) -> None:
        """A record was read for the first time, and judged."""
        if isinstance(record, IntegrityError):
            self.judged.add(journal_offset)
        elif verdict is Verdict.FENCED:
            return
        elif isinstance(record, EpochStarted):
            self.epoch_offset, self.establishing = journal_offset, False
        elif isinstance(record, SyncStarted):
            self.establishing = verdict is Verdict.MARKER and record.mode in ESTABLISHING
        elif isinstance(record, SyncCompleted) and verdict is Verdict.MARKER and self.establishing:
            self.whole.append((self.epoch_offset, journal_offset))

    def rotten(self, items: Iterable[Item]) -> tuple[int, IntegrityError] | None:
        """The first event that could be read before; from now on it counts as judged."""
        for item in items:
            if isinstance(item, Run):
                continue
            journal_offset, record = item
            if isinstance(record, IntegrityError) and journal_offset not in self.judged:
                self.judged.add(journal_offset)
                # A sync that it is part of is whole no more.
                self.whole = [pair for pair in self.whole if not pair[0] <= journal_offset <= pair[1]]
                return journal_offset, record
        return None

    def whole_after(self, journal_offset: int) -> int | None:
        """Where points do not depend on the event any more: a `SyncCompleted`; None: nowhere yet."""
        return next((done for began, done in self.whole if began > journal_offset), None)

    def is_under_way_after(self, journal_offset: int) -> bool:
        """Whether such a sync is under way."""
        return self.establishing and self.is_answered_after(journal_offset)

    def is_answered_after(self, journal_offset: int) -> bool:
        """Whether the current attachment began after the event."""
        return self.epoch_offset > journal_offset

    def drop(self, applied_offset: int) -> None:
        """Forget what lies below the applied offset."""
        if self.judged:
            self.judged = {offset for offset in self.judged if offset > applied_offset}
        if self.whole and self.whole[0][1] <= applied_offset:
            self.whole = [pair for pair in self.whole if pair[1] > applied_offset]
