"""Somebody who writes into a journal beside its agent, with a Kafka client that is not ours."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiokafka import AIOKafkaProducer

from rephub.core.codec import decode_journal, encode_journal
from rephub.core.errors import IntegrityError
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.names import journal_topic
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.schemas import journal as jr


class Intruder:
    """Writes records of its own choice.

    Args:
        bootstrap: where Kafka is.
        volume: whose journal.
    """

    def __init__(self, bootstrap: str, volume: str) -> None:
        self._bootstrap, self._volume = bootstrap, volume

    async def put(self, *values: bytes | None, **options: Any) -> int:
        """Append records as one batch; returns the offset of the first."""
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all", **options)
        await producer.start()
        try:
            batch = producer.create_batch()
            for value in values:
                assert batch.append(key=None, value=value, timestamp=None)
            sent = await producer.send_batch(batch, journal_topic(self._volume), partition=0)
            return int((await sent).offset)
        finally:
            await producer.stop()

    async def newest(self) -> jr.Record:
        """The last record in the journal that can be read."""
        store = KafkaJournalStore(self._bootstrap, JOURNAL_CONFIG)
        reader = store.reader(self._volume)
        await reader.start()
        try:
            at = await reader.next_offset() - 1
            while True:
                try:
                    return decode_journal((await reader.fetch(at))[0].value)
                except IntegrityError:
                    at -= 1
        finally:
            await reader.close()
            await store.close()


def header(record: jr.Record, *, seqs: int = 1) -> dict[str, Any]:
    """Fields of an event that comes `seqs` after a record of the same attachment."""
    return {
        "crc32c": bytes(4),
        "epoch": record.epoch,
        "attachment_id": record.attachment_id,
        "seq": record.seq + seqs,
        "captured_at": time.time_ns() // 1000,
    }


def write(record: jr.Record, start: int, data: bytes, *, seqs: int = 1) -> bytes:
    """A `Write` in the name of the record's attachment."""
    return encode_journal(jr.Write(**header(record, seqs=seqs), start=start, flags=0, data=data))


def takeover(record: jr.Record, size_bytes: int, epoch: int = 0) -> tuple[bytes, jr.EpochStarted]:
    """An `EpochStarted` that follows the record's epoch, or of another epoch; encoded, and as it is."""
    started = jr.EpochStarted(
        **header(record)
        | {"epoch": epoch or record.epoch + 1, "attachment_id": uuid.uuid4().bytes, "seq": 0},
        prev_epoch=(epoch or record.epoch + 1) - 1,
        reason="another agent",
        size_bytes=size_bytes,
    )
    return encode_journal(started), started
