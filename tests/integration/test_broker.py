"""A broker of our own keeps data and address over restarts, clean or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from redis import Redis

from rephub.core.errors import UnavailableError
from rephub.infra.kafka.broker import Broker, Runtime, find_runtime
from rephub.infra.kafka.topics import create_topics, journal_topic_spec
from rephub.infra.redis import RedisServer, ask_redis

JOURNAL = "journal.kept"


async def _write(bootstrap: str, value: bytes) -> int:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        return int((await producer.send_and_wait(JOURNAL, value, partition=0)).offset)
    finally:
        await producer.stop()


async def _read(bootstrap: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partition = TopicPartition(JOURNAL, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        return [(await consumer.getone()).value for _ in range(end)]
    finally:
        await consumer.stop()


@pytest.mark.kafka
async def test_data_and_address_outlive_a_stop_and_a_kill(new_broker: Callable[[], Broker]) -> None:
    broker = new_broker()
    broker.start()
    bootstrap = broker.bootstrap
    await create_topics(bootstrap, [journal_topic_spec("kept")])
    assert await _write(bootstrap, b"first") == 0
    broker.stop()
    broker.start()
    assert broker.bootstrap == bootstrap
    assert await _write(bootstrap, b"second") == 1
    broker.kill()
    broker.start()
    assert await _read(bootstrap) == [b"first", b"second"]
    log = (broker.directory / "logs" / "server.log").read_text()
    assert "INFO" in log, "the broker has a real logging configuration"


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why(new_broker: Callable[[], Broker]) -> None:
    broker = new_broker()
    broker.prepare()
    meta = broker.directory / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=9"))
    with pytest.raises(UnavailableError, match=r"the broker ended with status 1: .*\b9\b"):
        broker.start()
    assert broker.process is None


def test_missing_java_and_missing_jars_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"jars are not in KAFKA_HOME"):
        find_runtime(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UnavailableError, match="java is not installed"):
        find_runtime()


@pytest.mark.kafka
def test_kafka_home_comes_before_our_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka-server-common-4.3.1.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    found = find_runtime()
    assert found == Runtime(found.java, tmp_path / "libs")


@pytest.mark.redis
def test_redis_answers_on_a_private_socket_and_keeps_what_it_answered(short_dir: Path) -> None:
    server = RedisServer(short_dir / "redis", short_dir / "s" / "redis.sock")
    server.start()
    assert ask_redis(server.url) == {"appendonly": "yes", "appendfsync": "always"}
    assert server.socket_path.stat().st_mode & 0o777 == 0o600
    with Redis(unix_socket_path=str(server.socket_path)) as client:
        client.setbit("rephub:dirty:v:1", 7, 1)
    assert server.process
    os.kill(server.process.pid, 9)
    server.process.wait()
    server.start()
    with Redis(unix_socket_path=str(server.socket_path)) as client:
        assert client.getbit("rephub:dirty:v:1", 7) == 1
    server.stop()
