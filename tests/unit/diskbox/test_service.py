"""The diskbox on the memory adapters: what it makes of the catalogue, with real files and real NBD."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, protected, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox import copying, promotions
from rephub.consumers.diskbox import overlay as overlay_module
from rephub.consumers.diskbox.fots import Limits
from rephub.consumers.diskbox.status import status_document, timeline_document
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.control.memory import MemoryControlLog
from rephub.core.documents import checksum
from rephub.core.errors import RequestError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.names import EVENTS_TOPIC, ack_key, diskbox_lease_key
from rephub.core.nbd.client import NbdClient
from rephub.schemas import events as ev


def make_site(short_dir: Path, **options) -> DiskboxSite:
    return DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog(), **options)


async def test_fots_at_many_offsets_are_isolated_and_leave_nothing(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        named = model.checkpoint("before")
        model.some_writes(10)
        await site.publish("v")
        offsets = [named, named - 3, named + 5, model.last]
        tests = [
            await site.fot(f"f{number}", ["v"], "offset", str(offset))
            for number, offset in enumerate(offsets)
        ]
        tests.append(await site.fot("named", ["v"], "checkpoint", "before"))
        offsets.append(named)
        assert tests[-1].views[0]["checkpoint"] == "before"
        clients = []
        for fot, offset in zip(tests, offsets, strict=True):
            assert fot.state == "started", fot
            assert fot.views[0]["offset"] == offset
            assert await read_all(fot.views[0]["uri"]) == model.image_at(offset)
            clients.append(await NbdClient.connect_uri(fot.views[0]["uri"]))
        images = [bytearray(model.image_at(offset)) for offset in offsets]
        for number, (client, image) in enumerate(zip(clients, images, strict=True)):
            data = bytes([number + 1]) * (5000 + number)
            await client.write(1000 * number + 7, data)
            image[1000 * number + 7 : 1000 * number + 7 + len(data)] = data
            await client.zero(100_000, 70_001 + number)
            image[100_000 : 170_001 + number] = bytes(70_001 + number)
            await client.flush()
        model.some_writes(10)
        await site.publish("v")
        for client, image in zip(clients, images, strict=True):
            assert bytes(await client.read(0, model.size)) == bytes(image)
            await client.close()
        latest = await site.fot("latest", ["v"], "latest", "", read_only=True)
        assert latest.views[0]["offset"] == model.last
        assert await read_all(latest.views[0]["uri"]) == model.image_at(model.last)
        client = await NbdClient.connect_uri(latest.views[0]["uri"])
        assert client.read_only
        await client.close()
        assert len(status_document(site.diskbox)["fots"]) == 6
        for fot in [*tests, latest]:
            await site.stop_fot(fot.name)
        assert status_document(site.diskbox)["fots"] == []
        assert list((short_dir / "s").iterdir()) == []
        assert [path for path in (short_dir / "diskbox/box/fots").rglob("*") if path.is_file()] == []
        assert site.status("v")["pins"] == {}


async def test_views_stay_open_until_the_recovery_vm_has_let_go(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        await protected(site)
        fot = await site.fot("f", ["v"], "latest", "", qmp="/vm1r", agent="a1")
        await site.tell(ev.FotAttached, fot="f", agent="a1")
        await site.tell(ev.FotStopRequested, fot="f")
        await site.until(lambda catalogue: catalogue.fots["f"].state == "stopping", "stopping")
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        # Later events are acted on, this one is not.
        await site.fot("g", ["v"], "latest", "")
        assert len(await client.read(0, 4096)) == 4096
        await client.close()
        await site.tell(ev.FotDetached, fot="f", agent="a1")
        await site.until(lambda catalogue: catalogue.fots["f"].state == "stopped", "stopped")
        assert [fot["fot"] for fot in status_document(site.diskbox)["fots"]] == ["g"]


async def test_a_point_that_is_not_there_names_the_nearest(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        earliest = site.status("v")["earliest_offset"]
        for kind, value, exit_code, nearest in [
            ("offset", str(earliest - 1), "PointNotAvailableError", earliest),
            ("offset", str(model.last + 1), "PointNotAvailableError", model.last),
            ("time", str(model.at - 10**12), "PointNotAvailableError", earliest),
            ("checkpoint", "nobody", "NotFoundError", None),
            ("offset", "x", "UsageError", None),
        ]:
            request = await site.control.next_offset("rephub.events")
            fot = await site.fot(f"f-{kind}-{value}", ["v"], kind, value)
            assert fot.state == "failed"
            failed = [
                record
                for _, record in await site.control.read(
                    "rephub.events", request, await site.control.next_offset("rephub.events")
                )
                if isinstance(record, ev.FotFailed)
            ]
            error = json.loads(failed[0].error)
            assert error["class"] == exit_code
            assert error.get("nearest_offset") == nearest
        fot = await site.fot("unknown", ["w"], "latest", "")
        assert fot.state == "failed"


async def test_the_scratch_limit_is_enospc_and_nothing_else_breaks(short_dir) -> None:
    async with running(make_site(short_dir, limits=Limits(16 * 4096, 0, save=True))) as site:
        model = await protected(site)
        fot = await site.fot("f", ["v"], "latest", "")
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        await client.write(0, b"a" * 16 * 4096)
        with pytest.raises(RequestError) as caught:
            await client.write(17 * 4096, b"b")
        assert caught.value.errno == errno.ENOSPC
        await client.write(4096, b"c" * 4096)
        image = bytearray(model.image_at(model.last))
        image[: 16 * 4096] = b"a" * 16 * 4096
        image[4096:8192] = b"c" * 4096
        assert bytes(await client.read(0, model.size)) == bytes(image)
        await client.close()


async def test_two_volumes_open_at_one_checkpoint_or_not_at_all(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        one, two = await protected(site, "one", 1), await protected(site, "two", 2)
        marks = {"one": one.checkpoint("c1"), "two": two.checkpoint("c1")}
        await site.checkpoint("c1", marks)
        one.checkpoint("only-one")
        # Markers of a checkpoint that became void: they need not be of one instant.
        void = {"one": one.checkpoint("void"), "two": two.checkpoint("void")}
        await site.checkpoint("void", {})
        for name in marks:
            site.models[name].some_writes(4)
            await site.publish(name)
        for number, name in enumerate(("only-one", "void", "unheard-of")):
            failed = await site.fot(f"f{number}", ["one", "two"], "checkpoint", name)
            assert failed.state == "failed"
        alone = await site.fot("alone", ["one"], "offset", str(void["one"]))
        assert alone.views[0]["checkpoint"] is None, "a point like any other"
        await site.stop_fot("alone")
        listed = [mark["checkpoint"] for mark in timeline_document(site.diskbox, "two")["checkpoints"]]
        assert listed == ["c1"]
        assert site.status("one")["pins"] == {}
        for kind, value in [("checkpoint", "c1"), ("latest", "")]:
            fot = await site.fot(f"f-{kind}", ["one", "two"], kind, value)
            assert {view["volume"]: view["offset"] for view in fot.views} == marks
            for view in fot.views:
                assert await read_all(view["uri"]) == site.models[view["volume"]].image_at(view["offset"])


async def test_a_window_that_the_byte_limit_cuts_is_said_once_and_until_it_is_whole(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site, history_seconds=1000, history_bytes=1 << 30)

        async def write(seconds: int) -> None:
            """Forty seconds' worth in so many seconds."""
            for _ in range(seconds):
                model.at += 1_000_000
                model.some_writes(1)
            await site.publish("v")
            await site.caught_up("v")

        async def short(wanted: bool) -> None:
            await site.until(
                lambda catalogue: catalogue.volumes["v"].history_short is wanted, f"short: {wanted}"
            )

        await write(40)
        assert not site.diskbox.catalogue.volumes["v"].history_short, "young, and nothing was given up"
        await site.tell(ev.HistorySet, volumes=("v",), history_bytes=4 << 10)
        await short(wanted=True)
        assert site.status("v")["window_seconds"] < 40
        await write(40)
        await site.tell(ev.HistorySet, volumes=("v",), history_seconds=20, history_bytes=1 << 30)
        await write(40)
        await short(wanted=False)
        head = await site.control.next_offset(EVENTS_TOPIC)
        told = [type(event).__name__ for _offset, event in await site.control.read(EVENTS_TOPIC, 0, head)]
        assert told.count("HistoryShortened") == told.count("HistoryRestored") == 1
        await write(40)
        assert not site.diskbox.volumes["v"].projector.cut, "time gives points up too"


