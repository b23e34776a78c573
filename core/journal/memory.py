"""Journals in memory, for tests and simulation: deterministic, with faults on demand.

Nothing here knows what time it is: a delay is a future that the test resolves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from rephub.core.errors import IndeterminateError, IntegrityError, NotFoundError, UnavailableError, UsageError
from rephub.core.journal.port import BATCH_BYTES_MAX, Payload, StoredRecords, check_fits


@dataclass(slots=True)
class Fault:
    """What happens to one `append`.

    The steps in order: wait for `before`, write if `lands`, wait for `after`, fail unless `acked`.
    """

    lands: bool = True
    """False: the batch is lost; with `late` it lands when the test calls `land_late()`."""
    acked: bool = True
    """False: the writer learns nothing (IndeterminateError)."""
    late: bool = False
    """The batch lands after the writer was told that nobody knows, as a retrying broker client would do."""
    before: asyncio.Future[None] | None = None
    after: asyncio.Future[None] | None = None


@dataclass(slots=True)
class _Journal:
    first_offset: int = 0
    values: list[bytes] = field(default_factory=list)
    late: list[list[bytes]] = field(default_factory=list)

    @property
    def next_offset(self) -> int:
        return self.first_offset + len(self.values)


class MemoryJournalStore:
    """A `JournalStore`, its `JournalAdmin` and the switchboard of its faults."""

    def __init__(self) -> None:
        self.unavailable = False
        """True: whoever asks is told that no broker answers; tails wait, appends become indeterminate."""
        self.fault: Callable[[str, Sequence[bytes]], Fault | None] | None = None
        """Asked before each append (volume, values); None: no fault."""
        self._journals: dict[str, _Journal] = {}
        self._changed = asyncio.Condition()

    def writer(self, volume: str) -> MemoryJournalWriter:
        """See `JournalStore.writer`."""
        return MemoryJournalWriter(self, volume)

    def reader(self, volume: str) -> MemoryJournalReader:
        """See `JournalStore.reader`."""
        return MemoryJournalReader(self, volume)

    def admin(self) -> MemoryJournalStore:
        """The store itself."""
        return self

    async def create(self, volume: str) -> bool:
        """See `JournalAdmin.create`."""
        self.check_available()
        if volume in self._journals:
            return False
        self._journals[volume] = _Journal()
        return True

    async def delete_records(self, volume: str, next_offset: int) -> None:
        """See `JournalAdmin.delete_records`."""
        journal = self.journal(volume)
        if next_offset > journal.next_offset:
            raise IntegrityError(
                f"the journal of {volume} ends at {journal.next_offset}, {next_offset} is beyond",
                next_offset=journal.next_offset,
            )
        if next_offset > journal.first_offset:
            del journal.values[: next_offset - journal.first_offset]
            journal.first_offset = next_offset

    async def delete(self, volume: str) -> None:
        """See `JournalAdmin.delete`."""
        self.check_available()
        self._journals.pop(volume, None)
        await self.wake()

    async def close(self) -> None:
        """Keep everything: a test looks at it afterwards."""

    async def set_unavailable(self, unavailable: bool) -> None:
        """Begin or end an outage."""
        self.unavailable = unavailable
        await self.wake()

    async def land_late(self, volume: str) -> None:
        """Let every batch with a `late` fault land now."""
        journal = self.journal(volume)
        for batch in journal.late:
            journal.values += batch
        journal.late.clear()
        await self.wake()

    async def truncate(self, volume: str, next_offset: int) -> None:
        """Cut the end off, as a power cut does to a single broker."""
        journal = self.journal(volume)
        del journal.values[next_offset - journal.first_offset :]
        await self.wake()

    def corrupt(self, volume: str, journal_offset: int, value: bytes) -> None:
        """Put other bytes in a record's place."""
        journal = self.journal(volume)
        journal.values[journal_offset - journal.first_offset] = value

    def journal(self, volume: str) -> _Journal:
        """The journal itself. Raises UnavailableError or NotFoundError."""
        self.check_available()
        try:
            return self._journals[volume]
        except KeyError:
            raise NotFoundError(f"{volume} has no journal") from None

    def check_available(self) -> None:
        """Raises UnavailableError during an outage."""
        if self.unavailable:
            raise UnavailableError("the journal does not answer")

    async def wake(self) -> None:
        """Tell waiting tails that something changed."""
        async with self._changed:
            self._changed.notify_all()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; looked at after each change."""
        async with self._changed:
            await self._changed.wait_for(condition)


class MemoryJournalWriter:
    """A `JournalWriter`."""

    def __init__(self, store: MemoryJournalStore, volume: str) -> None:
        self._store = store
        self._volume = volume
        self._dead = ""
        self._busy = False
        self._started = False
        self._abandoned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """See `JournalWriter.start`."""
        self._store.journal(self._volume)
        self._started = True

    async def append(self, values: Sequence[Payload]) -> int:
        """See `JournalWriter.append`."""
        check_fits(values)
        if not self._started or self._busy:
            raise UsageError("a journal writer is started once and takes one batch at a time")
        if self._dead:
            raise IndeterminateError(f"the writer of {self._volume} is dead: {self._dead}")
        self._busy = True
        try:
            return await self._append([bytes(value) for value in values])
        except BaseException as exc:
            self._dead = self._dead or str(exc) or "an earlier batch has an unknown outcome"
            raise
        finally:
            self._busy = False

    async def _append(self, values: list[bytes]) -> int:
        store = self._store
        fault = (store.fault and store.fault(self._volume, values)) or Fault()
        await self._wait(fault.before)
        if store.unavailable:
            raise IndeterminateError(f"a batch of {self._volume} got no answer")
        journal = store.journal(self._volume)
        base_offset = journal.next_offset
        if fault.lands:
            journal.values += values
            await store.wake()
        elif fault.late:
            journal.late.append(values)
        await self._wait(fault.after)
        if not fault.acked or not fault.lands:
            raise IndeterminateError(f"a batch of {self._volume} got no answer")
        return base_offset

    async def _wait(self, gate: asyncio.Future[None] | None) -> None:
        if gate is not None:
            await asyncio.wait({gate, self._abandoned}, return_when=asyncio.FIRST_COMPLETED)
        if self._abandoned.done():
            raise IndeterminateError(f"the writer of {self._volume} was abandoned")

    async def abandon(self) -> None:
        """See `JournalWriter.abandon`."""
        self._dead = self._dead or "abandoned"
        if not self._abandoned.done():
            self._abandoned.set_result(None)

    async def close(self) -> None:
        """See `JournalWriter.close`."""
        self._dead = self._dead or "closed"


class MemoryJournalReader:
    """A `JournalReader`."""

    def __init__(self, store: MemoryJournalStore, volume: str) -> None:
        self._store = store
        self._volume = volume

    async def start(self) -> None:
        """See `JournalReader.start`."""
        self._store.journal(self._volume)

    async def first_offset(self) -> int:
        """See `JournalReader.first_offset`."""
        return self._store.journal(self._volume).first_offset

    async def next_offset(self) -> int:
        """See `JournalReader.next_offset`."""
        return self._store.journal(self._volume).next_offset

    async def tail(self, first_offset: int) -> AsyncIterator[StoredRecords]:
        """See `JournalReader.tail`."""
        store, at = self._store, first_offset
        while True:
            await store.wait_for(lambda: not store.unavailable)
            journal = store.journal(self._volume)
            if not journal.first_offset <= at <= journal.next_offset:
                raise _not_in_log(self._volume, at, journal)
            if at == journal.next_offset:
                await store.wait_for(lambda: self._moved(journal, at))  # noqa: B023 (awaited here)
                continue
            records = self._records(journal, at, BATCH_BYTES_MAX)
            yield records
            at = records.last_offset + 1

    def _moved(self, journal: _Journal, at: int) -> bool:
        store = self._store
        return not store.unavailable and (
            journal.next_offset != at or store._journals.get(self._volume) is not journal
        )

    async def fetch(self, journal_offset: int, bytes_max: int = BATCH_BYTES_MAX) -> StoredRecords:
        """See `JournalReader.fetch`."""
        journal = self._store.journal(self._volume)
        if not journal.first_offset <= journal_offset < journal.next_offset:
            raise _not_in_log(self._volume, journal_offset, journal)
        return self._records(journal, journal_offset, bytes_max)

    async def close(self) -> None:
        """See `JournalReader.close`."""

    @staticmethod
    def _records(journal: _Journal, at: int, bytes_max: int) -> StoredRecords:
        """At least one record, then as many as fit."""
        values: list[bytes] = []
        total = 0
        for index in range(at - journal.first_offset, len(journal.values)):
            value = journal.values[index]
            total += len(value)
            if values and total > bytes_max:
                break
            values.append(value)
        return StoredRecords.of(at, values)


def _not_in_log(volume: str, offset: int, journal: _Journal) -> IntegrityError:
    return IntegrityError(
        f"offset {offset} is not in the journal of {volume}, which holds "
        f"[{journal.first_offset}, {journal.next_offset})",
        first_offset=journal.first_offset,
        next_offset=journal.next_offset,
    )
