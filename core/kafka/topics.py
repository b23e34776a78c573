"""Makes, trims and deletes topics of one partition, and waits until the cluster knows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka.protocol.admin import CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest
from aiokafka.protocol.metadata import MetadataRequest

from rephub.core.errors import ConflictError, IntegrityError, UnavailableError
from rephub.core.kafka.link import (
    UNKNOWN_TOPIC,
    KafkaAddress,
    KafkaLink,
    TryAgainError,
    check_retriable,
    error_name,
)

OFFSET_OUT_OF_RANGE = 1
INVALID_TOPIC = 17
TOPIC_EXISTS = 36


class TopicAdmin:
    """Makes, trims and deletes topics.

    Args:
        address: where Kafka is.
        request_seconds: deadline of each method.
    """

    def __init__(self, address: KafkaAddress, *, request_seconds: float) -> None:
        self._address = address
        self._request_seconds = request_seconds
        self._link = KafkaLink(address, None)

    async def create(self, topic: str, config: Mapping[str, Any], replication_factor: int) -> bool:
        """Make a topic of one partition and wait for its leader; True if it was not there.

        Raises:
            ConflictError: Kafka refuses it (name, replication factor, a setting), or it is there with more
                than one partition.
            UnavailableError: no broker answers in time.
        """
        settings = [(key, str(value)) for key, value in config.items()]
        request = CreateTopicsRequest(
            [(topic, 1, replication_factor, [], settings)],
            self._timeout_ms(),
            False,  # noqa: FBT003 (a protocol field: validate only)
        )

        def handle(response: Any) -> bool:
            _, code, *message = response.topic_errors[0]
            if code in (0, TOPIC_EXISTS):
                return not code
            check_retriable(code)
            hint = "'.' and '_' are one to Kafka: choose another name" if code == INVALID_TOPIC else ""
            raise ConflictError(
                f"Kafka refuses the topic {topic}: {(message and message[0]) or error_name(code)}", hint=hint
            )

        deadline = self._deadline()
        created = await self._link.call(request, handle, deadline)
        partitions = await self._link.call(_metadata(topic), _partitions_with_leader, deadline)
        if partitions != 1:
            raise ConflictError(f"the topic {topic} is there and has {partitions} partitions, not one")
        return created

    async def delete_records(self, topic: str, next_offset: int) -> None:
        """Free everything below `next_offset`.

        Raises:
            IntegrityError: it is beyond the head.
            NotFoundError: no such topic.
            UnavailableError: no broker answers in time.
        """

        def handle(response: Any) -> None:
            code = response.topics[0][1][0][2]
            if code == OFFSET_OUT_OF_RANGE:
                raise IntegrityError(f"offset {next_offset} is beyond the head of {topic}")
            if code:
                check_retriable(code)
                raise UnavailableError(f"Kafka does not delete records of {topic}: {error_name(code)}")

        link = KafkaLink(self._address, topic)
        try:
            request = DeleteRecordsRequest([(topic, [(0, next_offset)])], self._timeout_ms())
            await link.call(request, handle, self._deadline())
        finally:
            link.kill()

    async def delete(self, topic: str) -> None:
        """Delete a topic and wait until it is gone; not an error if it is not there.

        Raises:
            UnavailableError: no broker answers in time, or Kafka refuses.
        """

        def handle(response: Any) -> None:
            code = response.topic_error_codes[0][1]
            if code not in (0, UNKNOWN_TOPIC):
                check_retriable(code)
                raise UnavailableError(f"Kafka does not delete {topic}: {error_name(code)}")

        deadline = self._deadline()
        await self._link.call(DeleteTopicsRequest([topic], self._timeout_ms()), handle, deadline)
        await self._link.call(_metadata(topic), _gone, deadline)

    async def close(self) -> None:
        """Let go."""
        self._link.kill()
        await asyncio.sleep(0)  # lets the connection's reader end

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._request_seconds

    def _timeout_ms(self) -> int:
        return int(self._request_seconds * 1000)


def _metadata(topic: str) -> MetadataRequest:
    return MetadataRequest([topic], False)  # noqa: FBT003 (a protocol field: no automatic creation)


def _partitions_with_leader(response: Any) -> int:
    code, _, _, partitions = response.topics[0]
    if code or not partitions or any(partition[0] for partition in partitions):
        raise TryAgainError("the topic has no leader yet")
    return len(partitions)


def _gone(response: Any) -> None:
    if response.topics[0][0] != UNKNOWN_TOPIC:
        raise TryAgainError("the topic is not gone yet")