async def test_a_checkpoint_that_the_window_has_passed_is_said_to_be(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site, history_seconds=86400, history_bytes=4 << 10)
        offset = model.checkpoint("old")
        await site.publish("v")
        await site.checkpoint("old", {"v": offset})
        fot = await site.fot("f1", ["v"], "checkpoint", "old")
        assert fot.views[0]["offset"] == offset
        await site.stop_fot("f1")
        model.some_writes(40)
        await site.publish("v")
        await site.until(lambda catalogue: catalogue.checkpoints["old"].state == "expired", "expired")
        assert site.status("v")["earliest_offset"] > offset
        fot = await site.fot("f2", ["v"], "checkpoint", "old")
        assert "before the earliest point" in fot.reason


async def test_after_a_restart_tests_show_the_same_bytes_at_the_same_place(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site, history_seconds=1)
        offset = model.last - 3
        fot = await site.fot("f", ["v"], "offset", str(offset))
        look = await site.fot("look", ["v"], "offset", str(offset), read_only=True)
        ended = await site.fot("ended", ["v"], "offset", str(offset))
        await site.stop_fot(ended.name)
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        await client.write(5000, b"a" * 4096)
        await client.close()
        image = bytearray(model.image_at(offset))
        image[5000:9096] = b"a" * 4096
    model.at += 10**9
    model.some_writes(20)
    await site.publish("v")
    async with running(site):
        await site.until(lambda _: len(site.diskbox.fots.open) == 2, "served again")
        await site.caught_up("v")
        assert await read_all(fot.views[0]["uri"]) == bytes(image)
        assert await read_all(look.views[0]["uri"]) == model.image_at(offset)
        assert site.status("v")["intent_offset"] <= offset
        await site.stop_fot("f")
        await site.stop_fot("look")
        await site.until(lambda _: site.status("v")["intent_offset"] > offset, "the floor goes on")
        assert list((short_dir / "diskbox/box/fots").iterdir()) == []


