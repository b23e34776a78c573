"""The control log in Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rephub.core.codec import ControlRecord, decode_control, encode_control
from rephub.core.control.port import Entry
from rephub.core.errors import IntegrityError
from rephub.core.journal.port import StoredRecords
from rephub.core.kafka.link import KafkaAddress
from rephub.core.kafka.producer import PartitionProducer
from rephub.core.kafka.reader import PartitionReader
from rephub.core.names import COMMANDS_TOPIC, EVENTS_TOPIC

DELIVERY_SECONDS = 10.0
REQUEST_SECONDS = 10.0
"""Deadlines of an append and of every other request; a broker restart fits in."""

RECORD_BYTES_MAX = 1 << 20
"""Framing included; Kafka's own default limit. A host with a thousand volumes announces in 100 KiB."""

READ_BYTES_MAX = 4 << 20
"""One answer while reading a range."""


class KafkaControlLog:
    """A `ControlLog` on a Kafka cluster; the topics must exist.

    Args:
        bootstrap: `host:port[,host:port…]`.
        topics: that `start` looks for.
        delivery_seconds: deadline of an append.
        request_seconds: deadline of every other request.
        security: see `KafkaAddress`.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        topics: Sequence[str] = (COMMANDS_TOPIC, EVENTS_TOPIC),
        delivery_seconds: float = DELIVERY_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        self.undecodable = 0
        self._address = KafkaAddress(bootstrap, security or {})
        self._topics = topics
        self._delivery_seconds = delivery_seconds
        self._request_seconds = request_seconds
        self._readers: dict[str, PartitionReader] = {}
        self._producers: dict[str, PartitionProducer] = {}
        self._appending: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """See `ControlLog.start`."""
        for topic in self._topics:
            await self._reader(topic).start()

    async def append(self, topic: str, record: ControlRecord) -> int:
        """See `ControlLog.append`. Concurrent calls are written one after the other."""
        return await self.append_raw(topic, encode_control(record))

    async def append_raw(self, topic: str, *values: bytes) -> int:
        """Append bytes as they are, as one batch; returns the offset of the first."""
        async with self._appending.setdefault(topic, asyncio.Lock()):
            producer = self._producers.get(topic)
            if producer is None:
                producer = await self._new_producer(topic)
            try:
                return await producer.append(values)
            except BaseException:
                # A later append must not be held up by what became of this one.
                self._producers.pop(topic, None)
                producer.abandon()
                raise

    async def next_offset(self, topic: str) -> int:
        """See `ControlLog.next_offset`."""
        return await self._reader(topic).next_offset()

    async def offset_at(self, topic: str, at: int) -> int:
        """See `PartitionReader.offset_at`."""
        return await self._reader(topic).offset_at(at)

    async def read(self, topic: str, first_offset: int, next_offset: int) -> list[Entry]:
        """See `ControlLog.read`."""
        entries: list[Entry] = []
        at = first_offset
        while at < next_offset:
            records = await self._reader(topic).fetch(at, READ_BYTES_MAX)
            at = records.last_offset + 1
            entries += self._decode(records.upto(next_offset - 1))
        return entries

    async def tail(self, topic: str, first_offset: int) -> AsyncIterator[list[Entry]]:
        """See `ControlLog.tail`."""
        async for records in self._reader(topic).tail(first_offset):
            entries = self._decode(records)
            if entries:
                yield entries

    async def close(self) -> None:
        """See `ControlLog.close`."""
        for producer in self._producers.values():
            await producer.close()
        for reader in self._readers.values():
            await reader.close()
        self._producers.clear()
        self._readers.clear()

    def _reader(self, topic: str) -> PartitionReader:
        if topic not in self._readers:
            self._readers[topic] = PartitionReader(
                self._address, topic, request_seconds=self._request_seconds
            )
        return self._readers[topic]

    async def _new_producer(self, topic: str) -> PartitionProducer:
        producer = PartitionProducer(
            self._address, topic, delivery_seconds=self._delivery_seconds, batch_bytes_max=RECORD_BYTES_MAX
        )
        try:
            await producer.start()
        except BaseException:
            producer.abandon()
            raise
        self._producers[topic] = producer
        return producer

    def _decode(self, records: StoredRecords) -> list[Entry]:
        entries: list[Entry] = []
        for record in records:
            try:
                entries.append((record.journal_offset, decode_control(bytes(record.value))))
            except IntegrityError:
                self.undecodable += 1
        return entries
