"""An idempotent producer of one partition: one batch at a time, bounded, and gone when it is told to go.

Why not `AIOKafkaProducer`: it repeats idempotent batches without end, cannot be stopped without a flush, and
wakes four tasks for a batch. The rules of idempotence that matter with a single batch in flight are few
(KIP-98): repeat a batch with its own sequence number; go on only after it was acked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from rephub.core.errors import IndeterminateError, UnavailableError, UsageError
from rephub.core.kafka.batch import COMPRESSIONS, encode_batch
from rephub.core.kafka.link import KafkaAddress, KafkaLink, check_retriable, error_name

ACKS_ALL = -1
SEQUENCES = 1 << 31
"""Sequence numbers wrap here (KIP-98)."""

Payload = bytes | bytearray | memoryview


class PartitionProducer:
    """Appends batches to the only partition of a topic.

    After an IndeterminateError, or a cancelled `append`, it is dead: `abandon()` it.

    Args:
        address: where Kafka is.
        topic: must exist.
        delivery_seconds: from the call of `append` to its failure.
        batch_bytes_max: the caller's limit on a batch, framing included.
        compression: None, gzip, snappy, lz4 or zstd.
    """

    def __init__(
        self,
        address: KafkaAddress,
        topic: str,
        *,
        delivery_seconds: float,
        batch_bytes_max: int,
        compression: str | None = None,
    ) -> None:
        self._topic = topic
        self._link = KafkaLink(address, topic)
        self._delivery_seconds = delivery_seconds
        self._batch_bytes_max = batch_bytes_max
        self._compression = COMPRESSIONS[compression]
        # The batch takes the place of its empty last field.
        self._request = ProduceRequest(None, ACKS_ALL, int(delivery_seconds * 1000), [(topic, [(0, b"")])])
        self._id = (-1, -1)
        self._sequence = 0
        self._busy = False
        self._dead = ""

    async def start(self) -> None:
        """Connect and get a producer id.

        Raises:
            UnavailableError: no broker answers in time.
            NotFoundError: no such topic.
        """
        deadline = asyncio.get_running_loop().time() + self._delivery_seconds
        # The transaction timeout is sent but means nothing without a transactional id.
        request = InitProducerIdRequest(None, 60_000)
        self._id = await self._link.call(request, _producer_id, deadline)

    async def append(self, values: Sequence[Payload]) -> int:
        """Write one batch; returns the offset of the first value once all in-sync replicas have it.

        Raises:
            UnavailableError: no connection was there in time; nothing was sent, may be tried again.
            IndeterminateError: it may have been written or may be yet.
        """
        if self._dead:
            raise IndeterminateError(f"the producer of {self._topic} is dead: {self._dead}")
        if self._busy or self._id[0] < 0:
            raise UsageError("a producer is started once and takes one batch at a time")
        sends = self._link.sends
        self._busy = True
        try:
            base_offset = await self._append(values)
        except BaseException as exc:
            if self._link.sends != sends or self._link.killed:
                self._dead = self._dead or str(exc) or "an append was cancelled"
                if isinstance(exc, UnavailableError):
                    raise IndeterminateError(
                        f"a batch of {self._topic} was sent and never acked: {exc.message}",
                        records=len(values),
                    ) from exc
            raise
        finally:
            self._busy = False
        self._sequence = (self._sequence + len(values)) % SEQUENCES
        return base_offset

    async def _append(self, values: Sequence[Payload]) -> int:
        batch = encode_batch(values, self._id, self._sequence, self._compression)
        if sum(map(len, batch)) > self._batch_bytes_max:
            raise UsageError(f"{len(values)} records do not fit a batch of {self._batch_bytes_max} bytes")
        deadline = asyncio.get_running_loop().time() + self._delivery_seconds
        return await self._link.call(self._request, self._acked, deadline, last_field=batch)

    def _acked(self, response: Any) -> int:
        _, code, base_offset, *_ = response.topics[0][1][0]
        if code:
            check_retriable(code)
            raise IndeterminateError(
                f"Kafka refused a batch of {self._topic}: {error_name(code)}", kafka_error=code
            )
        return int(base_offset)

    def abandon(self) -> None:
        """Let go at once: nothing is sent from here on; an `append` under way fails."""
        self._dead = self._dead or "abandoned"
        self._link.kill()

    async def close(self) -> None:
        """Let go after the last `append` returned."""
        self.abandon()
        await asyncio.sleep(0)  # lets the connection's reader end


def _producer_id(response: Any) -> tuple[int, int]:
    if response.error_code:
        check_retriable(response.error_code)
        raise UnavailableError(f"Kafka gives no producer id: {error_name(response.error_code)}")
    return response.producer_id, response.producer_epoch