@pytest.mark.parametrize("damage", ["boot", "file", "journal"])
async def test_a_test_that_cannot_be_as_it_was_is_over_and_says_why(short_dir, monkeypatch, damage) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        await site.fot("f", ["v"], "latest", "")
    if damage == "boot":
        (short_dir / "boot").write_text("another")
        monkeypatch.setattr(overlay_module, "BOOT_ID", short_dir / "boot")
    elif damage == "file":
        (path,) = (short_dir / "diskbox/box/fots").glob("*/v.json")
        path.write_bytes(b"{}")
    else:
        (path,) = (short_dir / "diskbox/box/fots").glob("*/v.json")
        document = json.loads(path.read_bytes())
        document["identity"]["point"] = "1/2/deadbeef"
        del document["crc32c"], document["format"]
        path.write_text(json.dumps({"format": 1, "crc32c": checksum(document), **document}))
    async with running(site):
        stopped = await site.until(
            lambda catalogue: catalogue.fots["f"].state == "stopped" and catalogue.fots["f"], "stopped"
        )
        assert stopped.reason.startswith("diskbox restarted: ")
        assert {"boot": "anew", "file": "damaged", "journal": "something else"}[damage] in stopped.reason
        assert list((short_dir / "diskbox/box/fots").iterdir()) == []
        assert site.status("v")["pins"] == {}
        await site.caught_up("v")
        fot = await site.fot("g", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)


