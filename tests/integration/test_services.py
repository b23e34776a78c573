"""The services that all other integration tests stand on."""

from __future__ import annotations

import pytest
import redis

from rephub.infra.kafka import reach


@pytest.mark.kafka
async def test_a_real_broker_answers(kafka: str) -> None:
    cluster = await reach.ask(kafka)
    assert cluster.brokers == 1
    assert cluster.cluster_id


@pytest.mark.redis
def test_a_real_redis_answers_and_keeps_what_it_answered(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    assert client.config_get("append*") == {
        "appendonly": "yes",
        "appendfsync": "always",
        "appendfilename": "appendonly.aof",
        "appenddirname": "appendonlydir",
    }
    client.close()
