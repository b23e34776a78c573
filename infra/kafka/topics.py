"""Every topic that RepHub makes, and with which properties. Topics are made explicitly; auto-creation is off.

`rephub.commands` and `rephub.events` must exist before the hub starts: Faust waits for ever for a topic that is
missing; `python -m rephub.infra.kafka.topics HOST:PORT` makes them for a site whose stack is not started by `rephub up`.
A journal is made with `journal_topic_spec` when its volume is protected.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from rephub.core.errors import ConflictError, UnavailableError
from rephub.core.names import (
    ALERTS_TOPIC,
    COMMANDS_TOPIC,
    EVENTS_TOPIC,
    JOURNAL_PREFIX,
    MONITOR_APP,
    MONITOR_TABLES,
    STATS_TOPIC,
    journal_topic,
)
from rephub.infra.kafka import reach

SEGMENT_BYTES = 128 << 20
"""Kafka frees whole segments, so a journal holds up to this much more than its window."""

MESSAGE_BYTES_MAX = 4 << 20
"""A record batch; an event holds at most 1 MiB of data, a batch at most 2 MiB."""

REPLICAS = 3
MIN_IN_SYNC = 2
"""Where there are REPLICAS brokers; else 1 and 1."""

STATS_SECONDS = 24 * 3600
STATS_BYTES = 1 << 30
"""Samples are kept for a day, or less if there are more: some 200 bytes a second for each volume and daemon."""

CREATE_SECONDS_MAX = 20.0

HINT = "look into the broker's log"

_KEPT = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": str(MESSAGE_BYTES_MAX),
}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic: always one partition, because its offsets are a clock."""

    name: str
    config: dict[str, str] = field(default_factory=dict)
    partitions: int = 1


CONTROL_TOPICS = (
    TopicSpec(COMMANDS_TOPIC, {**_KEPT, "message.timestamp.type": "LogAppendTime"}),
    TopicSpec(EVENTS_TOPIC, {**_KEPT, "message.timestamp.type": "LogAppendTime"}),
    TopicSpec(ALERTS_TOPIC, {**_KEPT, "message.timestamp.type": "LogAppendTime"}),
    TopicSpec(
        STATS_TOPIC,
        {
            **_KEPT,
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(STATS_SECONDS * 1000),
            "retention.bytes": str(STATS_BYTES),
            "segment.bytes": str(STATS_BYTES // 16),
        },
    ),
)
"""All but samples are kept for ever: the catalogue is the fold of all events, what is raised that of all alerts."""

TABLE_CONFIG = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),
    "max.message.bytes": str(MESSAGE_BYTES_MAX),
}
"""Of the changelog of a Faust table."""

MONITOR_TOPICS = tuple(
    TopicSpec(f"{MONITOR_APP}-{table}-changelog", dict(TABLE_CONFIG)) for table in MONITOR_TABLES
)

JOURNAL_CONFIG = {
    **_KEPT,
    "message.timestamp.type": "LogAppendTime",
    "segment.bytes": str(SEGMENT_BYTES),
}
"""Retention is not time: the projector deletes what it has applied."""


def journal_topic_spec(volume: str) -> TopicSpec:
    """The journal of a volume."""
    return TopicSpec(journal_topic(volume), dict(JOURNAL_CONFIG))


def replication(brokers: int) -> tuple[int, int]:
    """Replicas and minimal in-sync replicas for a cluster of so many brokers."""
    return (REPLICAS, MIN_IN_SYNC) if brokers >= REPLICAS else (1, 1)


async def create_topics(bootstrap: str, specs: Sequence[TopicSpec] = CONTROL_TOPICS) -> list[str]:
    """Make the topics that are not there; those that are stay as they are.

    Returns:
        Names of the topics that were made.

    Raises:
        UnavailableError: no broker answers in time, or it refuses.
        ConflictError: a topic is there with another number of partitions.
    """
    cluster = await reach.ask(bootstrap)
    replicas, in_sync = replication(cluster.brokers)
    new = [
        NewTopic(
            spec.name,
            spec.partitions,
            replicas,
            topic_configs={**spec.config, "min.insync.replicas": str(in_sync)},
        )
        for spec in specs
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="rephub-topics")
    try:
        async with asyncio.timeout(CREATE_SECONDS_MAX):
            await admin.start()
            made = _made(await admin.create_topics(new, timeout_ms=int(CREATE_SECONDS_MAX * 1000)))
            await _wait_listed(admin, specs)
    except (KafkaError, TimeoutError, OSError) as exc:
        raise UnavailableError(
            f"cannot make topics at {bootstrap}: {exc or type(exc).__name__}", hint=HINT
        ) from exc
    finally:
        await admin.close()
    return made


