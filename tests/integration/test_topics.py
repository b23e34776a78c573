"""Topics are made as they are defined, by a real broker."""

from __future__ import annotations

import pytest

from rephub.core.errors import ConflictError
from rephub.infra.kafka import topics

pytestmark = pytest.mark.kafka


async def test_control_topics_are_made_once_and_as_defined(kafka: str) -> None:
    await topics.create_topics(kafka)
    assert await topics.create_topics(kafka) == []
    assert await topics.differences(kafka) == {}


async def test_a_journal_is_kept_for_ever_and_says_so(kafka: str) -> None:
    assert await topics.create_topics(kafka, [topics.journal_topic_spec("vol-a")]) == ["journal.vol-a"]
    assert await topics.differences(kafka) == {}
    assert not await topics.flushes_each_message(kafka)


async def test_a_topic_with_other_properties_is_named(kafka: str) -> None:
    spec = topics.TopicSpec("journal.odd", topics.JOURNAL_CONFIG | {"retention.ms": "1000"})
    await topics.create_topics(kafka, [spec])
    found = await topics.differences(kafka)
    await _delete(kafka, "journal.odd")
    assert found == {"journal.odd": {"retention.ms": ("1000", "-1")}}


async def test_a_topic_with_more_partitions_is_a_conflict(kafka: str) -> None:
    await topics.create_topics(kafka, [topics.TopicSpec("two", {}, partitions=2)])
    with pytest.raises(ConflictError, match="2 partitions"):
        await topics.create_topics(kafka, [topics.TopicSpec("two", {})])


async def _delete(bootstrap: str, topic: str) -> None:
    admin = topics.AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()
