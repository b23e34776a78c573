"""Journal records by offset, for views and for applying: decoded, crc-checked, with a cache bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from rephub.core.codec import decode_journal
from rephub.core.codec.runs import Event, decode
from rephub.core.errors import IntegrityError
from rephub.core.journal.port import JournalReader, StoredRecords
from rephub.projections.journal_fold import FoldState
from rephub.schemas.journal import SyncData, Write

CACHE_BYTES_MAX = 32 << 20
"""Of one volume; 27 volumes make 864 MiB at most."""

NEAR_OFFSETS = 256
"""Events that are not farther apart likely lie in one batch of the log, which comes as a whole."""
AHEAD_BYTES = 128 << 10
"""What comes along with one event: its batch, whatever that holds, and a little more."""
FETCHES_MAX = 8
"""Under way for one read of a view."""


def _identity(epoch: int, seq: int, crc: str) -> str:
    return f"{epoch}/{seq}/{crc}"


class JournalSource:
    """Reads one journal at any offset.

    Args:
        reader: started; owned by the caller.
        cache_bytes_max: of raw values.
    """

    def __init__(self, reader: JournalReader, cache_bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._reader = reader
        self._cache_bytes_max = cache_bytes_max
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._under_way: dict[int, asyncio.Task[bytes]] = {}
        self.cached_bytes = 0
        self.fetches = 0

    async def data(self, journal_offset: int) -> memoryview:
        """The data of a Write or SyncData; its crc is checked at each call.

        Raises:
            IntegrityError: not in the log any more, damaged, or without data.
            UnavailableError: no broker answers in time.
        """
        value = await self._value(journal_offset)
        record = decode_journal(value)
        if not isinstance(record, (Write, SyncData)):
            raise IntegrityError(f"the journal holds a {type(record).__name__} at offset {journal_offset}")
        return memoryview(record.data)

    async def data_of(self, journal_offsets: Iterable[int]) -> dict[int, memoryview]:
        """As `data`, of several events; those that lie near each other come with one fetch. Raises: as `data`."""
        offsets = sorted(set(journal_offsets))
        if len(offsets) == 1:
            return {offsets[0]: await self.data(offsets[0])}
        found: dict[int, memoryview] = {}
        begins = [
            number
            for number, offset in enumerate(offsets)
            if not number or offset - offsets[number - 1] > NEAR_OFFSETS
        ]
        runs = [
            offsets[first:next_] for first, next_ in zip(begins, [*begins[1:], len(offsets)], strict=True)
        ]
        gate = asyncio.Semaphore(FETCHES_MAX)

        async def read(run: list[int]) -> None:
            async with gate:
                for offset in run:
                    found[offset] = await self.data(offset)

        await asyncio.gather(*map(read, runs))
        return found

    async def events(self, first_offset: int, bytes_max: int) -> list[Event]:
        """Decoded records from an offset on; does not fill the cache.

        Raises:
            IntegrityError: the offset is not in the log.
            UnavailableError: no broker answers in time.
        """
        return [decode(record) for record in await self.records(first_offset, bytes_max)]

    async def records(self, first_offset: int, bytes_max: int) -> StoredRecords:
        """As `events`, not decoded."""
        self.fetches += 1
        return await self._reader.fetch(first_offset, bytes_max)

    async def holds(self, state: FoldState) -> bool:
        """Whether the record that a fold took in last is the one that is there; True if the fold could not read it.

        Raises:
            UnavailableError: no broker answers in time.
        """
        if not state.last_crc:
            return True
        try:
            identity = await self.identity_at(state.last_offset)
        except IntegrityError:
            return False
        return identity == _identity(state.last_epoch, state.last_seq, state.last_crc)

    async def identity_at(self, journal_offset: int) -> str:
        """What the journal holds at a point: the same offset with another identity is another journal.

        Raises:
            IntegrityError: not in the log.
            UnavailableError: no broker answers in time.
        """
        ((_, record), *_rest) = await self.events(journal_offset, 1)
        if isinstance(record, IntegrityError):
            return record.message
        return _identity(record.epoch, record.seq, record.crc32c.hex())

    async def _value(self, journal_offset: int) -> bytes:
        value = self._cache.get(journal_offset)
        if value is not None:
            self._cache.move_to_end(journal_offset)
            return value
        task = self._under_way.get(journal_offset)
        if task is None:
            task = asyncio.create_task(self._fetch(journal_offset))
            self._under_way[journal_offset] = task
            task.add_done_callback(lambda done: self._ended(journal_offset, done))
        # Not by way of the cache: what others fetch meanwhile may have driven it out.
        return await asyncio.shield(task)

    def _ended(self, journal_offset: int, task: asyncio.Task[bytes]) -> None:
        self._under_way.pop(journal_offset, None)
        if not task.cancelled():
            task.exception()  # seen; whoever still waits gets it too

    async def _fetch(self, journal_offset: int) -> bytes:
        self.fetches += 1
        records = await self._reader.fetch(journal_offset, AHEAD_BYTES)
        for record in reversed(records):
            if record.journal_offset in self._cache:
                self._cache.move_to_end(record.journal_offset)
            else:
                self.cached_bytes += len(record.value)
                # Copied: a view would hold all that was fetched with it.
                self._cache[record.journal_offset] = bytes(record.value)
        value = self._cache[journal_offset]
        while self.cached_bytes > self._cache_bytes_max and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self.cached_bytes -= len(oldest)
        return value
