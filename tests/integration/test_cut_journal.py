"""A broker that lost acked events, and gives their offsets to others: a power cut does that to one that runs alone.

The log file of a killed broker is cut. A real agent and a real diskbox, which was reading along, find it out.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Rig, fresh
from diskbox_site import DiskboxSite, read_all, running
from qsd import Load, StorageDaemon
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import RephubError
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.names import journal_topic
from rephub.infra.kafka.broker import Broker
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 4 * MIB
SECONDS = 60.0


@pytest.fixture
def broker(new_broker: Callable[[], Broker]) -> Broker:
    broker = new_broker()
    broker.start()
    return broker


@pytest.fixture
async def rig(short_dir: Path, broker: Broker, redis_url: str) -> AsyncIterator[Rig]:
    rig = Rig(short_dir, broker.bootstrap, redis_url)
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


@pytest.fixture
async def site(rig: Rig, short_dir: Path, broker: Broker) -> AsyncIterator[DiskboxSite]:
    control, store = KafkaControlLog(broker.bootstrap), KafkaJournalStore(broker.bootstrap, JOURNAL_CONFIG)
    await control.start()
    site = DiskboxSite(short_dir, store, control)
    # The rig plays another one.
    site.box = fresh("box")
    async with running(site):
        yield site
    await store.close()
    await control.close()


def log_file(broker: Broker, volume: str) -> Path:
    return broker.directory / "data" / f"{journal_topic(volume)}-0" / f"{0:020}.log"


@pytest.mark.parametrize("notes", ["kept", "lost"])
async def test_offsets_that_are_given_out_again_are_recognised(
    rig: Rig, site: DiskboxSite, broker: Broker, qsd: StorageDaemon, notes: str
) -> None:
    """With QEMU's notes of what was written, and without: then the diskbox is asked to compare, and stops meanwhile."""
    volume, load = fresh(), Load(qsd.uri())
    load("write", start=0, length=MIB, seed=1)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE, diskbox=site.box)
    await rig.protected(volume)
    kept_offset = (await rig.checkpoint(fresh("kept"), volume))[volume]
    kept_bytes = log_file(broker, volume).stat().st_size
    for number in range(20):
        load("write", start=2 * MIB + number * 4096, length=4096, seed=number)
    lost_offset = (await rig.checkpoint(fresh("lost"), volume))[volume]
    assert lost_offset >= kept_offset + 20
    await site.until(lambda _: site.status(volume)["latest_offset"] >= lost_offset, "all of it")
    fot = await site.fot(fresh("fot"), [volume], "offset", str(lost_offset))
    was = qsd.files[0].read_bytes()

    # This process, and the diskbox in it, stand still until others have the offsets.
    broker.kill()
    if notes == "lost":
        for node in qsd.execute("query-named-block-nodes")["return"]:
            names = [bitmap["name"] for bitmap in node.get("dirty-bitmaps", ()) if "name" in bitmap]
            for name in names:
                qsd.execute("block-dirty-bitmap-remove", node=node["node-name"], name=name)
    os.truncate(log_file(broker, volume), kept_bytes)
    broker.start()
    number = 0
    while (rig.volume_status(volume).get("acked_offset") or 0) <= lost_offset + 20 or not rig.volume_status(
        volume
    )["attached"]:
        load("write", start=3 * MIB + number % 200 * 4096, length=4096, seed=100 + number)
        number += 1

    try:
        seen = await read_all(fot.views[0]["uri"])
    except (RephubError, OSError):
        seen = was
    assert seen == was, "what was never there at that point is shown"
    await rig.until("said", lambda: rig.of(ev.VolumeStopped, volume), SECONDS)
    stopped = rig.of(ev.VolumeStopped, volume)[0]
    assert "diverged" in stopped.error
    assert "lost its end" in stopped.error
    attached = rig.of(ev.FilterAttached, volume)[-1]
    assert attached.epoch > 1
    await rig.tell(ev.ResyncRequested, volume=volume)
    await rig.until("resync", lambda: rig.of(ev.FilterAttached, volume)[-1].epoch > attached.epoch, SECONDS)
    await rig.protected(volume, SECONDS)
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    await site.until(lambda _: site.status(volume)["latest_offset"] >= offset, "the checkpoint")
    again = await site.fot(fresh("fot"), [volume], "latest", "")
    assert again.state == "started", again.reason
    assert await read_all(again.views[0]["uri"]) == qsd.files[0].read_bytes()
    assert (await site.fot(fresh("fot"), [volume], "offset", str(kept_offset))).state == "failed"
    load.close()
