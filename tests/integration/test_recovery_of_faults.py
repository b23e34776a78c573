"""Faults that end capture, or might: no guest error, a gap with its reason, a new epoch, protected again by itself.

One agent with a Redis of its own; what is left out here is in test_agent_load.py and test_dirty_lines.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from agent_rig import Rig, fresh
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.infra.redis import RedisServer
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 8 * MIB
SECONDS = 60.0


@pytest.fixture
def redis_server(short_dir: Path) -> Iterator[RedisServer]:
    server = RedisServer(short_dir / "redis", short_dir / "s" / "redis.sock")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def rig(short_dir: Path, kafka: str, redis_server: RedisServer) -> AsyncIterator[Rig]:
    rig = Rig(short_dir, kafka, redis_server.url)
    try:
        await rig.start()
        yield rig
    finally:
        await rig.close()


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE])
    yield daemon
    daemon.stop()


async def same(rig: Rig, volume: str, qsd: StorageDaemon) -> None:
    """The journal's replay equals the disk."""
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    image, state = await rig.replay(volume, SIZE, offset)
    assert state.gap_first_offset is None
    assert image == qsd.files[0].read_bytes()


def load_runs(load: Load, seconds: float, seed: int) -> None:
    load.send("scattered", size=SIZE, length=8192, seconds=seconds, depth=4, per_second=200, seed=seed)


async def test_a_mirror_that_somebody_cancels_is_put_back(rig: Rig, qsd: StorageDaemon) -> None:
    volume, load = fresh(), Load(qsd.uri())
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    load_runs(load, 4.0, 1)
    (job,) = qsd.execute("query-block-jobs")["return"]
    assert "return" in qsd.execute("block-job-cancel", device=job["device"])
    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume), SECONDS)
    await rig.until("epoch 2", lambda: rig.of(ev.FilterAttached, volume)[-1].epoch == 2, SECONDS)
    await rig.protected(volume, SECONDS)
    assert "error" not in load.receive()
    load.close()
    (lost,) = rig.of(ev.CaptureLost, volume)
    assert "mirror" in lost.reason
    assert rig.of(ev.VolumeSyncStarted, volume)[-1].mode == "delta"
    await same(rig, volume, qsd)


def emptied(server: RedisServer) -> None:
    with Redis(unix_socket_path=str(server.socket_path)) as client:
        client.flushall()


def killed(server: RedisServer) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    server.start()


def frozen(server: RedisServer) -> None:
    assert server.process is not None
    freeze(server.process.pid)


@pytest.mark.parametrize("fault", [emptied, killed, frozen])
async def test_a_redis_in_trouble_costs_the_guest_nothing(
    rig: Rig, qsd: StorageDaemon, redis_server: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    """Capture goes on, or is put back: what a write needs is Kafka's ack, or QEMU's bitmap."""
    volume, load = fresh(), Load(qsd.uri())
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    load_runs(load, 5.0, 2)
    head = rig.volume_status(volume)["acked_offset"]
    await rig.until("writes", lambda: rig.volume_status(volume)["acked_offset"] > head + 50)
    fault(redis_server)
    head = rig.volume_status(volume)["acked_offset"]
    await rig.until("more writes", lambda: rig.volume_status(volume)["acked_offset"] > head + 50, SECONDS)
    assert "error" not in load.receive()
    assert redis_server.process is not None
    thaw(redis_server.process.pid)
    # And a loss right behind it is repaired, whatever Redis knows.
    rig.kill()
    load("write", start=3 * MIB + 5, length=4096, seed=3)
    load.close()
    rig.launch()
    await rig.until("epoch 2", lambda: rig.of(ev.FilterAttached, volume)[-1].epoch >= 2, SECONDS)
    await rig.protected(volume, SECONDS)
    await same(rig, volume, qsd)
