"""Dirty bitmaps, acks and leases in Redis.

A bitmap is trusted only as far as Redis kept it. Its generation key says which server process (`run_id`) took
the marks, and whether that one synced each of them to disk before it answered; bit 0 of the bitmap is a
sentinel, set when the bitmap is made and never again, so region r is bit r + 1. A key that was evicted or
flushed and then grew again through later marks lacks the sentinel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any

import numpy as np
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from rephub.core.errors import UnavailableError
from rephub.core.names import ack_key, dirty_key, generation_key

REQUEST_SECONDS = 1.0
"""Deadline of every method: the agent answers guests after Kafka's ack instead, which takes no longer."""

CONNECTIONS_MAX = 16
"""Of one store; a 17th caller waits, within its deadline."""

BITMAP_BYTES_MAX = 8 << 20
"""Bits of a volume of 64 TiB; Redis takes strings of 512 MiB, which somebody else wrote."""

BITS_PER_COMMAND = 1024
"""A command of 1,024 bits is 30 KiB and takes Redis a millisecond; others wait no longer."""


class RedisBitmapStore:
    """A `BitmapStore` on Redis.

    Args:
        url: `redis://…`, `rediss://…` or `unix://…`.
        request_seconds: deadline of every method.
    """

    def __init__(self, url: str, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self._request_seconds = request_seconds
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=request_seconds,
            # `bounded` is the deadline. With one of its own the library sends by `asyncio.wait_for`, which in Python 3.11
            # swallows a cancellation now and then: an agent could not stop.
            socket_timeout=None,
            socket_connect_timeout=request_seconds,
            # One more try at once: a connection that was idle while Redis restarted breaks at first use.
            # All commands here may be sent twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self.client: Any = Redis.from_pool(pool)

    def bitmap(self, volume: str, epoch: int) -> RedisDirtyBitmap:
        """See `BitmapStore.bitmap`."""
        return RedisDirtyBitmap(self, dirty_key(volume, epoch), generation_key(volume, epoch))

    async def set_ack(self, volume: str, fields: dict[str, int]) -> None:
        """See `BitmapStore.set_ack`."""
        async with self.bounded():
            await self.client.hset(ack_key(volume), mapping=fields)

    async def get_ack(self, volume: str) -> dict[str, int]:
        """See `BitmapStore.get_ack`."""
        async with self.bounded():
            fields = await self.client.hgetall(ack_key(volume))
        return {name.decode(): int(value) for name, value in fields.items()}

    async def renew_lease(self, key: str, value: str, ttl_seconds: float) -> None:
        """See `BitmapStore.renew_lease`."""
        async with self.bounded():
            await self.client.set(key, value, px=max(1, int(ttl_seconds * 1000)))

    async def get_lease(self, key: str) -> str | None:
        """See `BitmapStore.get_lease`."""
        async with self.bounded():
            value = await self.client.get(key)
        return None if value is None else str(value.decode())

    async def drop(self, *keys: str) -> None:
        """See `BitmapStore.drop`."""
        if keys:
            async with self.bounded():
                await self.client.delete(*keys)

    async def close(self) -> None:
        """See `BitmapStore.close`."""
        with contextlib.suppress(RedisError, OSError):  # a Redis that is gone need not be told
            await self.client.aclose(close_connection_pool=True)

    @contextlib.asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """A deadline around what is inside, and Redis's errors as ours."""
        try:
            async with asyncio.timeout(self._request_seconds):
                yield
        except (RedisError, OSError, TimeoutError) as exc:
            raise UnavailableError(
                f"Redis does not answer: {str(exc) or 'no answer in time'}",
                hint="is Redis running, and is redis.url right?",
            ) from exc


class RedisDirtyBitmap:
    """A `DirtyBitmap`: a Redis string and its generation key."""

    def __init__(self, store: RedisBitmapStore, key: str, generation: str) -> None:
        self._store = store
        self._key = key
        self._generation = generation
        self._made = False

    async def mark(self, regions: Collection[int]) -> None:
        """See `DirtyBitmap.mark`; the first one of an object takes three round trips."""
        async with self._store.bounded():
            if not self._made:
                await self._make(regions)
                self._made = True
            elif regions:
                await self._set(regions, 1)

    async def clear(self, regions: Collection[int]) -> None:
        """See `DirtyBitmap.clear`."""
        if regions:
            async with self._store.bounded():
                await self._set(regions, 0)

    async def load(self) -> set[int] | None:
        """See `DirtyBitmap.load`."""
        async with self._store.bounded():
            async with self._store.client.pipeline(transaction=True) as pipe:
                pipe.get(self._key).hgetall(self._generation).info("server")
                bits, generation, server = await pipe.execute()
            if bits is None or not await self._trusted(generation, server["run_id"]):
                return None
        return regions_of(bits)

    async def is_whole(self) -> bool:
        """See `DirtyBitmap.is_whole`."""
        if not self._made:
            return True
        async with self._store.bounded():
            async with self._store.client.pipeline(transaction=True) as pipe:
                pipe.getbit(self._key, 0).hgetall(self._generation).info("server")
                sentinel, generation, server = await pipe.execute()
            return bool(sentinel) and await self._trusted(generation, server["run_id"])

    async def delete(self) -> None:
        """See `DirtyBitmap.delete`."""
        await self._store.drop(self._key, self._generation)
        self._made = False

    async def _trusted(self, generation: dict[bytes, bytes], run_id: str) -> bool:
        """Whether the server that took the marks is the one that runs, or synced them to disk."""
        if b"run_id" not in generation:
            return False
        if generation[b"run_id"].decode() == run_id:
            return True
        return generation.get(b"durable") == b"1" and await self._synced_always()

    async def _make(self, regions: Iterable[int]) -> None:
        client = self._store.client
        run_id = (await client.info("server"))["run_id"]
        durable = await self._synced_always()
        async with client.pipeline(transaction=True) as pipe:
            pipe.setbit(self._key, 0, 1)
            pipe.hsetnx(self._generation, "run_id", run_id)
            pipe.hsetnx(self._generation, "durable", int(durable))
            for command in _commands(self._key, regions, 1):
                pipe.execute_command(*command)
            pipe.info("server")
            *_, server = await pipe.execute()
        if server["run_id"] != run_id:
            await client.delete(self._key, self._generation)
            raise UnavailableError("Redis restarted while a bitmap was made")

    async def _set(self, regions: Iterable[int], bit: int) -> None:
        async with self._store.client.pipeline(transaction=False) as pipe:
            for command in _commands(self._key, regions, bit):
                pipe.execute_command(*command)
            await pipe.execute()

    async def _synced_always(self) -> bool:
        """Whether Redis syncs each write to disk before it answers; False if it will not tell."""
        try:
            config = await self._store.client.config_get("append*")
        except RedisConnectionError:
            raise
        except RedisError:
            return False  # forbidden by an ACL: then nothing is known, which is the safe answer
        return bool(config.get("appendonly") == "yes" and config.get("appendfsync") == "always")


def regions_of(bits: bytes) -> set[int] | None:
    """The regions that a bitmap of Redis marks; None if it lacks the sentinel or is none of ours: then all count as dirty."""
    if not bits or not bits[0] & 0x80 or len(bits) > BITMAP_BYTES_MAX:
        return None
    octets = np.frombuffer(bits, np.uint8)
    used = np.flatnonzero(octets)  # a bitmap of few marks takes little, however long it is
    ones = np.flatnonzero(np.unpackbits(octets[used]))
    return set((used[ones >> 3] * 8 + (ones & 7) - 1)[1:].tolist())


def _commands(key: str, regions: Iterable[int], bit: int) -> Iterable[list[Any]]:
    """BITFIELD commands that set or clear the regions' bits."""
    ordered = sorted(regions)
    for first in range(0, len(ordered), BITS_PER_COMMAND):
        command: list[Any] = ["BITFIELD", key]
        for region in ordered[first : first + BITS_PER_COMMAND]:
            command += ["SET", "u1", region + 1, bit]
        yield command
