"""The rules of a journal, record by record: what counts, what is fenced, what stops the volume.

An *attachment* is a pair (epoch, attachment id). Only events of the current one count; its `seq` is contiguous. What an
older or foreign attachment wrote is fenced: ignored and counted. What must not be (wrong crc, a jump of `seq` or offset,
an extent outside the volume, an epoch from the future) is poison: from that offset on nothing is accepted, points below it
stay good. The way out is a **full** sync in a new epoch: the `SyncStarted(mode="full")` of an attachment that began after
the poison clears it, and the gap that opened at the poison ends with that sync's `SyncCompleted`. So does mode "compare": it says of
every byte that it is copied, written meanwhile, or equal to the volume as this fold has it after the clearing. A sync of mode "delta"
does not clear it, because it relies on all events before it.

Nor does a delta sync begin anything: where no full or compare sync was completed since the volume was made, or since the last poison
or divergence, its `SyncStarted` is poison itself. Mode "continued" relies on the full sync of an attachment before, as far as
that came: where none began since, it is poison too. An agent that relied on what is not there is found out here.

A gap runs from a valid `EpochStarted` up to, not including, the `SyncCompleted` of its attachment.
The state is small and serialisable: a recovery volume's position holds it, and folding on from there gives the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from rephub.core.codec.runs import Run
from rephub.core.documents import record_of
from rephub.core.errors import IntegrityError
from rephub.schemas.journal import (
    Checkpoint,
    EpochStarted,
    Record,
    Resized,
    SyncCompleted,
    SyncData,
    SyncStarted,
    Write,
    Zero,
)

ESTABLISHING = ("full", "compare")
"""Modes of sync that rely on no event before them."""


CONTINUED = "continued"
"""Mode of a sync that goes on where that of the attachment before was interrupted."""


class Verdict(Enum):
    """What an event means for the volume."""

    APPLY = "apply"
    """Write, Zero or SyncData: changes bytes."""
    MARKER = "marker"
    """Counts, but changes no byte."""
    FENCED = "fenced"
    """Of another attachment: ignored and counted."""
    POISON = "poison"
    """Stops the volume here."""
    SKIPPED = "skipped"
    """Comes after poison: not accepted."""


@dataclass(slots=True)
class FoldState:
    """Where a fold stands: after the record at `last_offset`."""

    last_offset: int = -1
    last_epoch: int = 0
    last_seq: int = -1
    last_crc: str = ""
    """Identity of the record at `last_offset` (crc as hex), to recognise a journal that diverged; empty: unreadable."""
    epoch: int = 0
    attachment_id: str = ""
    """Hex; empty: no attachment yet."""
    next_seq: int = 0
    joining: bool = False
    """The records before the start are unknown: the first EpochStarted is believed."""
    size_bytes: int = 0
    captured_at_max: int = 0
    """Running maximum of captured_at, microseconds."""
    gap_first_offset: int | None = -1
    """First offset of the open gap; None: points are good."""
    gap_reason: str = "initial sync"
    gap_from_at: int = 0
    fenced_events: int = 0
    checkpoint: str | None = None
    """Name, if the record at `last_offset` is a checkpoint outside a gap."""
    poison_offset: int | None = None
    poison_reason: str = ""
    answering: bool = False
    """After poison: the current attachment began after it, its full sync may clear it."""
    unread: int = 0
    """Records since the current EpochStarted that cannot be read. Each may have been one: without this, every later epoch
    would count as fenced, and no resync would be the way out."""
    based: bool = True
    """A full sync was completed, and nothing is missing since: what a delta sync relies on. True where an older version left
    it out, as its agents knew no other sync than a full one."""
    establishing: bool = False
    """The sync under way in the current attachment says something of every byte, with those that it continues."""
    begun: bool = False
    """A sync that says something of every byte began, and nothing is missing since: what a continued sync relies on."""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> FoldState:
        """The state that `to_dict` described. Raises ValueError: it describes none."""
        return record_of(cls, document)


def fresh_state(
    last_offset: int, size_bytes: int, *, epoch: int = 0, joining: bool = False, reason: str = "initial sync"
) -> FoldState:
    """The state of a recovery volume that holds nothing of the journal yet.

    Args:
        last_offset: everything up to here is of no interest; -1: the journal starts empty.
        size_bytes: of the volume.
        epoch: the current epoch at `last_offset`.
        joining: believe the first EpochStarted, as the epoch at `last_offset` is not known.
        reason: of the gap that lasts until the first SyncCompleted.
    """
    return FoldState(
        last_offset=last_offset, size_bytes=size_bytes, epoch=epoch, joining=joining, gap_first_offset=last_offset,
        gap_reason=reason, based=False,
    )  # fmt: skip


def epoch_follows(state: FoldState, record: EpochStarted) -> bool:
    """Whether an EpochStarted is valid where it stands."""
    if state.joining:
        return record.epoch > state.epoch
    ahead = record.epoch - state.epoch
    return record.prev_epoch == record.epoch - 1 and 1 <= ahead <= 1 + state.unread


def is_current(state: FoldState, record: Record | Run) -> bool:
    """Whether the record, or the run, is of the current attachment."""
    return record.epoch == state.epoch and record.attachment_id.hex() == state.attachment_id


def is_from_future(state: FoldState, record: Record) -> bool:
    """Whether the record is of an epoch that never began."""
    return record.epoch > state.epoch and not state.joining


def offset_fault(state: FoldState, journal_offset: int) -> str:
    """Why the offset cannot follow, or an empty string."""
    if journal_offset == state.last_offset + 1:
        return ""
    verb = "goes back" if journal_offset <= state.last_offset else "jumps"
    return f"the journal offset {verb} from {state.last_offset} to {journal_offset}"


def seq_fault(state: FoldState, record: Record | Run) -> str:
    """Why the sequence number cannot follow, or an empty string."""
    if record.seq == state.next_seq:
        return ""
    verb = "repeats" if record.seq < state.next_seq else "jumps"
    return f"seq {verb} in epoch {record.epoch}: {record.seq} where {state.next_seq} was due"


def extent_fault(state: FoldState, start: int, length: int) -> str:
    """Why the extent cannot be of the volume, or an empty string."""
    if start >= 0 and length > 0 and start + length <= state.size_bytes:
        return ""
    return f"the extent {start}+{length} is outside the volume of {state.size_bytes} bytes"


class JournalFold:
    """Feeds on a journal's records in order.

    Args:
        state: where to go on; it is changed in place.
    """

    def __init__(self, state: FoldState) -> None:
        self.state = state

    def feed(self, journal_offset: int, record: Record | IntegrityError) -> Verdict:
        """Take in the next record.

        Args:
            journal_offset: its offset.
            record: decoded, or why it could not be.

        Returns:
            What it means. The reason of POISON is in `state.poison_reason`.
        """
        state = self.state
        fault = offset_fault(state, journal_offset)
        state.last_offset = journal_offset
        state.checkpoint = None
        if isinstance(record, IntegrityError):
            state.last_epoch, state.last_seq, state.last_crc = 0, -1, ""
            state.unread += 1
            return self._poison(journal_offset, fault or record.message)
        state.last_epoch, state.last_seq, state.last_crc = record.epoch, record.seq, record.crc32c.hex()
        if fault:
            return self._poison(journal_offset, fault)
        if isinstance(record, EpochStarted):
            return self._feed_epoch(journal_offset, record)
        if not is_current(state, record) and not is_from_future(state, record):
            state.fenced_events += 1
            return Verdict.FENCED
        return self._feed_event(journal_offset, record)

    def feed_run(self, run: Run) -> bool:
        """Take in a run of which every event is to be applied.

        Returns:
            False: not all are; nothing was taken in, they have to be fed one by one.
        """
        state = self.state
        # A start that is so large that the sum overflows is the highest by itself.
        low, high = int(run.starts.min()), max(int(run.starts.max()), int((run.starts + run.lengths).max()))
        if (
            state.poison_offset is not None
            or not is_current(state, run)
            or offset_fault(state, run.first_offset)
            or seq_fault(state, run)
            or extent_fault(state, low, high - low)
            or not run.lengths.all()
        ):
            return False
        state.last_offset, state.last_epoch, state.last_seq = (
            run.last_offset,
            run.epoch,
            run.seq + len(run) - 1,
        )
        state.last_crc, state.checkpoint = run.last_crc.hex(), None
        state.next_seq += len(run)
        state.captured_at_max = max(state.captured_at_max, int(run.captured_at.max()))
        return True

    def _feed_event(self, journal_offset: int, record: Record) -> Verdict:
        state = self.state
        if is_from_future(state, record):
            reason = f"an event of epoch {record.epoch}, which never began (current: {state.epoch})"
            return self._poison(journal_offset, reason)
        if fault := seq_fault(state, record):
            return self._poison(journal_offset, fault)
        state.next_seq += 1
        state.captured_at_max = max(state.captured_at_max, record.captured_at)
        if state.poison_offset is not None:
            return self._feed_poisoned(record)
        return self._feed_current(journal_offset, record)

    def _feed_current(self, journal_offset: int, record: Record) -> Verdict:
        state = self.state
        if isinstance(record, (Write, SyncData, Zero)):
            length = record.length if isinstance(record, Zero) else len(record.data)
            if fault := extent_fault(state, record.start, length):
                return self._poison(journal_offset, fault)
            return Verdict.APPLY
        if isinstance(record, SyncStarted):
            state.establishing = record.mode in ESTABLISHING or (record.mode == CONTINUED and state.begun)
            if not state.based and not state.establishing:
                return self._poison(journal_offset, f"a {record.mode} sync of a volume that is not whole")
            state.begun = state.begun or record.mode == "full"
        elif isinstance(record, SyncCompleted):
            state.based = state.based or state.establishing
            state.gap_first_offset, state.gap_reason = None, ""
            state.joining = False
        elif isinstance(record, Resized):
            state.size_bytes = record.size_bytes
        elif isinstance(record, Checkpoint) and state.gap_first_offset is None:
            state.checkpoint = record.checkpoint
        return Verdict.MARKER

    def _feed_epoch(self, journal_offset: int, record: EpochStarted) -> Verdict:
        state = self.state
        if not epoch_follows(state, record):
            state.fenced_events += 1
            return Verdict.FENCED
        if record.seq != 0:
            return self._poison(
                journal_offset, f"epoch {record.epoch} starts at seq {record.seq} instead of 0"
            )
        state.epoch, state.attachment_id, state.next_seq = record.epoch, record.attachment_id.hex(), 1
        state.establishing, state.unread = False, 0
        state.size_bytes = record.size_bytes
        state.captured_at_max = max(state.captured_at_max, record.captured_at)
        if state.poison_offset is not None:
            state.answering = True
            return Verdict.SKIPPED
        self._open_gap(journal_offset, record.reason)
        return Verdict.MARKER

    def _feed_poisoned(self, record: Record) -> Verdict:
        state = self.state
        if isinstance(record, SyncStarted) and record.mode in ESTABLISHING and state.answering:
            state.poison_offset, state.poison_reason, state.answering = None, "", False
            state.establishing, state.begun = True, record.mode == "full"
            return Verdict.MARKER
        if isinstance(record, Resized):
            state.size_bytes = record.size_bytes
        return Verdict.SKIPPED

    def _poison(self, journal_offset: int, reason: str) -> Verdict:
        state = self.state
        state.answering = False
        if state.poison_offset is not None:
            return Verdict.SKIPPED
        state.poison_offset, state.poison_reason = journal_offset, reason
        state.based = state.begun = False
        self._open_gap(journal_offset, f"stopped: {reason}")
        return Verdict.POISON

    def spoil(self, journal_offset: int, reason: str, *, poison: bool, answering: bool) -> None:
        """An event that was taken in cannot be read any more: points from it on are not good.

        Args:
            journal_offset: of the event.
            reason: why.
            poison: as if it had been so when it was read; False: a sync that relies on nothing before is under way.
            answering: the current attachment began after it.
        """
        state = self.state
        state.gap_first_offset, state.gap_reason = journal_offset, f"stopped: {reason}"
        if poison:
            state.establishing = state.based = state.begun = False
            state.answering = answering
            if state.poison_offset is None or state.poison_offset > journal_offset:
                state.poison_offset, state.poison_reason = journal_offset, reason

    def _open_gap(self, journal_offset: int, reason: str) -> None:
        state = self.state
        if state.gap_first_offset is None:
            state.gap_first_offset, state.gap_from_at = journal_offset, state.captured_at_max
            state.gap_reason = reason
        elif not state.gap_from_at:
            state.gap_from_at = state.captured_at_max
