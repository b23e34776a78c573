"""The RepAgent on a real QEMU block layer, Kafka and Redis: attach, journal, detach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Rig, fresh
from qsd import Load, StorageDaemon
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [16 * MIB, 16 * MIB])
    yield daemon
    daemon.stop()


def looks(qsd: StorageDaemon) -> dict[str, Any]:
    """Everything of QEMU that a detach must leave as it was; only while no agent holds the monitor."""
    nodes = qsd.query("query-named-block-nodes")
    for node in nodes:
        # What the guest wrote is not our business.
        node["image"].pop("actual-size", None)
    return {
        "jobs": qsd.query("query-block-jobs"),
        "nodes": nodes,
        "exports": qsd.query("query-block-exports"),
    }


async def test_protect_writes_checkpoint_unprotect(rig: Rig, qsd: StorageDaemon) -> None:
    before = looks(qsd)
    volume = fresh()
    load = Load(qsd.uri())
    load("write", start=5, length=3 * MIB, seed=1)
    await rig.protect(volume, qsd.qmp, "disk0", 16 * MIB)
    await rig.protected(volume)
    load("write", start=1000, length=70_000, seed=2)
    load("write", start=9 * MIB, length=4 * MIB - 3, seed=3)
    load("zero", start=MIB + 7, length=300_001)
    offset = (await rig.checkpoint("one", volume))[volume]
    disk = qsd.files[0].read_bytes()
    load("write", start=0, length=4096, seed=4)
    image, state = await rig.replay(volume, 16 * MIB, offset)
    assert image == disk
    assert state.checkpoint == "one"
    assert state.gap_first_offset is None
    await rig.tell(ev.UnprotectRequested, volume=volume, purge=False)
    await rig.until("detached", lambda: rig.of(ev.CaptureDetached, volume))
    assert rig.of(ev.CaptureDetached, volume)[0].epoch == 1
    load.close()
    assert looks(qsd) == before
    image, _ = await rig.replay(volume, 16 * MIB)
    assert image == qsd.files[0].read_bytes()
