"""The pace of syncs, changed while they run: held, throttled, ordered; it survives a restart of the agent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Rig, fresh
from qsd import StorageDaemon
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 24 * MIB


RIG = {"syncs_max": 1}
"""Settings of the agent."""


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    """Three disks without holes."""
    folder = short_dir / "q"
    folder.mkdir()
    for number in range(3):
        (folder / f"disk{number}.raw").write_bytes(os.urandom(SIZE))
    daemon = StorageDaemon(folder, [SIZE] * 3)
    yield daemon
    daemon.stop()


async def set_pace(rig: Rig, volume: str, **changes: Any) -> None:
    fields = {"paused": False, "rate_bytes_per_second": 0, "priority": 0}
    await rig.tell(ev.SyncPaceSet, volume=volume, **(fields | changes))


def sync_of(rig: Rig, volume: str) -> dict[str, Any]:
    return rig.volume_status(volume).get("sync") or {}


async def begin(rig: Rig, qsd: StorageDaemon, volume: str, number: int = 0, **pace: Any) -> None:
    """Protect with a pace that is known before the first byte."""
    rig.auto_sync = False
    await rig.protect(volume, qsd.qmp, f"disk{number}", SIZE)
    await set_pace(rig, volume, **pace)
    await rig.until("attached", lambda: rig.of(ev.FilterAttached, volume))
    await rig.tell(ev.SyncRequested, volume=volume, epoch=1)


async def test_pause_throttle_and_resume_of_a_running_sync(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    await begin(rig, qsd, volume, paused=True)
    held = await rig.until("held", lambda: sync_of(rig, volume))
    assert (held["done_bytes"], held["total_bytes"], held["paused"]) == (0, SIZE, True)
    assert not rig.of(ev.VolumeSyncStarted, volume), "paused before it began"

    await set_pace(rig, volume, rate_bytes_per_second=2 * MIB)
    await rig.until("moves", lambda: sync_of(rig, volume).get("done_bytes", 0) >= 2 * MIB)
    began, before = time.monotonic(), sync_of(rig, volume)["done_bytes"]
    await rig.until("moves on", lambda: sync_of(rig, volume)["done_bytes"] >= before + 3 * MIB)
    moved = sync_of(rig, volume)
    rate = (moved["done_bytes"] - before) / (time.monotonic() - began)
    assert rate < 4 * MIB, f"{rate / MIB:.1f} MiB/s"
    assert moved["rate_bytes_per_second"] == 2 * MIB
    assert 0 < moved["eta_seconds"] < 60

    await set_pace(rig, volume, paused=True, rate_bytes_per_second=2 * MIB)
    await rig.until("paused", lambda: sync_of(rig, volume)["paused"])
    stood = await rig.until(
        "stands still", lambda: (sync := sync_of(rig, volume))["eta_seconds"] is None and sync
    )
    assert stood["done_bytes"] < SIZE

    # The log has it: an agent that was killed meanwhile neither syncs nor forgets the rate.
    rig.kill()
    rig.launch()
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
    await rig.tell(ev.SyncRequested, volume=volume, epoch=rig.of(ev.FilterAttached, volume)[1].epoch)
    again = await rig.until("held again", lambda: sync_of(rig, volume))
    assert (again["paused"], again["rate_bytes_per_second"]) == (True, 2 * MIB)
    assert len(rig.of(ev.VolumeSyncStarted, volume)) == 1

    began = time.monotonic()
    await set_pace(rig, volume)
    await rig.protected(volume)
    assert time.monotonic() - began < SIZE / (2 * MIB), "the limit is off"
    offset = (await rig.checkpoint(f"c-{volume}", volume))[volume]
    image, _state = await rig.replay(volume, SIZE, offset)
    assert image == qsd.files[0].read_bytes()


async def test_the_highest_priority_goes_first_and_the_others_say_that_they_wait(
    rig: Rig, qsd: StorageDaemon
) -> None:
    first, second, urgent = (fresh(name) for name in ("first", "second", "urgent"))
    await begin(rig, qsd, first, 0, rate_bytes_per_second=MIB)
    await rig.until("first runs", lambda: rig.of(ev.VolumeSyncStarted, first))
    await begin(rig, qsd, second, 1)
    await rig.until("second waits", lambda: sync_of(rig, second).get("waiting"))
    await begin(rig, qsd, urgent, 2, priority=1)
    await rig.protected(urgent)
    assert rig.state(first) == rig.state(second) == "syncing"
    assert not rig.of(ev.VolumeSyncStarted, second)
    # The first has its turn again, and goes on where it stood.
    await rig.until("first runs again", lambda: not sync_of(rig, first)["waiting"])
    await set_pace(rig, first)
    await rig.protected(first)
    await rig.protected(second)
    assert len(rig.of(ev.VolumeSyncStarted, first)) == 1
    order = [event.volume for event in rig.events if isinstance(event, ev.VolumeSyncCompleted)]
    assert [name for name in order if name in (first, second, urgent)] == [urgent, first, second]
    for number, volume in enumerate((first, second, urgent)):
        image, _state = await rig.replay(volume, SIZE)
        assert image == qsd.files[number].read_bytes()