async def test_promote_fences_applies_exactly_and_a_new_protection_takes_over(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        point = model.checkpoint("good")
        model.some_writes(12)
        await site.publish("v")
        dry = await site.promotion("dry", ["v"], "checkpoint", "good", dry_run=True)
        assert dry.state == "planned"
        assert dry.plans[0]["lost_events"] == 12
        assert dry.plans[0]["events"] > 0
        assert site.status("v")["pins"] == {}
        low = await site.fot("low", ["v"], "offset", str(point - 1))
        high = await site.fot("high", ["v"], "latest", "")
        refused = await site.promotion("p0", ["v"], "checkpoint", "good")
        assert refused.state == "failed"
        assert "low" in refused.reason
        await site.stop_fot(low.name)
        planned = await site.promotion("p1", ["v"], "checkpoint", "good")
        assert planned.plans[0]["path"] == site.status("v")["path"]
        latest = model.last
        await site.tell(ev.PromoteStarted, promotion="p1")
        await site.tell(ev.CaptureDetached, volume="v", epoch=model.epoch)
        promotion = await site.promoted("p1")
        assert promotion.state == "promoted", promotion
        path = Path(promotion.plans[0]["path"])
        assert path.read_bytes() == model.image_at(point)
        assert await read_all(high.views[0]["uri"]) == model.image_at(latest)
        assert site.status("v")["latest_offset"] is None
        assert (await site.fot("late", ["v"], "latest", "")).state == "failed"
    async with running(site):
        assert path.read_bytes() == model.image_at(point)
        reader = site.store.reader("v")
        fence_offset = await reader.next_offset() - 1
        assert fence_offset == latest + 1
        # the model learns of the fence; a record of the old epoch lands late
        stale = JournalModel()
        stale.epoch, stale.attachment, stale.seq = model.epoch, model.attachment, model.seq
        stale.write(0, b"stale" * 100)
        model.values += [(await reader.fetch(fence_offset))[0].value, stale.values[0]]
        model.images += [model.images[-1]] * 2
        site.published["v"] += 1
        await site.publish("v")
        await site.protect("v", model)
        assert await site.created("v") == str(path)
        model.epoch += 1
        model.start_epoch("protect again")
        await site.publish("v")
        await site.attach("v")
        model.some_writes(2)
        done = model.sync()
        model.some_writes(5)
        await site.publish("v")
        await site.caught_up("v")
        assert site.status("v")["earliest_offset"] == done
        for offset in (done, model.last):
            fot = await site.fot(f"f{offset}", ["v"], "offset", str(offset))
            assert await read_all(fot.views[0]["uri"]) == model.image_at(offset)


async def test_promote_to_a_copy_ends_nothing(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        target = short_dir / "copy.raw"
        point = model.last - 5
        await site.promotion("p1", ["v"], "offset", str(point), to=str(target))
        promotion = await site.promoted("p1")
        assert promotion.state == "promoted", promotion
        assert promotion.plans[0]["path"] == str(target)
        assert target.read_bytes() == model.image_at(point)
        await site.promotion("p2", ["v"], "latest", "", to=str(target))
        assert (await site.promoted("p2")).state == "failed"
        assert target.read_bytes() == model.image_at(point)
        assert [path.name for path in short_dir.iterdir() if path.is_file()] == ["copy.raw"]
        model.some_writes(3)
        await site.publish("v")
        await site.caught_up("v")
        assert site.status("v")["latest_offset"] == model.last
        assert site.status("v")["pins"] == {}


async def test_a_promotion_goes_on_after_a_kill(short_dir) -> None:
    site = make_site(short_dir, detach_seconds=30)
    async with running(site):
        model = await protected(site)
        point = model.last - 8
        await site.promotion("p1", ["v"], "offset", str(point))
        await site.tell(ev.PromoteStarted, promotion="p1")
        await site.until(lambda catalogue: catalogue.promotions["p1"].state == "started", "started")
    async with running(site):
        assert site.status("v")["pins"] == {"promote:p1": point}
        await site.tell(ev.CaptureDetached, volume="v", epoch=model.epoch)
        promotion = await site.promoted("p1")
        assert promotion.state == "promoted", promotion
        assert Path(promotion.plans[0]["path"]).read_bytes() == model.image_at(point)


@pytest.mark.parametrize("purge", [True, False])
async def test_release_keeps_or_deletes(short_dir, purge) -> None:
    async with running(make_site(short_dir)) as site:
        await protected(site)
        fot = await site.fot("f", ["v"], "latest", "")
        path = Path(site.status("v")["path"])
        await site.tell(ev.UnprotectRequested, volume="v", purge=purge)
        await site.until(lambda catalogue: catalogue.volumes["v"].released, "released")
        assert path.exists() != purge
        assert path.parent.exists() != purge
        assert site.diskbox.catalogue.fots[fot.name].state == "stopped"


async def test_foreign_data_are_refused_and_untouched(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        taken = short_dir / "mine.img"
        taken.write_bytes(b"precious")
        missing = short_dir / "no/such/directory/x.raw"
        for name, path in [("v", taken), ("w", missing), ("x", Path("relative.raw"))]:
            await site.protect(name, JournalModel(), recovery=str(path))
            volume = await site.until(
                lambda catalogue, name=name: catalogue.volumes[name].unprotect_id and catalogue.volumes[name],
                "failed",
            )
            await site.until(lambda catalogue, name=name: catalogue.volumes[name].released, "released")
            assert "protect failed" in volume.reason
        assert taken.read_bytes() == b"precious"
        assert list((short_dir / "diskbox/box/volumes").iterdir()) == []
        own = short_dir / "own.raw"
        own.touch()
        model = await protected(site, "y", recovery=str(own))
        await site.until(lambda _: site.status("y")["applied_offset"] is not None, "applied")
        assert own.stat().st_size == model.size


async def test_status_and_timeline(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        named = model.checkpoint("c")
        gap = model.start_epoch("agent restarted")
        model.some_writes(3)
        closed = model.sync()
        await site.publish("v")
        await site.caught_up("v")
        document = timeline_document(site.diskbox, "v")
        json.dumps(document)
        kinds = [(item["first_offset"], item["last_offset"], item["kind"]) for item in document["ranges"]]
        earliest = site.status("v")["earliest_offset"]
        assert kinds == [
            (earliest, gap - 1, "restorable"),
            (gap, closed - 1, "gap"),
            (closed, model.last, "restorable"),
        ]
        assert [mark["offset"] for mark in document["checkpoints"]] == [named]
        assert document["epochs"][-1]["epoch"] == model.epoch
        status = site.status("v")
        json.dumps(status_document(site.diskbox))
        assert status["latest_offset"] == status["head_offset"] == model.last
        assert status["stopped"] is None
        await site.until(
            lambda _: site.bitmaps._acks.get("v", {}).get("applied_offset") == status["applied_offset"], "ack"
        )
        assert diskbox_lease_key("box") in site.bitmaps._leases
        assert ack_key("v")
        site.bitmaps.unavailable = True
        model.some_writes(3)
        await site.publish("v")
        await site.caught_up("v")


async def test_a_diverged_journal_is_joined_again_by_a_resync(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site, history_seconds=0)
        await site.until(lambda _: site.status("v")["applied_offset"] == model.last, "applied")
    cut = model.last - 4
    await site.store.truncate("v", cut)
    del model.values[cut:], model.images[cut:]
    site.published["v"] = cut
    async with running(site):
        await site.until(lambda catalogue: catalogue.volumes["v"].state == "failed", "failed")
        assert "diverged" in site.status("v")["stopped"]["message"]
        assert (await site.fot("f", ["v"], "latest", "")).state == "failed"
        await site.tell(ev.ResyncRequested, volume="v")
        model.start_epoch("resync")
        await site.publish("v")
        await site.attach("v")
        model.some_writes(2)
        model.sync()
        model.some_writes(2)
        await site.publish("v")
        await site.caught_up("v")
        fot = await site.fot("g", ["v"], "latest", "")
        assert fot.state == "started", fot.reason
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)
        assert site.status("v")["stopped"] is None
        assert Path(site.status("v")["path"]).stat().st_size == model.size


async def test_a_promote_is_given_up_until_all_is_applied(short_dir) -> None:
    async with running(make_site(short_dir, detach_seconds=60.0)) as site:
        model = await protected(site)
        await site.promotion("p", ["v"], "latest", "")
        await site.tell(ev.PromoteStarted, promotion="p")
        await site.tell(ev.PromoteCancelRequested, promotion="p")
        ended = await site.promoted("p")
        assert (ended.state, ended.reason) == ("failed", "the promote was cancelled")
        assert site.status("v")["pins"] == {}
        model.some_writes(5)
        await site.publish("v")
        await site.caught_up("v")
        fot = await site.fot("after", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)


async def test_a_copy_is_given_up_and_leaves_nothing(short_dir, monkeypatch) -> None:
    async with running(make_site(short_dir)) as site:
        await protected(site)
        copied = asyncio.Event()
        read = View.read

        async def slowly(self, start, length):
            await copied.wait()
            return await read(self, start, length)

        monkeypatch.setattr(View, "read", slowly)
        monkeypatch.setattr(copying, "CHUNK_BYTES", 4096)
        target = short_dir / "copy.raw"
        await site.promotion("p", ["v"], "latest", "", to=str(target))
        await site.until(lambda _: status_document(site.diskbox)["promotions"], "copying")
        await site.tell(ev.PromoteCancelRequested, promotion="p")
        await site.until(lambda catalogue: catalogue.promotions["p"].cancel_id, "asked")
        copied.set()
        assert (await site.promoted("p")).reason == "the promote was cancelled"
        assert [path.name for path in short_dir.iterdir() if "copy.raw" in path.name] == []
        assert status_document(site.diskbox)["promotions"] == []


async def test_a_plan_says_what_it_covers(short_dir) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        model.checkpoint("named")
        model.some_writes(3)
        await site.publish("v")
        await site.caught_up("v")
        await site.until(lambda _: site.status("v")["applied_offset"], "something is applied")
        (plan,) = (await site.promotion("p", ["v"], "latest", "", dry_run=True)).plans
        assert plan["last_checkpoint"] == "named"
        assert plan["applied_from_at"] <= plan["captured_at"]


async def test_a_cancel_between_the_volumes_of_a_group_comes_too_late(short_dir, monkeypatch) -> None:
    """One is marked, the process dies, somebody cancels: all are promoted, or none would have been."""
    site = make_site(short_dir)
    async with running(site):
        models = {name: await protected(site, name, seed) for seed, name in enumerate(("v", "w"))}
        offsets = {name: model.checkpoint("both") for name, model in models.items()}
        for name in models:
            await site.publish(name)
            await site.caught_up(name)
        await site.checkpoint("both", offsets)
        mark, dies = BoxVolume.mark_promoted, asyncio.Event()

        async def mark_or_die(self, promotion, offset):
            if self.name == "w" and not dies.is_set():
                dies.set()
                raise RuntimeError("killed")
            await mark(self, promotion, offset)

        monkeypatch.setattr(BoxVolume, "mark_promoted", mark_or_die)
        # The death of a process undoes nothing.
        monkeypatch.setattr(promotions, "_undo", lambda _box: asyncio.sleep(0))
        await site.promotion("p", ["v", "w"], "checkpoint", "both", group="g")
        await site.tell(ev.PromoteStarted, promotion="p")
        await dies.wait()
        await asyncio.wait([site.task])
        monkeypatch.undo()
        await site.tell(ev.PromoteCancelRequested, promotion="p")
        await site.start()
        ended = await site.promoted("p")
        assert ended.state == "promoted", ended
        for plan in ended.plans:
            assert Path(plan["path"]).read_bytes() == models[plan["volume"]].image_at(offsets[plan["volume"]])
