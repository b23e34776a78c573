"""Journals in Kafka: topic `journal.<volume>`, one partition."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rephub.core.errors import IndeterminateError, UnavailableError
from rephub.core.gathering import Gathering
from rephub.core.journal.port import (
    APPEND_BYTES_MAX,
    FETCH_BYTES_MAX,
    Payload,
    StoredRecords,
    check_fits,
)
from rephub.core.kafka.link import KafkaAddress
from rephub.core.kafka.producer import PartitionProducer
from rephub.core.kafka.reader import PartitionReader
from rephub.core.kafka.topics import TopicAdmin
from rephub.core.names import journal_topic

DELIVERY_SECONDS = 10.0
"""After so long without an ack a batch's outcome is unknown: a broker restart fits in, a guest does not wait
for it (the agent answers from its buffer meanwhile)."""

GATHER_SECONDS = 0.03
"""By so much a projector may read later what follows other records, and three times as much where many follow theirs in
one process: a view of the newest point opens later by as much."""

REQUEST_SECONDS = 10.0
"""Deadline of every other request."""


class KafkaJournalStore:
    """A `JournalStore` on a Kafka cluster.

    Args:
        bootstrap: `host:port[,host:port…]`.
        topic_config: settings of a new journal topic (`infra/kafka/topics.py`).
        replication_factor: of a new journal topic.
        delivery_seconds: deadline of an append.
        request_seconds: deadline of every other request.
        compression: of batches: None, gzip, snappy, lz4 or zstd.
        security: see `KafkaAddress`.
    """

    def __init__(
        self,
        bootstrap: str,
        topic_config: Mapping[str, Any],
        replication_factor: int = 1,
        *,
        delivery_seconds: float = DELIVERY_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
        compression: str | None = None,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        self._address = KafkaAddress(bootstrap, security or {})
        self._topic_config = topic_config
        self._replication_factor = replication_factor
        self._delivery_seconds = delivery_seconds
        self._request_seconds = request_seconds
        self._compression = compression
        self._admin: KafkaJournalAdmin | None = None
        self._gathering = Gathering(GATHER_SECONDS)

    def writer(self, volume: str) -> KafkaJournalWriter:
        """See `JournalStore.writer`."""
        producer = PartitionProducer(
            self._address,
            journal_topic(volume),
            delivery_seconds=self._delivery_seconds,
            batch_bytes_max=APPEND_BYTES_MAX,
            compression=self._compression,
        )
        return KafkaJournalWriter(producer)

    def reader(self, volume: str) -> KafkaJournalReader:
        """See `JournalStore.reader`."""
        return KafkaJournalReader(
            PartitionReader(self._address, journal_topic(volume), request_seconds=self._request_seconds),
            self._gathering,
        )

    def admin(self) -> KafkaJournalAdmin:
        """See `JournalStore.admin`."""
        if self._admin is None:
            self._admin = KafkaJournalAdmin(
                TopicAdmin(self._address, request_seconds=self._request_seconds),
                self._topic_config,
                self._replication_factor,
            )
        return self._admin

    async def close(self) -> None:
        """See `JournalStore.close`."""
        if self._admin is not None:
            await self._admin.close()
            self._admin = None


class KafkaJournalWriter:
    """A `JournalWriter`: acks=all, idempotent, one batch in flight."""

    def __init__(self, producer: PartitionProducer) -> None:
        self._producer = producer

    async def start(self) -> None:
        """See `JournalWriter.start`."""
        await self._producer.start()

    async def append(self, values: Sequence[Payload]) -> int:
        """See `JournalWriter.append`."""
        check_fits(values)
        try:
            return await self._producer.append(values)
        except UnavailableError as exc:
            # Nothing was sent, but past its deadline a capture must let go all the same.
            self._producer.abandon()
            raise IndeterminateError(f"a batch was not delivered in time: {exc.message}") from exc

    async def abandon(self) -> None:
        """See `JournalWriter.abandon`."""
        self._producer.abandon()

    async def close(self) -> None:
        """See `JournalWriter.close`."""
        await self._producer.close()


class KafkaJournalReader:
    """A `JournalReader`."""

    def __init__(self, reader: PartitionReader, gathering: Gathering) -> None:
        self._reader = reader
        self._gathering = gathering

    async def start(self) -> None:
        """See `JournalReader.start`."""
        await self._reader.start()

    async def first_offset(self) -> int:
        """See `JournalReader.first_offset`."""
        return await self._reader.first_offset()

    async def next_offset(self) -> int:
        """See `JournalReader.next_offset`."""
        return await self._reader.next_offset()

    def tail(self, first_offset: int) -> AsyncIterator[StoredRecords]:
        """See `JournalReader.tail`."""
        return self._reader.tail(first_offset, gathering=self._gathering)

    async def fetch(self, journal_offset: int, bytes_max: int = FETCH_BYTES_MAX) -> StoredRecords:
        """See `JournalReader.fetch`."""
        return await self._reader.fetch(journal_offset, bytes_max)

    async def close(self) -> None:
        """See `JournalReader.close`."""
        await self._reader.close()


class KafkaJournalAdmin:
    """A `JournalAdmin`."""

    def __init__(self, admin: TopicAdmin, topic_config: Mapping[str, Any], replication_factor: int) -> None:
        self._admin = admin
        self._topic_config = topic_config
        self._replication_factor = replication_factor

    async def create(self, volume: str) -> bool:
        """See `JournalAdmin.create`."""
        return await self._admin.create(journal_topic(volume), self._topic_config, self._replication_factor)

    async def delete_records(self, volume: str, next_offset: int) -> None:
        """See `JournalAdmin.delete_records`."""
        await self._admin.delete_records(journal_topic(volume), next_offset)

    async def delete(self, volume: str) -> None:
        """See `JournalAdmin.delete`."""
        await self._admin.delete(journal_topic(volume))

    async def close(self) -> None:
        """Let go."""
        await self._admin.close()
