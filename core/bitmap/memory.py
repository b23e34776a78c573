"""Dirty bitmaps in memory, for tests and simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from rephub.core.errors import UnavailableError
from rephub.core.names import dirty_key


class MemoryBitmapStore:
    """A `BitmapStore`. Leases end by the running loop's clock."""

    def __init__(self) -> None:
        self.unavailable = False
        """True: every call raises UnavailableError."""
        self.bitmaps: dict[str, tuple[int, set[int]]] = {}
        """Key to (generation of the store when it was made, regions)."""
        self.generation = 0
        self._acks: dict[str, dict[str, int]] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    def restart(self, *, durable: bool) -> None:
        """The store restarts; unless it is durable, what it holds is not to be trusted any more."""
        if not durable:
            self.generation += 1

    def bitmap(self, volume: str, epoch: int) -> MemoryDirtyBitmap:
        """See `BitmapStore.bitmap`."""
        return MemoryDirtyBitmap(self, dirty_key(volume, epoch))

    async def set_ack(self, volume: str, fields: dict[str, int]) -> None:
        """See `BitmapStore.set_ack`."""
        self.check_available()
        self._acks.setdefault(volume, {}).update(fields)

    async def get_ack(self, volume: str) -> dict[str, int]:
        """See `BitmapStore.get_ack`."""
        self.check_available()
        return dict(self._acks.get(volume, {}))

    async def renew_lease(self, key: str, value: str, ttl_seconds: float) -> None:
        """See `BitmapStore.renew_lease`."""
        self.check_available()
        self._leases[key] = (value, asyncio.get_running_loop().time() + ttl_seconds)

    async def get_lease(self, key: str) -> str | None:
        """See `BitmapStore.get_lease`."""
        self.check_available()
        value, ends = self._leases.get(key, ("", 0.0))
        return value if asyncio.get_running_loop().time() < ends else None

    async def drop(self, *keys: str) -> None:
        """See `BitmapStore.drop`."""
        self.check_available()
        for key in keys:
            self.bitmaps.pop(key, None)
            self._leases.pop(key, None)
            self._acks.pop(key.removeprefix("rephub:ack:"), None)

    async def close(self) -> None:
        """Keep everything: a test looks at it afterwards."""

    def check_available(self) -> None:
        """Raises UnavailableError during an outage."""
        if self.unavailable:
            raise UnavailableError("the bitmap store does not answer")


class MemoryDirtyBitmap:
    """A `DirtyBitmap`."""

    def __init__(self, store: MemoryBitmapStore, key: str) -> None:
        self._store = store
        self._key = key
        self._made = False

    async def mark(self, regions: Collection[int]) -> None:
        """See `DirtyBitmap.mark`."""
        store = self._store
        store.check_available()
        generation = -1 if self._made else store.generation  # one that grew again is never whole
        store.bitmaps.setdefault(self._key, (generation, set()))[1].update(regions)
        self._made = True

    async def clear(self, regions: Collection[int]) -> None:
        """See `DirtyBitmap.clear`."""
        self._store.check_available()
        if self._key in self._store.bitmaps:
            self._store.bitmaps[self._key][1].difference_update(regions)

    async def load(self) -> set[int] | None:
        """See `DirtyBitmap.load`."""
        self._store.check_available()
        generation, regions = self._store.bitmaps.get(self._key, (-1, set()))
        return set(regions) if generation == self._store.generation else None

    async def is_whole(self) -> bool:
        """See `DirtyBitmap.is_whole`."""
        return not self._made or await self.load() is not None

    async def delete(self) -> None:
        """See `DirtyBitmap.delete`."""
        await self._store.drop(self._key)
        self._made = False
