"""A broker in trouble for longer than the buffer lasts: no guest error, a gap with its reason, protected again by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Rig, fresh
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.infra.kafka.broker import Broker
from rephub.schemas import events as ev
from services import cannot

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 32 * MIB
ROOM_BYTES = 160 * MIB
"""Of the broker's disk: its indexes, and some of what the guest writes."""
SECONDS = 90.0


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A file system of ROOM_BYTES."""
    room = short_dir / "room"
    room.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "none", str(room)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        cannot(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield room
    subprocess.run(["umount", "-l", str(room)], check=True)


@pytest.fixture
def broker(new_broker: Callable[[], Broker]) -> Broker:
    return new_broker()


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE])
    yield daemon
    daemon.stop()


@pytest.fixture
async def make_rig(short_dir: Path, redis_url: str, broker: Broker) -> AsyncIterator[Callable[[], Rig]]:
    """Makes the rig once the broker runs."""
    made: list[Rig] = []

    def make() -> Rig:
        made.append(Rig(short_dir, broker.bootstrap, redis_url, buffer_bytes=4 * MIB))
        return made[-1]

    yield make
    for rig in made:
        await rig.close()


async def protect(rig: Rig, qsd: StorageDaemon) -> str:
    volume = fresh()
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    return volume


def write(qsd: StorageDaemon, seed: int) -> None:
    """The whole disk; an error fails the test."""
    load = Load(qsd.uri())
    for number, start in enumerate(range(0, SIZE, MIB)):
        load("write", start=start, length=MIB, seed=seed + number)
    load.close()


async def protected_again(rig: Rig, qsd: StorageDaemon, volume: str) -> None:
    """By itself, in a later epoch, and with every byte."""
    await rig.until("lost", lambda: rig.of(ev.CaptureLost, volume), SECONDS)
    await rig.until("protected", lambda: rig.state(volume) == "protected", SECONDS)
    assert rig.catalogue.volumes[volume].epoch > 1
    assert rig.of(ev.VolumeSyncStarted, volume)[-1].mode == "delta"
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    image, state = await rig.replay(volume, SIZE, offset)
    assert state.gap_first_offset is None
    assert image == qsd.files[0].read_bytes()


async def test_a_broker_that_stands_still_for_longer_than_the_buffer_lasts(
    broker: Broker, make_rig: Callable[[], Rig], qsd: StorageDaemon
) -> None:
    broker.start()
    rig = make_rig()
    await rig.start()
    volume = await protect(rig, qsd)
    assert broker.process is not None
    freeze(broker.process.pid)
    try:
        write(qsd, 1)
        await rig.until("gap", lambda: rig.volume_status(volume)["gap_since_at"], SECONDS)
    finally:
        thaw(broker.process.pid)
    await protected_again(rig, qsd, volume)
    reason = rig.of(ev.CaptureLost, volume)[0].reason
    assert "outran the journal" in reason or "no answer" in reason or "waited" in reason, reason


async def test_kafkas_log_directory_is_full_and_is_freed(
    small_disk: Path, broker: Broker, make_rig: Callable[[], Rig], qsd: StorageDaemon
) -> None:
    """The broker ends by itself; a supervisor would start it again."""
    broker.directory.mkdir()
    (broker.directory / "data").symlink_to(small_disk)
    broker.start()
    rig = make_rig()
    await rig.start()
    volume = await protect(rig, qsd)
    filler = small_disk / "filler"
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - 20 * MIB)))
    process = broker.process
    assert process is not None
    for seed in range(4):
        write(qsd, 100 * seed)
    await rig.until("the broker has ended", lambda: process.poll() is not None, SECONDS)
    await rig.until("gap", lambda: rig.volume_status(volume)["gap_since_at"], SECONDS)
    write(qsd, 1000)
    filler.unlink()
    broker.stop()
    broker.start()
    await protected_again(rig, qsd, volume)
