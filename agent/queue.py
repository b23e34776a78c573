"""The ordered queue of one volume: every event of an attachment passes here, once, in journal order.

Here: numbering (`seq`), the byte count that overload looks at, the mask that lets live writes win over sync, batches
for the publisher. Not here: answers to QEMU, dirty regions, encoding, Kafka. No clock: callers pass the time.

Invariants: `seq` is contiguous in queue order; an event leaves only in a batch, and the next batch only after the
former was acked; bytes of a sync read that a younger Write or Zero covers never enter the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from rephub.agent import extents
from rephub.agent.extents import Extent

EVENT_DATA_BYTES_MAX = 1 << 20
"""Data of one event (design: events hold at most 1 MiB); a batch of one such event stays far below
`max.message.bytes`."""

EVENT_OVERHEAD_BYTES = 256
"""What an event counts beside its data: header and objects. Bounds the queue also for events without data."""

READS_MAX = 64
"""Sync reads under way at once; every write looks at each of them."""

FLAG_FUA = 1
FLAG_SYNC = 2

Buffer = bytes | bytearray | memoryview


class Kind(Enum):
    """What an event is."""

    WRITE = "write"
    ZERO = "zero"
    SYNC_DATA = "sync_data"
    SYNC_STARTED = "sync_started"
    SYNC_COMPLETED = "sync_completed"
    CHECKPOINT = "checkpoint"
    DIGEST = "digest"
    RESIZED = "resized"


@dataclass(slots=True, eq=False)
class Queued:
    """One event between capture and ack."""

    kind: Kind
    seq: int
    captured_at: int
    start: int = 0
    length: int = 0
    data: Buffer | None = None
    flags: int = 0
    unmap: bool = False
    fields: dict[str, object] = field(default_factory=dict)
    """Of the rare kinds: mode and total_bytes, size_bytes, the checkpoint's name, group, kind, periodic, or a digest's extent."""
    cookie: int | None = None
    """NBD request that is answered when this event is acked; None: answered, or nobody waits."""
    on_ack: Callable[[int], None] | None = None
    """Called with the event's journal offset."""
    acked: bool = False
    cost_bytes: int = EVENT_OVERHEAD_BYTES
    """What the event counts against the buffer."""
    record: bytes | None = None
    """As the journal will have it, once it is encoded; `data` is gone then."""

    @property
    def is_sync(self) -> bool:
        """Made by sync, not by the guest."""
        return self.kind is Kind.SYNC_DATA or bool(self.flags & FLAG_SYNC)


@dataclass(slots=True, eq=False)
class SyncRead:
    """A sync read under way: what has been written to its extent since it was issued."""

    start: int
    length: int
    younger: list[Extent] = field(default_factory=list)


def covers(read: SyncRead, start: int, length: int) -> bool:
    """Rule: a write to any byte of the read's extent masks the read."""
    return extents.overlaps(read.start, read.length, start, length)


def unmasked(read: SyncRead, start: int, length: int) -> list[Extent]:
    """Rule: of a part of a finished read, only what no younger write covers may be journalled."""
    return extents.subtract(start, length, read.younger)


