"""Addresses, and who answers there."""

from __future__ import annotations

import asyncio

import pytest

from rephub.core.errors import UnavailableError, UsageError
from rephub.infra.kafka import reach
from rephub.infra.kafka.topics import replication
from rephub.infra.redis import ask_redis, without_password


def test_bootstrap_addresses() -> None:
    assert reach.parse_bootstrap("a:1, [::1]:2") == [("a", 1), ("::1", 2)]


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:0", "a:70000", "a:1,", "a:b", "http://a:1/"])
def test_wrong_addresses_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="bad Kafka address"):
        reach.parse_bootstrap(text)


async def test_nobody_listens() -> None:
    with pytest.raises(UnavailableError, match="nobody listens there") as caught:
        await reach.ask("127.0.0.1:1", deadline_seconds=1.0)
    assert "--bootstrap" in caught.value.hint


async def test_somebody_else_listens() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    assert not await asyncio.to_thread(reach.answers, f"{host}:{port}")
    with pytest.raises(UnavailableError, match="no Kafka at"):
        await reach.ask(f"{host}:{port}", deadline_seconds=2.0)
    server.close()
    await server.wait_closed()


def test_replication_follows_the_number_of_brokers() -> None:
    assert [replication(count) for count in (1, 2, 3, 5)] == [(1, 1), (1, 1), (3, 2), (3, 2)]


def test_a_redis_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(UnavailableError, match=r"redis://:\*\*\*@127.0.0.1:1/0"):
        ask_redis("redis://:secret@127.0.0.1:1/0")
    assert without_password("redis://u:p@h/0") == "redis://u:***@h/0"
    assert without_password("unix:///a/b") == "unix:///a/b"
