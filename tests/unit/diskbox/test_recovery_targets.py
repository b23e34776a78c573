"""A diskbox whose recovery volume is behind an NBD server or on a device: made, applied, promoted, given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, read_all, running
from journal_model import JournalModel
from recovery_servers import attach_loop, detach_loop, qemu_nbd
from rephub.core.control.memory import MemoryControlLog
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.targets import is_ours_to_delete, target_kind
from rephub.schemas import events as ev


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/srv/a.raw", "file"), ("/dev/shm/a.raw", "file"), ("/dev/sdb", "device"), ("/dev/disk/by-id/x", "device"),
        ("nbd://h:1/x", "nbd"), ("nbd+unix:///x?socket=/s", "nbd"), ("/devices/x", "file"),
    ],
)  # fmt: skip
def test_kinds(target: str, kind: str) -> None:
    assert target_kind(target) == kind
    assert is_ours_to_delete(target) is (kind == "file")


@pytest.fixture
def target(request, short_dir: Path):
    """(what --recovery says, the bytes behind it); 3 MiB larger than the volume."""
    disk = short_dir / "target"
    disk.write_bytes(bytes(JournalModel().size + (3 << 20)))
    if request.param == "device":
        device = attach_loop(disk)
        if device is None:
            pytest.skip("losetup gives no loop device here")
        yield str(device), disk
        detach_loop(device)
    else:
        server = qemu_nbd(short_dir, disk)
        yield server.uri, disk
        server.kill()


async def protected(site: DiskboxSite, recovery: str) -> JournalModel:
    model = JournalModel()
    await site.protect("v", model, recovery=recovery, history_seconds=0)
    assert await site.created("v") == recovery
    model.source[:] = model.random.randbytes(model.size)
    model.start_epoch()
    await site.publish("v")
    await site.attach("v")
    model.sync()
    model.some_writes(20)
    await site.publish("v")
    await site.caught_up("v")
    return model


@pytest.mark.qemu
@pytest.mark.parametrize("target", ["nbd", "device"], indirect=True)
async def test_protect_promote_purge(short_dir: Path, target) -> None:
    """The answer names the target; afterwards somebody else may use it; purge leaves what is on it."""
    name, disk = target
    async with running(DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog())) as site:
        model = await protected(site, name)
        point = model.checkpoint("good")
        await site.publish("v")
        await site.caught_up("v")
        fot = await site.fot("f", ["v"], "offset", str(point))
        assert await read_all(fot.views[0]["uri"]) == model.image_at(point)
        planned = await site.promotion("p", ["v"], "checkpoint", "good")
        assert planned.plans[0]["path"] == name
        await site.tell(ev.PromoteStarted, promotion="p")
        assert (await site.promoted("p")).state == "promoted"
        assert site.diskbox.volumes["v"].projector is not None, "a test looks at it"
        await site.stop_fot("f")
        await site.until(lambda _: site.diskbox.volumes["v"].projector is None, "let go")
        assert site.status("v")["path"] == name
        assert site.status("v")["applied_offset"] == point
        if "://" in name:
            assert (await read_all(name))[: model.size] == model.image_at(point)
        content = disk.read_bytes()
        assert content[: model.size] == model.image_at(point)
        assert not any(content[model.size :])
        await site.tell(ev.UnprotectRequested, volume="v", purge=True)
        await site.until(lambda catalogue: catalogue.volumes["v"].released, "released")
        assert disk.read_bytes() == content
        assert not (short_dir / "diskbox/box/volumes/v").exists()
        await site.tell(ev.Unprotected, volume="v", purged=True)
        # nobody's any more: what is on it keeps it from being taken
        await site.protect("w", JournalModel(), recovery=name)
        await site.until(lambda catalogue: catalogue.volumes["w"].unprotect_id, "refused")
        assert "not empty" in site.diskbox.catalogue.volumes["w"].reason
        await site.until(lambda catalogue: catalogue.volumes["w"].released, "released")
    assert disk.read_bytes() == content
    assert not (short_dir / "diskbox/box/volumes/w").exists()


@pytest.mark.qemu
async def test_a_server_that_is_away_when_the_diskbox_starts(short_dir: Path) -> None:
    disk = short_dir / "target"
    disk.write_bytes(bytes(JournalModel().size))
    server = qemu_nbd(short_dir, disk)
    site = DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog())
    async with running(site):
        model = await protected(site, server.uri)
    server.kill()
    async with running(site):
        reason = await site.until(lambda catalogue: catalogue.volumes["v"].stopped, "said to be stopped")
        assert "recovery volume nbd+unix" in reason
        server.start()
        await site.until(lambda catalogue: not catalogue.volumes["v"].stopped, "said to go on")
        await site.caught_up("v")
        fot = await site.fot("f", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)
    server.kill()
