"""The diskbox daemon's parts on a real Kafka: written by the real writer, read back by strangers (qemu-img, nbdcopy)."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, running
from journal_model import JournalModel
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.infra.kafka.topics import CONTROL_TOPICS, JOURNAL_CONFIG, create_topics
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.qemu]


async def run_tool(*argv: str) -> bytes:
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (argv, err)
    return out


async def image_of(uri: str, directory: Path) -> bytes:
    """The export as qemu-img copies it."""
    target = directory / f"{uuid.uuid4()}.raw"
    await run_tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(target))
    data = target.read_bytes()
    target.unlink()
    return data


@pytest.fixture
async def site(kafka: str, short_dir: Path) -> AsyncIterator[DiskboxSite]:
    await create_topics(kafka, CONTROL_TOPICS)
    control = KafkaControlLog(kafka)
    await control.start()
    store = KafkaJournalStore(kafka, JOURNAL_CONFIG)
    site = DiskboxSite(short_dir, store, control)
    # one diskbox a test: the session's log also tells of the others
    site.box = f"box-{uuid.uuid4().hex[:8]}"
    async with running(site):
        yield site
    await store.close()
    await control.close()


async def protected(site: DiskboxSite, volume: str, **fields) -> JournalModel:
    model = JournalModel(size=1 << 20, seed=len(volume))
    await site.protect(volume, model, **fields)
    await site.created(volume)
    model.source[: 512 << 10] = model.random.randbytes(512 << 10)
    model.start_epoch()
    await site.publish(volume)
    await site.attach(volume)
    model.sync()
    model.some_writes(60)
    await site.publish(volume)
    return model


async def test_tools_see_every_offset_and_promote_is_exact(site: DiskboxSite, short_dir: Path) -> None:
    volume = f"v-{uuid.uuid4().hex[:8]}"
    model = await protected(site, volume)
    point = model.checkpoint("good")
    model.some_writes(20)
    await site.publish(volume)
    await site.caught_up(volume)
    earliest = site.status(volume)["earliest_offset"]
    offsets = sorted({earliest, point, model.last, *model.random.sample(range(earliest, model.last + 1), 8)})
    uris = {}
    for offset in offsets:
        fot = await site.fot(f"{volume}-{offset}", [volume], "offset", str(offset))
        assert fot.state == "started", fot.reason
        uris[offset] = fot.views[0]["uri"]
    for offset, uri in uris.items():
        assert await image_of(uri, short_dir) == model.image_at(offset), offset
        assert await run_tool("nbdcopy", uri, "-") == model.image_at(offset), offset
    assert b"base:allocation" in await run_tool("nbdinfo", uris[point])
    await run_tool("qemu-io", "-f", "raw", "-c", "write -P 0x5a 4097 9000", "-c", "flush", uris[point])
    await run_tool("qemu-io", "-f", "raw", "-c", "read -P 0x5a 4097 9000", uris[point])
    for offset in offsets:
        if offset != point:
            assert await image_of(uris[offset], short_dir) == model.image_at(offset), offset
        await site.stop_fot(f"{volume}-{offset}")
    copy = short_dir / "copy.raw"
    await site.promotion(f"{volume}-copy", [volume], "offset", str(offsets[1]), to=str(copy))
    assert (await site.promoted(f"{volume}-copy")).state == "promoted"
    assert copy.read_bytes() == model.image_at(offsets[1])
    await site.promotion(f"{volume}-p", [volume], "checkpoint", "good")
    await site.tell(ev.PromoteStarted, promotion=f"{volume}-p")
    promotion = await site.promoted(f"{volume}-p")
    assert promotion.state == "promoted", promotion.reason
    assert Path(promotion.plans[0]["path"]).read_bytes() == model.image_at(point)


async def test_a_restart_resumes_and_a_trimmed_journal_is_recognised(
    site: DiskboxSite, short_dir: Path
) -> None:
    volume = f"v-{uuid.uuid4().hex[:8]}"
    model = await protected(site, volume, history_seconds=0)
    await site.until(lambda _: site.status(volume)["applied_offset"] == model.last, "applied")
    await site.store.admin().delete_records(volume, model.last)
    await site.stop()
    model.some_writes(10)
    await site.publish(volume)
    await site.start()
    await site.until(lambda _: site.status(volume)["applied_offset"] == model.last, "applied again")
    assert Path(site.status(volume)["path"]).read_bytes() == model.image_at(model.last)
    fot = await site.fot(f"{volume}-f", [volume], "latest", "")
    assert await image_of(fot.views[0]["uri"], short_dir) == model.image_at(model.last)


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A file system of 768 KiB, smaller than the volume."""
    path = short_dir / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=768k", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_pauses_says_so_and_goes_on(small_disk: Path, site: DiskboxSite) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600 << 10))
    volume = f"v-{uuid.uuid4().hex[:8]}"
    model = await protected(site, volume, recovery=str(small_disk / "data.raw"), history_seconds=0)
    stopped = await site.until(lambda _: site.status(volume)["stopped"], "stopped")
    assert stopped["class"] == "StorageError"
    assert stopped["errno"] == errno.ENOSPC
    assert stopped["hint"]
    await site.caught_up(volume)
    assert site.status(volume)["head_offset"] == model.last
    await run_tool("mount", "-o", "remount,size=4m", str(small_disk))
    ballast.unlink()
    await site.until(lambda _: site.status(volume)["applied_offset"] == model.last, "applied")
    assert site.status(volume)["stopped"] is None
    assert (small_disk / "data.raw").read_bytes() == model.image_at(model.last)
    full = small_disk / "copy.raw"
    await run_tool("mount", "-o", "remount,size=1200k", str(small_disk))
    await site.promotion(f"{volume}-copy", [volume], "latest", "", to=str(full))
    promotion = await site.promoted(f"{volume}-copy")
    assert promotion.state == "failed"
    assert "No space left" in promotion.reason
    assert sorted(path.name for path in small_disk.iterdir()) == ["data.raw"]
