"""What every bitmap adapter must do. A subclass gives `store` and a fresh `volume`; see `test_bitmap.py`."""

from __future__ import annotations

import asyncio

from rephub.core.bitmap.port import BitmapStore
from rephub.core.names import agent_lease_key

WAIT_SECONDS = 10


class BitmapCases:
    async def test_mark_and_clear(self, store: BitmapStore, volume: str) -> None:
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([0, 5, 5, 7, 8, 1_000_000])
        await bitmap.mark({6})
        await bitmap.clear([5, 8, 9])
        assert await bitmap.load() == {0, 6, 7, 1_000_000}
        assert await store.bitmap(volume, 1).load() == {0, 6, 7, 1_000_000}

    async def test_many_regions(self, store: BitmapStore, volume: str) -> None:
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark(range(10_000))
        await bitmap.clear(range(0, 10_000, 2))
        assert await bitmap.load() == set(range(1, 10_000, 2))

    async def test_an_empty_bitmap_is_not_a_missing_one(self, store: BitmapStore, volume: str) -> None:
        bitmap = store.bitmap(volume, 1)
        assert await bitmap.load() is None
        await bitmap.mark([])
        assert await bitmap.load() == set()
        await bitmap.mark([3])
        await bitmap.clear([3])
        assert await bitmap.load() == set()

    async def test_epochs_and_volumes_are_apart(self, store: BitmapStore, volume: str) -> None:
        await store.bitmap(volume, 1).mark([1])
        await store.bitmap(volume, 2).mark([2])
        await store.bitmap(f"{volume}x", 1).mark([3])
        assert await store.bitmap(volume, 1).load() == {1}
        assert await store.bitmap(volume, 2).load() == {2}

    async def test_clear_of_a_missing_bitmap_does_not_make_one(self, store: BitmapStore, volume: str) -> None:
        await store.bitmap(volume, 1).clear([1])
        assert await store.bitmap(volume, 1).load() is None

    async def test_delete(self, store: BitmapStore, volume: str) -> None:
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([1])
        await bitmap.delete()
        assert await bitmap.load() is None
        await bitmap.mark([2])
        assert await bitmap.load() == {2}

    async def test_a_bitmap_that_was_lost_and_grew_again_is_not_whole(
        self, store: BitmapStore, volume: str
    ) -> None:
        bitmap = store.bitmap(volume, 1)
        await bitmap.mark([1])
        await store.bitmap(volume, 1).delete()  # as an eviction, a FLUSHALL or a stranger would
        await bitmap.mark([2])
        assert await bitmap.load() is None

    async def test_ack_hash_merges(self, store: BitmapStore, volume: str) -> None:
        assert await store.get_ack(volume) == {}
        await store.set_ack(volume, {"epoch": 1, "acked_offset": 10})
        await store.set_ack(volume, {"acked_offset": 12, "applied_offset": 3})
        assert await store.get_ack(volume) == {"epoch": 1, "acked_offset": 12, "applied_offset": 3}

    async def test_leases_end(self, store: BitmapStore, volume: str) -> None:
        key = agent_lease_key(volume)
        assert await store.get_lease(key) is None
        await store.renew_lease(key, "mine", 0.05)
        await store.renew_lease(key, "still mine", 60)
        assert await store.get_lease(key) == "still mine"
        await store.renew_lease(key, "short", 0.05)
        async with asyncio.timeout(WAIT_SECONDS):
            while await store.get_lease(key) is not None:
                await asyncio.sleep(0.01)

    async def test_drop(self, store: BitmapStore, volume: str) -> None:
        await store.renew_lease(agent_lease_key(volume), "mine", 60)
        await store.drop()
        await store.drop(agent_lease_key(volume), "rephub:nothing")
        assert await store.get_lease(agent_lease_key(volume)) is None
