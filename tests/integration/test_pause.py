"""Pause and resume on a real QEMU block layer, Kafka and Redis: nothing is missed, and little is copied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent_rig import Rig
from protected_disk import ProtectedDisk
from qsd import Load, StorageDaemon
from rephub.core.errors import from_json
from rephub.schemas import events as ev
from rephub.schemas import journal as jr

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

KIB = 1 << 10
MIB = 1 << 20
SIZE = 32 * MIB
GRANULE = 64 * KIB


class Site(ProtectedDisk):
    """One protected volume, and a hub that pauses and resumes it."""

    def __init__(self, rig: Rig, qsd: StorageDaemon, size: int = SIZE) -> None:
        super().__init__(rig, qsd, size)

    async def pause(self) -> ev.VolumePaused | ev.PauseFailed:
        before = len(self._answers())
        deadline = 1 << 62
        await self.rig.tell(ev.PauseRequested, volume=self.name, deadline_at=deadline)
        await self.rig.until("answer to the pause", lambda: len(self._answers()) > before)
        return self._answers()[-1]

    def _answers(self) -> list[Any]:
        both = [*self.rig.of(ev.VolumePaused, self.name), *self.rig.of(ev.PauseFailed, self.name)]
        return sorted(both, key=lambda event: event.at)

    async def resume(self) -> tuple[ev.VolumeSyncStarted, int]:
        """Resume and wait until protected; as `last_sync`."""
        await self.rig.tell(ev.ResumeRequested, volume=self.name)
        await self.tidied()
        return await self.last_sync()

    def reason(self) -> str:
        """Why the newest epoch began, as the journal has it."""
        return str(self.rig.of(ev.FilterAttached, self.name)[-1].reason)


async def test_resume_copies_what_was_written_and_follows_a_new_size(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    qsd = daemons()
    site = Site(rig, qsd)
    site.write(0, 20 * MIB, 1)
    await site.protect()
    assert "in use" in qsd.execute("block_resize", node_name="disk0", size=2 * SIZE)["error"]["desc"]
    site.write(5 * MIB, 100_000, 2)
    answer = await site.pause()
    assert isinstance(answer, ev.VolumePaused), answer
    assert (rig.state(site.name), answer.persistent) == ("paused", False)
    assert len(site.bitmaps()) == 2
    assert qsd.execute("query-block-jobs")["return"] == []
    # Captured before, then recorded: nothing between is lost.
    records = await rig.records(site.name)
    assert records[-1][0] == answer.offset
    site.write(7 * MIB + 5, 4096, 3)
    site.write(19 * MIB, 70_000, 4)
    started, moved = await site.resume()
    assert (started.mode, started.reason) == ("delta", None)
    assert started.total_bytes == moved == 3 * GRANULE
    assert site.reason() == "resumed after a pause"
    site.write(8 * MIB, 4096, 5)
    await site.same()

    # Grown: what is new is copied, and only that.
    await site.pause()
    assert "return" in qsd.resize(48 * MIB)
    site.write(40 * MIB, MIB, 6)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("delta", 16 * MIB, MIB)
    assert rig.of(ev.VolumeResized, site.name)[-1].size_bytes == 48 * MIB
    resized = [record for _, record in await rig.records(site.name) if isinstance(record, jr.Resized)]
    assert [(item.epoch, item.seq, item.size_bytes) for item in resized] == [(started.epoch, 1, 48 * MIB)]
    assert len(await site.same()) == 48 * MIB

    # Cut: nothing is to be copied.
    await site.pause()
    qsd.resize(16 * MIB)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("delta", 0, 0)
    assert len(await site.same()) == 16 * MIB

    # Cut and grown again to the same size: QEMU's own bitmap does not tell.
    await site.pause()
    qsd.resize(4 * MIB)
    qsd.resize(16 * MIB)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("delta", 12 * MIB, 0)
    assert not any((await site.same())[4 * MIB :])

    # Somebody removed the bitmap.
    await site.pause()
    qsd.execute("block-dirty-bitmap-remove", node="disk0", name=site.bitmaps()[0])
    site.write(2 * MIB, 4096, 7)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("compare", 16 * MIB, GRANULE)
    assert "dirty bitmap is missing" in str(started.reason)
    assert "dirty bitmap is missing" in site.reason()
    await site.same()


async def test_no_write_is_missed_while_the_guest_goes_on(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    """Each granule of the bitmap is written once: what neither filter nor bitmap saw stays missing."""
    site = Site(rig, daemons(size=128 * MIB), 128 * MIB)
    await site.protect()
    load = Load(site.qsd.uri())
    load.send("strided", stride=GRANULE, length=4096, count=site.size // GRANULE, per_second=500, seed=1)
    head = rig.volume_status(site.name)["acked_offset"]
    await rig.until("writes", lambda: rig.volume_status(site.name)["acked_offset"] > head + 100)
    assert isinstance(await site.pause(), ev.VolumePaused)
    started, _ = await site.resume()
    answer = await asyncio.to_thread(load.receive)
    load.close()
    assert 0 < started.total_bytes < site.size // 2
    synced = rig.of(ev.VolumeSyncCompleted, site.name)[-1]
    assert answer["ended_at"] > synced.at / 1e6, "the guest was done before the resume was"
    await site.same()


async def test_a_persistent_bitmap_outlives_a_clean_end_of_qemu_and_no_other(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    site = Site(rig, daemons("qcow2"))
    site.write(0, 20 * MIB, 1)
    await site.protect()
    answer = await site.pause()
    assert isinstance(answer, ev.VolumePaused), answer
    assert answer.persistent
    site.write(MIB, 4096, 2)
    site.qsd.stop()
    site.qsd = daemons("qcow2")
    site.write(9 * MIB, 4096, 3)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("delta", 2 * GRANULE, 2 * GRANULE)
    await site.same()

    await site.pause()
    assert "return" in site.qsd.resize(SIZE + 3 * MIB)
    site.write(2 * MIB, 4096, 4)
    # The agent is away meanwhile: the pause is none of its memory.
    assert await rig.stop() == 0
    site.qsd.stop()
    site.qsd = daemons("qcow2")
    rig.launch()
    await rig.until("agent ready", rig.ready)
    started, moved = await site.resume()
    assert (started.mode, started.total_bytes, moved) == ("delta", 3 * MIB + GRANULE, GRANULE)
    assert len(await site.same()) == SIZE + 3 * MIB

    await site.pause()
    site.qsd.kill()
    site.qsd = daemons("qcow2")
    started, moved = await site.resume()
    assert (started.mode, moved) == ("compare", 0)
    assert "QEMU was not ended cleanly" in str(started.reason)
    await site.same()


async def test_a_resume_that_is_interrupted_begins_again_from_the_bitmap(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    site = Site(rig, daemons())
    site.write(0, 20 * MIB, 1)
    await site.protect()
    await site.pause()
    site.write(3 * MIB, 4096, 2)
    rig.auto_sync = False
    await rig.tell(ev.ResumeRequested, volume=site.name)
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, site.name)) == 2)
    site.write(6 * MIB, 4096, 3)
    rig.kill()
    site.write(9 * MIB, 4096, 4)
    rig.auto_sync = True
    rig.launch()
    await rig.until("third epoch", lambda: len(rig.of(ev.FilterAttached, site.name)) == 3)
    await rig.protected(site.name)
    started = rig.of(ev.VolumeSyncStarted, site.name)[-1]
    # What the dead agent had received is marked in Redis as well, by regions.
    assert (started.mode, started.total_bytes) == ("delta", MIB + 2 * GRANULE)
    await site.same()


async def test_an_agent_that_holds_nothing_refuses_a_pause(
    rig: Rig, daemons: Callable[..., StorageDaemon]
) -> None:
    site = Site(rig, daemons())
    await site.protect()
    rig.kill()
    await rig.tell(ev.PauseRequested, volume=site.name, deadline_at=1 << 62)
    rig.launch()
    await rig.until("answer to the pause", lambda: rig.of(ev.PauseFailed, site.name))
    (failed,) = rig.of(ev.PauseFailed, site.name)
    assert "not captured completely" in from_json(failed.error).message
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, site.name)) == 2)
    await rig.protected(site.name)
    await site.tidied()
