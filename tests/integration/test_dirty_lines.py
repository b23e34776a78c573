"""After capture was lost, what is copied is what may be missing: Redis marks and QEMU bitmaps, or a comparison of all.

Real QEMU block layer, Kafka and Redis; the agent is killed, its QEMU is ended or killed, Redis is emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from agent_rig import Rig, fresh
from protected_disk import ProtectedDisk
from qsd import Load, StorageDaemon
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.names import ack_key, dirty_key
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

KIB, MIB = 1 << 10, 1 << 20
GRANULE = 64 * KIB
SIZE = 64 * MIB


# Records are short: some rotations happen in each test.
RIG = {"rotate_seconds": 1}
"""Settings of the agent."""


class Site(ProtectedDisk):
    """One protected volume and its guest."""

    def __init__(self, rig: Rig, qsd: StorageDaemon, size: int = SIZE) -> None:
        super().__init__(rig, qsd, size)

    async def protect(self) -> None:
        self.write(0, 20 * MIB, 1)
        await super().protect()
        await self.tidied()

    async def acked(self) -> None:
        """All that was written is in the journal, and no mark is left."""
        status = self.rig.volume_status
        offset = (await self.rig.checkpoint(fresh("c"), self.name))[self.name]
        await self.rig.until("acked", lambda: status(self.name)["acked_offset"] >= offset)
        await self.rig.until("no marks", lambda: status(self.name)["dirty_bytes"] == 0)

    async def again(self, epoch: int) -> tuple[ev.VolumeSyncStarted, int]:
        """Wait until it is protected in the epoch, and whole; as `last_sync`."""
        attached = self.rig.of
        await self.rig.until(
            f"epoch {epoch}", lambda: attached(ev.FilterAttached, self.name)[-1].epoch == epoch
        )
        await self.tidied()
        sync = await self.last_sync()
        assert sync[0].epoch == epoch
        await self.same()
        return sync

    def restart_agent(self) -> None:
        self.rig.kill()
        self.rig.launch()


async def test_an_agent_that_was_killed_copies_only_what_was_written_meanwhile(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    site = Site(rig, daemons())
    await site.protect()
    site.write(5 * MIB, 8 * MIB, 2)
    await site.acked()
    numbers = record_numbers(site)
    site.write(30 * MIB, 4096, 3)
    # Rotated twice since: what was acked by then is in no record any more.
    await rig.until("rotation", lambda: min(record_numbers(site)) > max(numbers), 20)
    site.write(31 * MIB, 4096, 4)
    await site.acked()
    rig.kill()
    site.write(40 * MIB + 5, 4096, 5)
    site.write(9 * MIB, 70_000, 6)
    rig.launch()
    started, moved = await site.again(2)
    assert (started.mode, started.reason) == ("delta", None)
    # 40, and two granules at 9 MiB; those at 30 and 31, unless two records have ended since, as marks stay for a while.
    assert 3 * GRANULE <= started.total_bytes <= 5 * GRANULE
    assert moved <= started.total_bytes


def record_numbers(site: Site) -> list[int]:
    return sorted(int(name.split(".")[1]) for name in site.bitmaps() if "." in name)


async def test_nothing_is_missing_when_the_agent_dies_under_load_again_and_again(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    """The guest writes all the time, also while nobody captures and while the delta is copied."""
    site = Site(rig, daemons())
    await site.protect()
    load = Load(site.qsd.uri())
    load.send("scattered", size=SIZE, length=8192, seconds=12, depth=4, per_second=300, seed=9)
    for epoch in (2, 3, 4):
        await asyncio.sleep(0.7)
        site.restart_agent()
        await rig.until(f"epoch {epoch}", lambda e=epoch: rig.of(ev.FilterAttached, site.name)[-1].epoch == e)
        if epoch != 3:
            # Once it dies before its delta is copied.
            await rig.until("synced", lambda e=epoch: rig.catalogue.volumes[site.name].synced_epoch == e)
    answer = await asyncio.to_thread(load.receive)
    load.close()
    assert "error" not in answer, "a guest error"
    await site.tidied()
    modes = [event.mode for event in rig.of(ev.VolumeSyncStarted, site.name)]
    assert modes[0] == "full"
    assert set(modes[1:]) == {"delta"}
    await site.same()


async def test_a_first_sync_goes_on_where_it_was(rig: Rig, daemons: Callable[..., StorageDaemon]) -> None:
    size = 192 * MIB
    site = Site(rig, daemons(size=size), size)
    for start in range(0, size, 16 * MIB):
        site.write(start, 16 * MIB, start)
    rig.auto_sync = False
    await rig.protect(site.name, site.qsd.qmp, "disk0", size)
    await rig.until("attached", lambda: rig.of(ev.FilterAttached, site.name))
    await rig.tell(ev.SyncPaceSet, volume=site.name, paused=False, rate_bytes_per_second=40 * MIB, priority=0)
    rig.auto_sync = True
    await rig.tell(ev.SyncRequested, volume=site.name, epoch=1)
    store = RedisBitmapStore(rig.redis_url)
    async with asyncio.timeout(30):
        while (await store.get_ack(site.name)).get("synced_bytes", 0) < 64 * MIB:
            await asyncio.sleep(0.05)
    await store.close()
    rig.kill()
    site.write(3 * MIB, 4096, 2)
    await rig.tell(ev.SyncPaceSet, volume=site.name, paused=False, rate_bytes_per_second=0, priority=0)
    rig.launch()
    started, moved = await site.again(2)
    assert started.mode == "continued"
    assert moved <= size - 64 * MIB + GRANULE


async def test_a_redis_that_was_emptied_makes_no_difference(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    """The bitmaps in QEMU have all of it; a live agent stores its marks again."""
    site = Site(rig, daemons())
    await site.protect()
    site.write(7 * MIB, 4096, 2)
    store = RedisBitmapStore(rig.redis_url)
    key = dirty_key(site.name, 1)
    await rig.until("marks", lambda: rig.volume_status(site.name)["dirty_bytes"] == 0)
    await store.drop(key)
    async with asyncio.timeout(20):
        while await store.bitmap(site.name, 1).load() is None:
            await asyncio.sleep(0.05)
    rig.kill()
    await store.drop(key, ack_key(site.name))
    await store.close()
    site.write(8 * MIB, 4096, 3)
    rig.launch()
    started, moved = await site.again(2)
    assert started.mode == "delta"
    assert moved <= 3 * GRANULE


@pytest.mark.parametrize(
    ("driver", "clean", "mode"),
    [("qcow2", True, "delta"), ("qcow2", False, "compare"), ("raw", True, "compare")],
)
async def test_only_a_clean_end_of_qemu_keeps_what_it_noted(
    rig: Rig, daemons: Callable[..., StorageDaemon], driver: str, clean: bool, mode: str
) -> None:
    """Host crash: agent and QEMU are killed at once, with writes on the disk that nobody else saw."""
    site = Site(rig, daemons(driver))
    await site.protect()
    rig.kill()
    site.write(33 * MIB, 4096, 7)
    if clean:
        site.qsd.stop()
    else:
        site.qsd.kill()
    site.qsd = daemons(driver)
    rig.launch()
    started, moved = await site.again(2)
    assert started.mode == mode
    assert 0 < moved <= 4 * GRANULE, "only what differs travels"
    if mode == "compare":
        assert "dirty bitmap is" in str(started.reason)


async def test_a_worker_that_hangs_costs_a_delta(rig: Rig, daemons: Callable[..., StorageDaemon]) -> None:
    site = Site(rig, daemons())
    await site.protect()
    (worker,) = rig.workers()
    os.kill(worker, signal.SIGSTOP)
    load = Load(site.qsd.uri())
    answer: dict[str, Any] = await asyncio.to_thread(load, "write", start=50 * MIB, length=4096, seed=3)
    load.close()
    assert "error" not in answer
    started, moved = await site.again(2)
    assert started.mode == "delta"
    assert 0 < moved <= 2 * MIB


async def test_a_foreign_writer_is_found_out(rig: Rig, daemons: Callable[..., StorageDaemon]) -> None:
    """Somebody writes to the node itself, below our filter; the guest's own writes raise no alarm."""
    site = Site(rig, daemons())
    await site.protect()
    export = {"type": "nbd", "id": "foreign", "node-name": "disk0", "name": "foreign", "writable": True}
    assert "return" in site.qsd.execute("block-export-add", **export)
    guest, foreign = Load(site.qsd.uri()), Load(site.qsd.uri().replace("disk0", "foreign"))
    with contextlib.closing(guest), contextlib.closing(foreign):
        before = max(record_numbers(site))
        guest("scattered", size=SIZE, length=8192, seconds=3, depth=4, per_second=500, seed=9)
        await rig.until("rotations", lambda: max(record_numbers(site)) > before + 1)
        assert not rig.of(ev.CaptureLost, site.name)
        # A granule that the guest wrote in the same record would hide the foreign write: begin a record without the load.
        before = max(record_numbers(site))
        guest("write", start=MIB, length=4096, seed=6)
        await rig.until("a record without the load", lambda: max(record_numbers(site)) > before)
        foreign("write", start=44 * MIB, length=4096, seed=5)
        site.qsd.execute("block-export-del", id="foreign", mode="hard")
        guest("write", start=MIB, length=4096, seed=7)
        await rig.until("noticed", lambda: rig.of(ev.CaptureLost, site.name))
        assert "somebody else wrote to node disk0" in rig.of(ev.CaptureLost, site.name)[0].reason
    started, _moved = await site.again(2)
    assert (started.mode, started.reason) == ("delta", None)
