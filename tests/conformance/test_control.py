"""Control log adapters against `control_cases`. Kafka: a real broker; memory: always."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from conformance.control_cases import ControlCases
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import NotFoundError, UnavailableError
from rephub.core.kafka.link import KafkaAddress
from rephub.core.kafka.topics import TopicAdmin


class TestMemory(ControlCases):
    @pytest.fixture
    def topic(self) -> str:
        return "rephub.events"

    @pytest.fixture
    def log(self) -> MemoryControlLog:
        return MemoryControlLog()


@pytest.mark.kafka
class TestKafka(ControlCases):
    @pytest.fixture
    async def topic(self, kafka: str) -> AsyncIterator[str]:
        name = f"control-{uuid.uuid4().hex[:12]}"
        admin = TopicAdmin(KafkaAddress(kafka), request_seconds=20)
        await admin.create(name, {"message.timestamp.type": "LogAppendTime"}, 1)
        yield name
        await admin.delete(name)
        await admin.close()

    @pytest.fixture
    async def log(self, kafka: str, topic: str) -> AsyncIterator[KafkaControlLog]:
        log = KafkaControlLog(kafka, topics=[topic])
        await log.start()
        yield log
        await log.close()

    async def test_missing_topic(self, kafka: str) -> None:
        log = KafkaControlLog(kafka, topics=["nobody-made-this"])
        with pytest.raises(NotFoundError):
            await log.start()
        await log.close()

    async def test_wrong_address(self) -> None:
        log = KafkaControlLog("127.0.0.1:1", request_seconds=0.5)
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            await log.start()
        await log.close()