class EventQueue:
    """The queue of one attachment.

    Args:
        first_seq: number of the first event; `EpochStarted` had 0.
    """

    def __init__(self, first_seq: int = 1) -> None:
        self._queued: deque[Queued] = deque()
        self._in_flight: list[Queued] = []
        self._reads: list[SyncRead] = []
        self.next_seq = first_seq
        self.queued_bytes = 0
        """Cost of the events that no batch has taken yet."""
        self.unacked_bytes = 0
        """Cost of all events that are not acked: queued and in flight."""
        self.unacked_data_bytes = 0
        """Their data alone: what `lag_bytes` says."""
        self.unacked_sync_bytes = 0
        """Cost of the unacked events that sync made."""

    def __len__(self) -> int:
        return len(self._queued) + len(self._in_flight)

    @property
    def oldest_captured_at(self) -> int | None:
        """Capture time of the oldest unacked event, in microseconds; None while all are acked."""
        if self._in_flight:
            return self._in_flight[0].captured_at
        return self._queued[0].captured_at if self._queued else None

    def write(self, captured_at: int, start: int, data: Buffer, flags: int = 0) -> Queued:
        """Append a guest write of at most EVENT_DATA_BYTES_MAX and mask it out of sync reads under way."""
        length = len(data)
        if length > EVENT_DATA_BYTES_MAX:
            raise ValueError(f"write of {length} bytes is not split")
        if self._reads:
            self._mask(start, length)
        return self._append(Queued(Kind.WRITE, self.next_seq, captured_at, start, length, data, flags))

    def zero(self, captured_at: int, start: int, length: int, *, unmap: bool, flags: int = 0) -> Queued:
        """Append a guest zero or discard and mask it out of sync reads under way."""
        if self._reads:
            self._mask(start, length)
        return self._append(
            Queued(Kind.ZERO, self.next_seq, captured_at, start, length, None, flags, unmap=unmap)
        )

    def mark(self, kind: Kind, captured_at: int, /, **fields: object) -> Queued:
        """Append an event without an extent: a checkpoint marker, the start or end of sync."""
        return self._append(Queued(kind, self.next_seq, captured_at, fields=fields))

    def open_read(self, start: int, length: int) -> SyncRead:
        """Say that sync is about to read an extent; call before the read is issued."""
        if len(self._reads) >= READS_MAX:
            raise ValueError(f"more than {READS_MAX} sync reads under way")
        read = SyncRead(start, length)
        self._reads.append(read)
        return read

    def sync_data(self, captured_at: int, read: SyncRead, data: Buffer) -> list[Queued]:
        """Append what a read brought, without what was written since; the read stays open."""
        view = memoryview(data)
        appended = []
        for start, length in unmasked(read, read.start, len(view)):
            piece = view[start - read.start : start - read.start + length]
            appended.append(
                self._append(Queued(Kind.SYNC_DATA, self.next_seq, captured_at, start, length, piece))
            )
        return appended

    def sync_zero(
        self, captured_at: int, read: SyncRead, start: int, length: int, *, unmap: bool
    ) -> list[Queued]:
        """Append a part of a read that holds only zeroes, without what was written since; the read stays open."""
        return [
            self._append(
                Queued(Kind.ZERO, self.next_seq, captured_at, first, size, None, FLAG_SYNC, unmap=unmap)
            )
            for first, size in unmasked(read, start, length)
        ]

    def close_read(self, read: SyncRead) -> None:
        """End a read, in the loop turn in which its data were appended; not an error if it is closed."""
        if read in self._reads:
            self._reads.remove(read)

    def take_batch(self, bytes_max: int) -> list[Queued]:
        """Take events for one journal batch: whole events, oldest first, at least one if there is one.

        Args:
            bytes_max: the batch ends before the event that would make its cost exceed this.

        Raises:
            RuntimeError: the former batch is still in flight.
        """
        if self._in_flight:
            raise RuntimeError("one batch is in flight already")
        batch: list[Queued] = []
        size = 0
        while self._queued:
            cost = self._queued[0].cost_bytes
            if batch and size + cost > bytes_max:
                break
            batch.append(self._queued.popleft())
            size += cost
        self.queued_bytes -= size
        self._in_flight = batch
        return batch

    def unencoded(self) -> list[Queued]:
        """Events that no batch has taken and nobody has encoded yet, the newest first."""
        found: list[Queued] = []
        for event in reversed(self._queued):
            if event.record is not None:
                break
            found.append(event)
        return found

    def acked(self) -> list[Queued]:
        """The batch in flight is in the journal: forget it.

        Returns:
            Its events, in order, marked as acked.
        """
        batch, self._in_flight = self._in_flight, []
        for event in batch:
            event.acked = True
            self.unacked_bytes -= event.cost_bytes
            if event.is_sync:
                self.unacked_sync_bytes -= event.cost_bytes
            self.unacked_data_bytes -= event.cost_bytes - EVENT_OVERHEAD_BYTES
            event.data = event.record = None
        return batch

    def discard(self) -> None:
        """Let go of all events: nobody will publish them. Who still holds the queue holds no data by that."""
        self._queued.clear()
        self._in_flight = []
        self._reads.clear()
        self.queued_bytes = self.unacked_bytes = self.unacked_data_bytes = self.unacked_sync_bytes = 0

    def _mask(self, start: int, length: int) -> None:
        for read in self._reads:
            if covers(read, start, length):
                read.younger.append((start, length))

    def _append(self, event: Queued) -> Queued:
        cost = EVENT_OVERHEAD_BYTES + (len(event.data) if event.data is not None else 0)
        event.cost_bytes = cost
        self.next_seq += 1
        self.queued_bytes += cost
        self.unacked_bytes += cost
        self.unacked_data_bytes += cost - EVENT_OVERHEAD_BYTES
        if event.is_sync:
            self.unacked_sync_bytes += cost
        self._queued.append(event)
        return event
