"""A guest that writes faster than Kafka takes it, because Kafka is slow or stands still: memory stays within the buffer, no
write of the guest fails or waits longer than the limit, and gap and resync do not take turns.

A slow broker is one that stands still nine tenths of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from agent_rig import Rig, fresh
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.infra.kafka.broker import Broker
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 64 * MIB
BUFFER = 64 * MIB
LIMIT_MS = 50
SLACK_MS = 450
"""What a machine of two cores adds when broker, load and QEMU all want them."""
SLOW_STILL, SLOW_RUNS = 0.18, 0.02


@pytest.fixture
def broker(new_broker: Callable[[], Broker]) -> Iterator[Broker]:
    broker = new_broker()
    broker.start()
    yield broker
    if broker.process is not None:
        thaw(broker.process.pid)


@pytest.fixture
async def rig(short_dir: Path, redis_url: str, broker: Broker) -> AsyncIterator[Rig]:
    rig = Rig(short_dir, broker.bootstrap, redis_url, buffer_bytes=BUFFER, delay_max_ms=LIMIT_MS)
    try:
        await rig.start()
        yield rig
    finally:
        if broker.process is not None:
            thaw(broker.process.pid)
        await rig.close()


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE])
    yield daemon
    daemon.stop()


@contextlib.asynccontextmanager
async def slowed(broker: Broker) -> AsyncIterator[None]:
    assert broker.process is not None
    pid = broker.process.pid

    async def alternate() -> None:
        while True:
            await asyncio.to_thread(freeze, pid)
            await asyncio.sleep(SLOW_STILL)
            thaw(pid)
            await asyncio.sleep(SLOW_RUNS)

    task = asyncio.create_task(alternate())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        thaw(pid)


async def guest(qsd: StorageDaemon, seconds: float, block: str = "64k", depth: int = 8) -> dict[str, Any]:
    """As fast as it can; an I/O error fails the test. fio's figures of the writes."""
    process = await asyncio.create_subprocess_exec(
        "fio", "--name=guest", "--ioengine=nbd", f"--uri={qsd.uri()}", "--rw=randwrite", f"--bs={block}",
        f"--iodepth={depth}", f"--size={SIZE}", "--time_based", f"--runtime={seconds}", "--norandommap",
        "--output-format=json", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    text = out.decode()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    return dict(job["write"])


async def protect(rig: Rig, qsd: StorageDaemon, policy: str) -> str:
    volume = fresh()
    await rig.protect(volume, qsd.qmp, "disk0", SIZE, overload=policy)
    await rig.protected(volume)
    return volume


class Peak:
    """The most that the workers hold while the block runs, in bytes above what they held before."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.bytes = 0

    def _now(self) -> int:
        found = 0
        for pid in self._rig.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(pid).memory_info().rss
        return found

    async def _watch(self, before: int) -> None:
        while True:
            self.bytes = max(self.bytes, self._now() - before)
            await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(self._now()))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_throttle_holds_the_guest_to_the_pace_of_a_slow_broker(
    rig: Rig, qsd: StorageDaemon, broker: Broker
) -> None:
    volume = await protect(rig, qsd, "throttle")
    free = await guest(qsd, 3)
    async with slowed(broker), Peak(rig) as peak:
        held = await guest(qsd, 12)
    assert not rig.of(ev.CaptureLost, volume), "the guest is slowed down before the buffer is full"
    assert held["iops"] < free["iops"] * 0.7, (held["iops"], free["iops"])
    assert held["clat_ns"]["max"] / 1e6 < LIMIT_MS + SLACK_MS
    assert held["clat_ns"]["percentile"]["95.000000"] / 1e6 < 2 * LIMIT_MS
    # Twice: what is captured, and its copy in the batch, the socket and the allocator's reserve.
    assert peak.bytes < 2 * BUFFER, peak.bytes
    await rig.until("all is acked", lambda: rig.volume_status(volume)["lag_bytes"] == 0)
    throttled = rig.volume_status(volume)["throttled"]
    assert 0 < throttled["writes"] <= held["total_ios"] + free["total_ios"]
    assert 0 < throttled["seconds"] <= throttled["writes"] * LIMIT_MS / 1000
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    image, state = await rig.replay(volume, SIZE, offset)
    assert state.gap_first_offset is None
    assert image == qsd.files[0].read_bytes()


async def test_gap_never_slows_the_guest_and_does_not_flap(
    rig: Rig, qsd: StorageDaemon, broker: Broker
) -> None:
    volume = await protect(rig, qsd, "gap")
    async with slowed(broker), Peak(rig) as peak:
        held = await guest(qsd, 20)
    assert held["clat_ns"]["max"] / 1e6 < SLACK_MS + LIMIT_MS
    assert held["clat_ns"]["percentile"]["99.000000"] / 1e6 < LIMIT_MS
    assert peak.bytes < 2 * BUFFER, peak.bytes
    lost = rig.of(ev.CaptureLost, volume)
    assert lost, "the guest outran the journal"
    assert "outran the journal" in lost[0].reason
    # At 0.2 s between attempts there were more than ten.
    assert len(lost) <= 4, [event.reason for event in lost]
    await rig.until("protected", lambda: rig.state(volume) == "protected", 60)
    status = rig.volume_status(volume)
    assert status["throttled"] == {"writes": 0, "seconds": 0.0}
    assert 1 <= status["gaps"] <= len(rig.of(ev.CaptureLost, volume)), "lost again within a gap is one gap"
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    image, _state = await rig.replay(volume, SIZE, offset)
    assert image == qsd.files[0].read_bytes()


@pytest.mark.parametrize("policy", ["throttle", "gap"])
async def test_a_broker_that_stands_still_for_two_seconds_costs_no_gap(
    rig: Rig, qsd: StorageDaemon, broker: Broker, policy: str
) -> None:
    """As in a long pause of its collector: the buffer bridges it."""
    volume = await protect(rig, qsd, policy)
    assert broker.process is not None
    load = Load(qsd.uri())
    writing = asyncio.create_task(
        asyncio.to_thread(load, "numbered", depth=4, count=4000, first=1, sectors=SIZE // 512, seed=7)
    )
    freeze(broker.process.pid)
    await asyncio.sleep(2)
    thaw(broker.process.pid)
    await writing
    load.close()
    assert not rig.of(ev.CaptureLost, volume)
    await rig.until("all is acked", lambda: rig.volume_status(volume)["lag_bytes"] == 0)
