"""Journal adapters against `journal_cases`. Kafka: a real broker; memory: always."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from conformance.journal_cases import JournalCases, NameCollisionCases
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.journal.port import JournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG


@pytest.fixture
async def volume(store: JournalStore) -> AsyncIterator[str]:
    name = f"v{uuid.uuid4().hex[:12]}"
    await store.admin().create(name)
    yield name
    await store.admin().delete(name)


class TestMemory(JournalCases):
    @pytest.fixture
    def store(self) -> MemoryJournalStore:
        return MemoryJournalStore()


async def _kafka_store(kafka: str, compression: str | None) -> AsyncIterator[KafkaJournalStore]:
    store = KafkaJournalStore(kafka, JOURNAL_CONFIG, compression=compression)
    yield store
    await store.close()
    await asyncio.sleep(0)
    ours = asyncio.current_task()
    assert [task for task in asyncio.all_tasks() if task is not ours] == []


@pytest.mark.kafka
class TestKafka(JournalCases, NameCollisionCases):
    @pytest.fixture
    async def store(self, kafka: str) -> AsyncIterator[KafkaJournalStore]:
        async for store in _kafka_store(kafka, None):
            yield store


@pytest.mark.kafka
class TestKafkaCompressed(JournalCases):
    @pytest.fixture
    async def store(self, kafka: str) -> AsyncIterator[KafkaJournalStore]:
        async for store in _kafka_store(kafka, "zstd"):
            yield store
