"""Bitmap adapters against `bitmap_cases`. Redis: a real one; memory: always."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from conformance.bitmap_cases import BitmapCases
from rephub.core.bitmap.memory import MemoryBitmapStore
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.errors import UnavailableError
from rephub.infra.redis import RedisServer


@pytest.fixture
def volume() -> str:
    return f"v{uuid.uuid4().hex[:12]}"


class TestMemory(BitmapCases):
    @pytest.fixture
    def store(self) -> MemoryBitmapStore:
        return MemoryBitmapStore()

    async def test_restart(self, store: MemoryBitmapStore, volume: str) -> None:
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([1])
        store.restart(durable=True)
        assert await bitmap.load() == {1}
        store.restart(durable=False)
        assert await bitmap.load() is None
        await bitmap.delete()
        await bitmap.mark([1, 2])
        assert await bitmap.load() == {1, 2}

    async def test_outage(self, store: MemoryBitmapStore, volume: str) -> None:
        store.unavailable = True
        with pytest.raises(UnavailableError):
            await store.bitmap(volume, 1).mark([1])
        store.unavailable = False
        assert await store.bitmap(volume, 1).load() is None


@pytest.mark.redis
class TestRedis(BitmapCases):
    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[RedisBitmapStore]:
        store = RedisBitmapStore(redis_url)
        yield store
        await store.close()


@pytest.fixture
def new_redis(short_dir: Path) -> Iterator[Callable[[], RedisServer]]:
    """Starts servers on the same files and socket, one after the other."""
    made: list[RedisServer] = []

    def make() -> RedisServer:
        server = RedisServer(short_dir / "redis", short_dir / "s" / "redis.sock")
        server.start()
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.mark.redis
class TestRedisRestart:
    async def test_marks_survive_a_restart_of_a_server_that_syncs_always(
        self, new_redis: Callable[[], RedisServer], volume: str
    ) -> None:
        server = new_redis()
        store = RedisBitmapStore(server.url)
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([1, 2])
        server.process.kill()
        server.process.wait()
        with pytest.raises(UnavailableError):
            await bitmap.load()
        new_redis()
        assert await bitmap.load() == {1, 2}
        await bitmap.mark([3])  # the old connection broke: the store tries once more
        assert await bitmap.load() == {1, 2, 3}
        await store.close()

    async def test_marks_do_not_count_after_a_restart_without_sync(
        self, new_redis: Callable[[], RedisServer], volume: str
    ) -> None:
        server = new_redis()
        store = RedisBitmapStore(server.url)
        await store.client.config_set("appendfsync", "everysec")
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([1, 2])
        assert await bitmap.load() == {1, 2}
        server.stop()
        new_redis()  # a clean stop kept the keys, yet nobody can know that
        assert await store.client.exists(bitmap._key) == 1
        assert await bitmap.load() is None
        await bitmap.delete()
        await bitmap.mark([1, 2, 3])
        assert await bitmap.load() == {1, 2, 3}
        await store.close()

    async def test_no_server(self, short_dir: Path, volume: str) -> None:
        store = RedisBitmapStore(f"unix://{short_dir}/nobody.sock")
        for call in (store.bitmap(volume, 1).mark([1]), store.get_ack(volume), store.drop("x")):
            with pytest.raises(UnavailableError):
                await call
        await store.close()

    async def test_a_server_that_is_silent_is_left_in_time(self, short_dir: Path, volume: str) -> None:
        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        path = short_dir / "silent.sock"
        server = await asyncio.start_unix_server(swallow, path)
        store = RedisBitmapStore(f"unix://{path}", request_seconds=0.2)
        began = asyncio.get_running_loop().time()
        with pytest.raises(UnavailableError):
            await store.bitmap(volume, 1).mark([1])
        assert asyncio.get_running_loop().time() - began < 2
        await store.close()
        server.close()
        await server.wait_closed()