async def differences(bootstrap: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Properties of our topics that are not as they should be: topic → property → (is, should be).

    Raises:
        UnavailableError: no broker answers in time.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="rephub-doctor")
    try:
        async with asyncio.timeout(CREATE_SECONDS_MAX):
            await admin.start()
            names = [name for name in await admin.list_topics() if _wanted(name) is not None]
            values = await _configs(admin, names)
    except (KafkaError, TimeoutError, OSError) as exc:
        raise UnavailableError(
            f"cannot ask {bootstrap} for its topics: {exc or type(exc).__name__}", hint=HINT
        ) from exc
    finally:
        await admin.close()
    found = {}
    for name, config in values.items():
        wrong = {
            key: (config.get(key, ""), value)
            for key, value in (_wanted(name) or {}).items()
            if config.get(key) != value
        }
        if wrong:
            found[name] = wrong
    return found


async def flushes_each_message(bootstrap: str) -> bool:
    """Whether every journal survives a power cut of a single broker: `flush.messages=1` on all of them.

    Raises:
        UnavailableError: no broker answers in time.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="rephub-doctor")
    try:
        async with asyncio.timeout(CREATE_SECONDS_MAX):
            await admin.start()
            names = [name for name in await admin.list_topics() if name.startswith(JOURNAL_PREFIX)]
            values = await _configs(admin, names or [EVENTS_TOPIC])
    except (KafkaError, TimeoutError, OSError) as exc:
        raise UnavailableError(
            f"cannot ask {bootstrap} for its topics: {exc or type(exc).__name__}", hint=HINT
        ) from exc
    finally:
        await admin.close()
    return all(config.get("flush.messages") == "1" for config in values.values())


def _wanted(topic: str) -> dict[str, str] | None:
    """Properties that a topic should have; None for a topic that is not ours."""
    if topic.startswith(JOURNAL_PREFIX):
        return JOURNAL_CONFIG
    return next((spec.config for spec in (*CONTROL_TOPICS, *MONITOR_TOPICS) if spec.name == topic), None)


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(asked):
        for code, message, _kind, name, entries in response.resources:
            if code:
                raise UnavailableError(
                    f"cannot read the properties of topic {name}: {message or for_code(code).__name__}",
                    hint=HINT,
                )
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _made(response: object) -> list[str]:
    """Topics that were made; TopicAlreadyExists (36) is no error."""
    made = []
    for name, code, *rest in response.topic_errors:  # type: ignore[attr-defined]
        if code == 0:
            made.append(name)
        elif code != 36:
            raise UnavailableError(
                f"Kafka refuses to make topic {name}: {rest[0] or for_code(code).__name__}", hint=HINT
            )
    return made


async def _wait_listed(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
    """Wait until the cluster lists every topic with a leader: a new one takes a moment.

    Raises:
        ConflictError: one has another number of partitions.
    """
    while True:
        described = {
            topic["topic"]: topic["partitions"]
            for topic in await admin.describe_topics([s.name for s in specs])
        }
        if all(_has_leaders(described.get(spec.name, [])) for spec in specs):
            break
        await asyncio.sleep(0.05)
    for spec in specs:
        if len(described[spec.name]) != spec.partitions:
            raise ConflictError(
                f"topic {spec.name} has {len(described[spec.name])} partitions, not {spec.partitions}",
                hint="use another Kafka cluster, or delete the topic if nothing of RepHub is in it",
            )


def _has_leaders(partitions: Sequence[dict[str, object]]) -> bool:
    return bool(partitions) and all(partition["leader"] != -1 for partition in partitions)


if __name__ == "__main__":
    asyncio.run(create_topics(sys.argv[1]))
