"""A diskbox that was called lost and lives: what went elsewhere it lets go of, what nobody took goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox.status import status_document
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import UnavailableError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.schemas import events as ev


def make_site(short_dir: Path) -> DiskboxSite:
    return DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog())


async def protected(site: DiskboxSite, volume: str = "v") -> JournalModel:
    model = JournalModel(seed=1)
    await site.protect(volume, model)
    await site.created(volume)
    model.start_epoch()
    await site.publish(volume)
    await site.attach(volume)
    model.sync()
    model.some_writes(20)
    await site.publish(volume)
    await site.caught_up(volume)
    return model


async def lose(site: DiskboxSite) -> None:
    lost_id = await site.tell(ev.DiskboxLost, diskbox="box", reason="silent", off=False)
    await site.until(lambda catalogue: catalogue.knows_event(lost_id), "lost")


async def announce(site: DiskboxSite, name: str) -> None:
    await site.tell(ev.DiskboxAnnounced, diskbox=name, host="h", pid=1, url="", capacity=9)


async def take_over(site: DiskboxSite, volume: str, by: str) -> str:
    return await site.tell(ev.VolumePlaced, volume=volume, diskbox=by, previous_diskbox="box")


async def complete(site: DiskboxSite, volume: str, by: str) -> None:
    model = site.models[volume]
    await site.tell(
        ev.RecoveryVolumeCreated, volume=volume, diskbox=by, path="/there", size_bytes=model.size,
        first_offset=model.last + 1,
    )  # fmt: skip
    model.start_epoch()
    await site.attach(volume)
    await site.tell(ev.SyncRequested, volume=volume, epoch=model.epoch)
    await site.tell(ev.VolumeSyncCompleted, volume=volume, epoch=model.epoch, offset=model.last)


async def test_it_stops_serving_at_once_and_deletes_when_the_new_copy_is_complete(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        await protected(site)
        await announce(site, "other")
        fot = await site.fot("f", ["v"], "latest", "")
        box = site.diskbox.volumes["v"]
        # Lost and placed in one go, as it reads them after a pause.
        await site.tell(ev.DiskboxLost, diskbox="box", reason="silent", off=False)
        placed = await take_over(site, "v", "other")
        await site.until(lambda catalogue: catalogue.volumes["v"].placed_id == placed, "placed")
        await site.until(lambda _: "v" not in site.diskbox.volumes, "let go")
        assert status_document(site.diskbox)["volumes"] == {}
        await site.until(lambda _: box.projector is None, "nothing is applied any more")
        with pytest.raises(UnavailableError):
            await read_all(fot.views[0]["uri"])
        assert site.diskbox.catalogue.fots["f"].state == "stopped"
        copy = short_dir / "diskbox/box/volumes/v"
        assert copy.exists(), "it may be the last one"
        await site.until(lambda catalogue: not catalogue.diskboxes["box"].lost, "there again")
        await complete(site, "v", "other")
        await site.until(lambda _: not copy.exists(), "deleted")
        assert site.diskbox.catalogue.volumes["v"].state == "protected"
        await protected(site, "w")


async def test_a_new_process_neither_opens_nor_applies_and_deletes(short_dir: Path) -> None:
    site = make_site(short_dir)
    async with running(site):
        await protected(site)
        projector = site.diskbox.volumes["v"].projector
        assert projector is not None
        applier = projector.applier
        await site.until(
            lambda _: applier.applied_offset == applier.intent_offset == projector.floor_offset > 0, "at rest"
        )
    await announce(site, "other")
    await site.tell(ev.DiskboxLost, diskbox="box", reason="silent", off=False)
    await take_over(site, "v", "other")
    copy = short_dir / "diskbox/box/volumes/v"
    before = (copy / "data.raw").read_bytes(), (copy / "position.json").read_bytes()
    async with running(site):
        await protected(site, "w")
        assert "v" not in site.diskbox.volumes
        assert ((copy / "data.raw").read_bytes(), (copy / "position.json").read_bytes()) == before
        await complete(site, "v", "other")
        await site.until(lambda _: not copy.exists(), "deleted")


async def test_what_nobody_took_goes_on(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        await lose(site)
        await site.until(lambda catalogue: catalogue.volumes["v"].stopped == "", "resumed")
        assert site.diskbox.catalogue.volumes["v"].state != "failed"
        assert not site.diskbox.catalogue.diskboxes["box"].lost
        fot = await site.fot("f", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)
        await lose(site)
        await site.until(lambda catalogue: catalogue.volumes["v"].stopped == "", "resumed again")


async def test_it_takes_over_from_a_lost_one(short_dir: Path) -> None:
    """In the middle of an attachment that it cannot know; the older points are gone and the timeline says so."""
    store, control = MemoryJournalStore(), MemoryControlLog()
    old = DiskboxSite(short_dir / "old", store, control)
    async with running(old):
        model = await protected(old)
    new = DiskboxSite(short_dir / "new", store, control)
    new.box, new.models, new.published = "other", old.models, old.published
    async with running(new):
        await new.tell(ev.DiskboxLost, diskbox="box", reason="silent", off=False)
        placed = await new.tell(ev.VolumePlaced, volume="v", diskbox="other", previous_diskbox="box")
        path = await new.until(
            lambda catalogue: (v := catalogue.volumes["v"]).placed_id == placed and v.path, "made"
        )
        assert "/new/" in path
        first = model.last + 1
        assert new.diskbox.catalogue.volumes["v"].made_offset == first
        model.some_writes(10)
        await new.publish("v")
        await new.caught_up("v")
        assert new.status("v")["latest_offset"] is None
        assert new.status("v")["gap_reason"] == "diskbox box was lost"
        model.start_epoch()
        await new.publish("v")
        await new.attach("v")
        model.sync()
        model.some_writes(10)
        await new.publish("v")
        await new.caught_up("v")
        assert new.status("v")["earliest_offset"] > first
        fot = await new.fot("f", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)


async def test_only_the_owner_deletes_records(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        await protected(site)
        await announce(site, "other")
        owns = site.diskbox._ownership.owns
        assert await owns("v")
        assert not await owns("w")
        # In the log, and not in the catalogue yet.
        await site.tell(ev.DiskboxLost, diskbox="box", reason="silent", off=False)
        await take_over(site, "v", "other")
        assert not await owns("v")
