"""The journal port: what the rest of the code may ask of a volume's journal.

One journal is one topic of one partition; a record's position is its `journal_offset`. Adapters:
`memory.py` (tests and simulation) and `kafka.py`; `tests/conformance/journal_cases.py` holds what both must do.
Values are opaque here: `core/codec.py` knows what is in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol, overload

import numpy as np

from rephub.core.arrays import Int64s
from rephub.core.errors import UsageError

Payload = bytes | bytearray | memoryview

BATCH_BYTES_MAX = 2 << 20
"""A publisher stops filling a batch here; with one more event of 1 MiB it is far below the next limit."""

APPEND_BYTES_MAX = 4 << 20
"""Largest batch that a journal takes, framing included: the topic's `max.message.bytes`."""

FETCH_BYTES_MAX = 1 << 20
"""What one `fetch` asks for unless told otherwise; a larger record comes all the same."""

FRAMING_BYTES_MAX = 32
"""Upper limit of what the log adds to a record (Kafka's v2 format: 21 bytes and two lengths)."""

HEADER_BYTES_MAX = 64
"""Upper limit of what the log adds to a batch (Kafka's v2 format: 61)."""


class StoredRecord(NamedTuple):
    """One record as the journal holds it."""

    journal_offset: int
    value: bytes | memoryview
    """A view holds all that was fetched with it: copy what is to be kept."""


class StoredRecords(Sequence[StoredRecord]):
    """Consecutive records as they were fetched: one buffer, and where in it each value lies.

    Args:
        first_offset: journal offset of the first.
        buffer: holds all values.
        starts: where each value begins in the buffer.
        ends: where it ends.
    """

    __slots__ = ("buffer", "ends", "first_offset", "starts")

    def __init__(self, first_offset: int, buffer: memoryview, starts: Int64s, ends: Int64s) -> None:
        self.first_offset = first_offset
        self.buffer = buffer
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, first_offset: int, values: Sequence[Payload]) -> StoredRecords:
        """These values, copied."""
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return cls(first_offset, memoryview(b"".join(values)), ends[:-1], ends[1:])

    @property
    def last_offset(self) -> int:
        """Of the last; one below the first where there is none."""
        return self.first_offset + len(self.starts) - 1

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> StoredRecord: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRecords: ...
    def __getitem__(self, index: int | slice) -> StoredRecord | StoredRecords:
        if isinstance(index, slice):
            first, stop, _ = index.indices(len(self))
            return StoredRecords(
                self.first_offset + first, self.buffer, self.starts[first:stop], self.ends[first:stop]
            )
        number = range(len(self))[index]
        value = self.buffer[int(self.starts[number]) : int(self.ends[number])]
        return StoredRecord(self.first_offset + number, value)

    def __iter__(self) -> Iterator[StoredRecord]:
        buffer, offset = self.buffer, self.first_offset
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield StoredRecord(offset, buffer[start:end])
            offset += 1

    def value_bytes(self, journal_offset: int) -> int:
        """Length of the value at an offset."""
        number = journal_offset - self.first_offset
        return int(self.ends[number] - self.starts[number])

    def upto(self, last_offset: int) -> StoredRecords:
        """Those up to an offset."""
        return self[: max(0, last_offset - self.first_offset + 1)]


def check_fits(values: Sequence[Payload]) -> None:
    """Raises UsageError if the values are no batch that a journal takes."""
    total = HEADER_BYTES_MAX + sum(map(len, values)) + FRAMING_BYTES_MAX * len(values)
    if not values or total > APPEND_BYTES_MAX:
        raise UsageError(
            f"a batch of {len(values)} records and {total} bytes does not fit a journal",
            hint=f"1 record to {APPEND_BYTES_MAX} bytes, framing included",
        )


class JournalWriter(Protocol):
    """Writes to one journal; belongs to one capture attachment and is never reused for another."""

    async def start(self) -> None:
        """Connect.

        Raises:
            UnavailableError: no broker answers in time; nothing was written.
            NotFoundError: there is no such journal.
        """

    async def append(self, values: Sequence[Payload]) -> int:
        """Write one batch and wait until it is acked by all in-sync replicas.

        At most one call may be under way. The batch is at most `BATCH_BYTES_MAX` plus one event. The values
        must not change until it returns. Cancelling it makes the outcome unknown, as any failure does.

        Returns:
            The journal offset of the first value; the others follow contiguously.

        Raises:
            IndeterminateError: failed or overdue: the batch may land later. The writer is dead
                from here on: `abandon()` it, resend nothing, open a new epoch with a new writer.
        """

    async def abandon(self) -> None:
        """Let go at once, without flush; never raises, never waits for the broker."""

    async def close(self) -> None:
        """Let go in peace, after the last `append` returned."""


class JournalReader(Protocol):
    """Reads one journal, at any offset."""

    async def start(self) -> None:
        """Connect. Raises UnavailableError, or NotFoundError if there is no such journal."""

    async def first_offset(self) -> int:
        """The log start: the lowest offset that can still be read."""

    async def next_offset(self) -> int:
        """One after the newest record (the high watermark)."""

    def tail(self, first_offset: int) -> AsyncIterator[StoredRecords]:
        """All records from `first_offset` on, in order, never none at a time, waiting for new ones for ever.

        A broker that is away is waited for; an offset that is no longer (or not yet) there is an error.

        Raises:
            IntegrityError: `first_offset` is below the log start or beyond the head.
            NotFoundError: the journal was deleted.
        """

    async def fetch(self, journal_offset: int, bytes_max: int = FETCH_BYTES_MAX) -> StoredRecords:
        """The record at the offset and those that came along with it (at least that one, ascending).

        Raises:
            IntegrityError: the offset is not in the log.
            UnavailableError: no broker answers in time.
        """

    async def close(self) -> None:
        """Let go."""


class JournalAdmin(Protocol):
    """Makes, trims and deletes journals."""

    async def create(self, volume: str) -> bool:
        """Make the volume's journal; True if it was not there.

        Raises:
            ConflictError: Kafka refuses the name because of another topic.
            UnavailableError: no broker answers in time.
        """

    async def delete_records(self, volume: str, next_offset: int) -> None:
        """Free everything below `next_offset`; nothing happens if the log starts there or above.

        Raises:
            IntegrityError: `next_offset` is beyond the head.
            UnavailableError: no broker answers in time.
        """

    async def delete(self, volume: str) -> None:
        """Delete the journal; not an error if it is not there."""


class JournalStore(Protocol):
    """A Kafka cluster, or its stand-in."""

    def writer(self, volume: str) -> JournalWriter:
        """A new writer; connect it with `start()`."""

    def reader(self, volume: str) -> JournalReader:
        """A new reader; connect it with `start()`."""

    def admin(self) -> JournalAdmin:
        """Shared; connects when first used."""

    async def close(self) -> None:
        """Close what is shared."""
