"""The journal port: what the rest of the code may ask of a volume's journal.

One journal is one topic of one partition; a record's position is its `journal_offset`. Adapters:
`memory.py` (tests and simulation) and `kafka.py`; `tests/conformance/journal_cases.py` holds what both must do.
Values are opaque here: `core/codec.py` knows what is in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from rephub.core.errors import UsageError

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

Payload = bytes | bytearray | memoryview


class StoredRecord(NamedTuple):
    """One record as the journal holds it; a tuple, because tails make a hundred thousand a second."""

    journal_offset: int
    value: bytes


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

    def tail(self, first_offset: int) -> AsyncIterator[list[StoredRecord]]:
        """All records from `first_offset` on, in order, in non-empty lists, waiting for new ones for ever.

        A broker that is away is waited for; an offset that is no longer (or not yet) there is an error.

        Raises:
            IntegrityError: `first_offset` is below the log start or beyond the head.
            NotFoundError: the journal was deleted.
        """

    async def fetch(self, journal_offset: int, bytes_max: int = FETCH_BYTES_MAX) -> list[StoredRecord]:
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
