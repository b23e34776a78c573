"""Reads the only partition of a topic, by offset; no group, no commit, no reset.

Why not `AIOKafkaConsumer`: its fetcher is one more loop between us and the answer, a seek for a single record
throws away what was prefetched, and it makes a `ConsumerRecord` of fourteen fields from each record.
Kafka's crc is not looked at: every record carries its own (`core/codec`).

A broker that lost the end of its log gives the lost offsets to what comes next. It was restarted for that, or another
one leads: so the first answer on each connection counts only once the newest record that this reader has given out was
found unchanged. All before it is unchanged then, because a log loses its end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from rephub.core.errors import IntegrityError, UnavailableError
from rephub.core.gathering import Gathering
from rephub.core.journal.port import StoredRecord, StoredRecords
from rephub.core.kafka.batch import decode_batches
from rephub.core.kafka.link import KafkaAddress, KafkaLink, check_retriable, error_name

TAIL_BYTES_MAX = 4 << 20
"""One answer of a tail; a tail holds at most two: the one that is worked on and the next."""

TAIL_WAIT_SECONDS = 1.0
"""How long the broker holds a fetch at the head; it answers at once when a record comes."""

GATHER_BYTES = TAIL_BYTES_MAX // 2
"""While records keep coming, the broker answers a tail that gathers once it has so many bytes, or after the time that its
caller allows."""

TAIL_MISSING_SECONDS = 15.0
"""A tail outlives a broker that does not know the topic for so long, as one might that has just started."""

EARLIEST, LATEST = -2, -1
OFFSET_OUT_OF_RANGE = 1
READ_UNCOMMITTED = 0
"""There are no transactions: this reads to the high watermark."""


NO_RECORDS = StoredRecords.of(0, ())


class _Wait(NamedTuple):
    """The broker answers once it has so many bytes, or after so long."""

    seconds: float
    bytes_min: int


NOW = _Wait(0.0, 1)
AT_HEAD = _Wait(TAIL_WAIT_SECONDS, 1)


class _OutOfRangeError(Exception):
    """The broker does not have the offset."""


class PartitionReader:
    """Offsets, random access and tails of one partition.

    Args:
        address: where Kafka is.
        topic: must exist.
        request_seconds: deadline of everything but `tail`.
    """

    def __init__(self, address: KafkaAddress, topic: str, *, request_seconds: float) -> None:
        self._address = address
        self._topic = topic
        self._request_seconds = request_seconds
        self._link = KafkaLink(address, topic)
        self._newest: StoredRecord | None = None
        """Of those given out."""
        self._checked: dict[KafkaLink, int] = {}
        """The connection of each link on which `_newest` was found, or that is as old as it."""

    async def start(self) -> None:
        """Connect. Raises UnavailableError or NotFoundError."""
        await self.first_offset()

    async def first_offset(self) -> int:
        """The log start. Raises UnavailableError or NotFoundError."""
        return await self._offset(EARLIEST)

    async def next_offset(self) -> int:
        """The high watermark. Raises UnavailableError or NotFoundError."""
        return await self._offset(LATEST)

    async def offset_at(self, at: int) -> int:
        """The first record that Kafka took at or after a time, microseconds since the Unix epoch; none: the head.

        Raises UnavailableError or NotFoundError.
        """
        found = await self._offset(max(0, at // 1000))
        return found if found >= 0 else await self.next_offset()

    async def fetch(self, offset: int, bytes_max: int) -> StoredRecords:
        """The record at the offset and those that came along.

        Kafka answers with whole batches from the one that holds the offset, so a record deep in a batch costs
        the batch; what lies before the record is dropped.

        Raises:
            IntegrityError: the offset is not in the log.
            UnavailableError: no broker answers in time.
        """
        deadline = self._deadline()
        while True:
            try:
                records = await self._checked_fetch(self._link, offset, bytes_max, NOW, deadline)
            except _OutOfRangeError:
                raise await self._not_in_log(offset) from None
            if records:
                return records
            if offset >= await self.next_offset():
                raise await self._not_in_log(offset)

    async def tail(
        self, first_offset: int, bytes_max: int = TAIL_BYTES_MAX, *, gathering: Gathering | None = None
    ) -> AsyncIterator[StoredRecords]:
        """Records from `first_offset` on, for ever; the next answer is asked for while one is worked on.

        With `gathering`, records that follow others may come so much later, more of them at once: each answer costs both
        sides about a millisecond of CPU, whatever is in it.

        Outages are waited for; the link says in the log when they begin and end.

        Raises:
            IntegrityError: the offset is not in the log.
            NotFoundError: there is no such topic any more.
        """
        link = KafkaLink(self._address, self._topic, TAIL_MISSING_SECONDS)

        def ask(offset: int, *, flowing: bool = False) -> asyncio.Task[StoredRecords]:
            wait = AT_HEAD
            if flowing and gathering is not None:
                seconds = gathering.seconds(self, asyncio.get_running_loop().time())
                wait = _Wait(seconds, GATHER_BYTES)
            return asyncio.create_task(
                self._checked_fetch(link, offset, bytes_max, wait, math.inf), name=f"tail {self._topic}"
            )

        at = first_offset
        answer = ask(at)
        try:
            while True:
                records = await answer
                if records:
                    at = records.last_offset + 1
                answer = ask(at, flowing=bool(records))
                if records:
                    yield records
        except _OutOfRangeError:
            raise await self._not_in_log(at) from None
        finally:
            link.kill()
            self._checked.pop(link, None)
            answer.cancel()
            await asyncio.wait({answer})
            if not answer.cancelled():
                answer.exception()  # seen: nobody else will ask

    async def close(self) -> None:
        """Let go."""
        self._link.kill()
        await asyncio.sleep(0)  # lets the connection's reader end

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._request_seconds

    async def _offset(self, which: int, link: KafkaLink | None = None, deadline: float | None = None) -> int:
        def handle(response: Any) -> int:
            _, code, _, offset = response.topics[0][1][0]
            if code:
                check_retriable(code)
                raise UnavailableError(f"Kafka gives no offset of {self._topic}: {error_name(code)}")
            return int(offset)

        request = OffsetRequest(-1, READ_UNCOMMITTED, [(self._topic, [(0, which)])])
        return await (link or self._link).call(request, handle, deadline or self._deadline())

    async def _checked_fetch(
        self, link: KafkaLink, offset: int, bytes_max: int, wait: _Wait, deadline: float
    ) -> StoredRecords:
        """One answer of the log that was read before. Raises IntegrityError: it is not; _OutOfRangeError."""
        while True:
            records = await self._fetch(link, offset, bytes_max, wait, deadline)
            connection, newest = link.connections, self._newest
            if newest is not None and self._checked.get(link) != connection:
                await self._check_still_there(link, newest, deadline)
            if link.connections == connection:
                break
        self._checked[link] = connection
        if records and (self._newest is None or records.last_offset > self._newest.journal_offset):
            self._newest = StoredRecord(records.last_offset, bytes(records[-1].value))
        return records

    async def _check_still_there(self, link: KafkaLink, known: StoredRecord, deadline: float) -> None:
        """Raise IntegrityError unless the log holds the record, or it was deleted from its start."""
        offset = known.journal_offset
        while True:
            try:
                found = await self._fetch(link, offset, 1, NOW, deadline)
            except _OutOfRangeError:
                found = NO_RECORDS
            if found:
                break
            first_offset = await self._offset(EARLIEST, link, deadline)
            if offset < first_offset:
                return
            next_offset = await self._offset(LATEST, link, deadline)
            if offset >= next_offset:
                raise IntegrityError(
                    f"{self._topic} lost its end: it holds [{first_offset}, {next_offset}), and {offset} was read before",
                    first_offset=first_offset,
                    next_offset=next_offset,
                )
        if found[0] != known:
            raise IntegrityError(
                f"{self._topic} lost its end: at offset {offset} is another record now than was read before",
                journal_offset=offset,
            )

    async def _fetch(
        self, link: KafkaLink, offset: int, bytes_max: int, wait: _Wait, deadline: float
    ) -> StoredRecords:
        """One answer; empty if there is nothing at the offset yet. Raises _OutOfRangeError."""

        def handle(response: Any) -> StoredRecords:
            _, code, *_, message_set = response.topics[0][1][0]
            if code == OFFSET_OUT_OF_RANGE:
                raise _OutOfRangeError
            if code:
                check_retriable(code)
                raise UnavailableError(f"Kafka gives no records of {self._topic}: {error_name(code)}")
            return parse(self._topic, message_set, offset)

        request = FetchRequest(
            int(wait.seconds * 1000),
            wait.bytes_min,
            bytes_max,
            READ_UNCOMMITTED,
            [(self._topic, [(0, offset, bytes_max)])],
        )
        return await link.call(request, handle, deadline)

    async def _not_in_log(self, offset: int) -> IntegrityError:
        first_offset, next_offset = await self.first_offset(), await self.next_offset()
        return IntegrityError(
            f"offset {offset} is not in {self._topic}, which holds [{first_offset}, {next_offset})",
            first_offset=first_offset,
            next_offset=next_offset,
        )


def parse(topic: str, message_set: bytes | memoryview, offset: int) -> StoredRecords:
    """The whole records of a fetch answer from `offset` on.

    Raises:
        IntegrityError: the framing is broken, or an offset is missing.
    """
    try:
        offsets, values = decode_batches(message_set)
    except IntegrityError as exc:
        raise IntegrityError(
            f"a record batch of {topic} near offset {offset} is broken: {exc.message}"
        ) from exc
    first = int(offsets.searchsorted(offset))
    offsets = offsets[first:]
    if len(offsets) and (offsets[0] != offset or (np.diff(offsets) != 1).any()):
        raise IntegrityError(
            f"{topic} has holes between offsets {offset} and {offsets[-1]}", found=int(offsets[0])
        )
    return StoredRecords(offset, values.buffer, values.starts[first:], values.ends[first:])
