"""Fail-overs on a diskbox: the VM's view of the volume is right at every moment, also after a kill at any of them."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path
from typing import Any

import pytest

from diskbox_site import DiskboxSite, protected, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox import overlay as overlay_module
from rephub.consumers.diskbox.failover_view import FailoverView, RecoveryBase
from rephub.consumers.diskbox.failovers import CRASH_POINTS
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.recovery import RawFile
from rephub.consumers.diskbox.status import status_document
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import RequestError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.nbd.client import NbdClient
from rephub.projections.view import BLOCK_BYTES
from rephub.schemas import events as ev

FENCE_EPOCHS = 1


def make_site(short_dir: Path, **options: Any) -> DiskboxSite:
    return DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog(), **options)


class Guest:
    """A VM's writes to a view, and what it must find."""

    def __init__(self, uri: str, image: bytes) -> None:
        self.uri, self.image = uri, bytearray(image)
        self.random = random.Random(5)

    async def writes(self, count: int = 10) -> None:
        client = await NbdClient.connect_uri(self.uri)
        for number in range(count):
            length = self.random.choice([1, 700, 4096, 9000])
            start = self.random.randrange(len(self.image) - length)
            if number % 4 == 3:
                await client.zero(start, length)
                self.image[start : start + length] = bytes(length)
            else:
                data = self.random.randbytes(length)
                await client.write(start, data)
                self.image[start : start + length] = data
        await client.flush()
        await client.close()

    async def check(self) -> None:
        assert await read_all(self.uri) == bytes(self.image)


async def opened(site: DiskboxSite, model: JournalModel, offset: int) -> Guest:
    found = await site.failover("f", ["v"], "offset", str(offset))
    assert found.state == "opened", found
    assert found.views[0]["offset"] == offset
    guest = Guest(found.views[0]["uri"], model.image_at(offset))
    await guest.check()
    return guest


async def folded(site: DiskboxSite) -> None:
    await site.until(lambda catalogue: catalogue.failovers["f"].folded, "folded")


def file_of(site: DiskboxSite) -> bytes:
    return Path(site.diskbox.catalogue.volumes["v"].path).read_bytes()


async def test_a_vm_runs_at_once_and_in_the_end_from_the_recovery_volume_alone(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        guest = await opened(site, model, model.last - 7)
        plan = site.diskbox.catalogue.failovers["f"].plans[0]
        assert plan["lost_events"] == 7
        await guest.writes()
        await folded(site)
        assert file_of(site) == model.image_at(model.last - 7), "its own writes are in no recovery volume"
        await guest.check()
        await guest.writes()
        await guest.check()
        assert status_document(site.diskbox)["failovers"][0]["overlay_bytes"] > 0
        await site.tell(ev.CommitRequested, failover="f", close=False)
        await site.failed_over("f", "committed")
        assert file_of(site) == bytes(guest.image)
        await guest.check()
        await guest.writes()
        await guest.check()
        assert file_of(site) == bytes(guest.image)
        (shown,) = status_document(site.diskbox)["failovers"]
        assert (shown["overlay_bytes"], shown["committing"]) == (0, True)
        assert site.diskbox.volumes["v"].projector is None
        await site.tell(ev.FailoverCloseRequested, failover="f")
        await site.failed_over("f", "closed")
        assert list((short_dir / "s").iterdir()) == []
        assert file_of(site) == bytes(guest.image)


async def test_a_rollback_leaves_nothing_and_loses_nothing(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        guest = await opened(site, model, model.last - 7)
        await guest.writes()
        await folded(site)
        await site.tell(ev.RollbackRequested, failover="f", reason="test")
        await site.failed_over("f", "rolled_back")
        assert site.status("v")["pins"] == {}
        assert list((short_dir / "diskbox/box/failovers").iterdir()) == []
        assert list((short_dir / "s").iterdir()) == []
        # The fence took an epoch; the agent takes the next one.
        site.published["v"] += FENCE_EPOCHS
        model.values.append(b"")
        model.images.append(model.images[-1])
        model.epoch += FENCE_EPOCHS
        model.start_epoch("rollback")
        await site.publish("v")
        await site.attach("v")
        model.sync(mode="delta")
        model.some_writes(5)
        await site.publish("v")
        await site.caught_up("v")
        fot = await site.fot("t", ["v"], "latest", "")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)
        # Older points are still there, as far as the floor has not passed them.
        early = await site.fot("e", ["v"], "offset", str(site.status("v")["earliest_offset"]))
        assert early.state == "started"


@pytest.mark.parametrize("moment", ["started", "opened", "folded", "committing", "committed"])
async def test_a_diskbox_that_was_killed_goes_on_where_it_was(short_dir: Path, moment: str) -> None:
    """At each moment the socket is the same, and so is every byte that the VM was answered for."""
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        if moment == "started":
            await site.tell(
                ev.FailoverRequested, failover="f", volumes=("v",), diskbox="box", point_kind="offset",
                point_value=str(model.last - 7), dry_run=False, planned=False,
            )  # fmt: skip
            await site.failed_over("f", "planned")
            await site.stop()
            await site.tell(ev.FailoverStarted, failover="f")
            await site.start()
            found = await site.failed_over("f", "opened")
            guest = Guest(found.views[0]["uri"], model.image_at(model.last - 7))
        else:
            guest = await opened(site, model, model.last - 7)
        await guest.writes()
        if moment != "opened":
            await folded(site)
        if moment in ("committing", "committed"):
            await site.tell(ev.CommitRequested, failover="f", close=False)
        if moment == "committed":
            await site.failed_over("f", "committed")
            await guest.writes()
        await site.stop()
        await site.start()
        await site.until(lambda _: "f" in site.diskbox.failovers.open, "served again")
        assert site.diskbox.catalogue.failovers["f"].views[0]["uri"] == guest.uri
        await guest.check()
        await guest.writes()
        await guest.check()
        if moment not in ("committing", "committed"):
            await folded(site)
            await site.tell(ev.CommitRequested, failover="f", close=False)
        await site.failed_over("f", "committed")
        await guest.check()
        assert file_of(site) == bytes(guest.image)


async def test_writes_beside_a_commit_are_all_there(short_dir: Path) -> None:
    """The fold is slowed down, so that the VM writes to blocks before, while and after they are folded."""
    async with running(make_site(short_dir, fold_bytes_per_second=2 << 20)) as site:
        model = await protected(site)
        guest = await opened(site, model, model.last)
        await guest.writes(30)
        await folded(site)
        await site.tell(ev.CommitRequested, failover="f", close=False)
        while site.diskbox.catalogue.failovers["f"].state != "committed":
            await guest.writes(3)
            await guest.check()
        await guest.check()
        assert file_of(site) == bytes(guest.image)


async def test_a_host_that_crashed_shows_what_was_flushed(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        guest = await opened(site, model, model.last)
        await guest.writes()
        await site.stop()
        boot = short_dir / "boot_id"
        boot.write_text("another")
        monkeypatch.setattr(overlay_module, "BOOT_ID", boot)
        for path in (short_dir / "diskbox/box/failovers").glob("*/v.live"):
            path.write_bytes(bytes([1]) * path.stat().st_size)
        await site.start()
        await site.until(lambda _: "f" in site.diskbox.failovers.open, "served again")
        await guest.check()


async def test_an_overlay_that_is_damaged_is_never_shown_as_something_else(short_dir: Path) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        guest = await opened(site, model, model.last)
        await guest.writes()
        await site.stop()
        (path,) = (short_dir / "diskbox/box/failovers").glob("*/v.json")
        content = path.read_bytes()
        path.write_bytes(b"{}")
        await site.start()
        await site.until(lambda _: site.diskbox.failovers.problems, "a problem")
        assert "damaged" in status_document(site.diskbox)["volumes"]["v"]["problem"]
        assert site.diskbox.catalogue.failovers["f"].state == "opened"
        path.write_bytes(content)
        await site.until(lambda _: "f" in site.diskbox.failovers.open, "served again")
        await guest.check()


async def test_a_move_refuses_to_lose_anything(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        drained = model.last - 1
        await site.tell(
            ev.FailoverRequested, failover="f", volumes=("v",), diskbox="box", point_kind="latest",
            point_value="", dry_run=False, planned=True,
        )  # fmt: skip
        item = ev.DrainedItem(volume="v", offset=drained, captured_at=model.at, stopped=True)
        await site.tell(ev.FailoverDrained, failover="f", agent="a", drained=(item,))
        found = await site.failed_over("f", "planned")
        assert found.plans[0]["offset"] == drained
        await site.tell(ev.FailoverStarted, failover="f")
        found = await site.failed_over("f", "failed")
        assert "written after it was drained" in found.reason
        assert site.status("v")["pins"] == {}


async def test_a_point_that_is_gone_fails_before_anything_is_fenced(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        found = await site.failover("f", ["v"], "offset", str(model.last + 5))
        assert found.state == "failed"
        assert site.status("v")["head_offset"] == model.last
        assert status_document(site.diskbox)["failovers"] == []


async def test_group_views_are_of_one_checkpoint(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        models = {name: await protected(site, name, seed) for seed, name in enumerate(("v", "w"))}
        offsets = {name: model.checkpoint("both") for name, model in models.items()}
        for name, model in models.items():
            model.some_writes(3)
            await site.publish(name)
            await site.caught_up(name)
        await site.checkpoint("both", offsets)
        found = await site.failover("f", ["v", "w"], "checkpoint", "both", group="g")
        assert [view["offset"] for view in found.views] == [offsets["v"], offsets["w"]]
        for view in found.views:
            assert await read_all(view["uri"]) == models[view["volume"]].image_at(view["offset"])


async def test_a_full_disk_is_enospc_to_the_vm(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        guest = await opened(site, model, model.last)
        view = site.diskbox.failovers.open["f"].views["v"]
        monkeypatch.setattr(view.overlay, "bytes_max", 4096)
        client = await NbdClient.connect_uri(guest.uri)
        await client.write(0, b"x" * 4096)
        with pytest.raises(RequestError) as caught:
            await client.write(4096, b"y" * 4096)
        assert caught.value.errno == errno.ENOSPC
        await client.close()
        guest.image[:4096] = b"x" * 4096
        await guest.check()


class Killed(Exception):  # noqa: N818 - no error, a death
    """The process dies here."""


class Kills:
    """A crash point that lets the process die once."""

    def __init__(self, where: str) -> None:
        self.where, self.done = where, False

    def __call__(self, name: str) -> None:
        if name == self.where and not self.done:
            self.done = True
            raise Killed(name)


async def _dies(site: DiskboxSite, kills: Kills) -> None:
    """Wait for the death, and start another process."""
    async with asyncio.timeout(30):
        while not kills.done or not site.task.done():
            await asyncio.sleep(0.01)
    assert isinstance(site.task.exception(), Killed)
    site.diskbox.failovers.open.clear()
    await site.start()


@pytest.mark.parametrize(
    "where", [name for name in CRASH_POINTS if "undo" not in name and "shut" not in name]
)
async def test_killed_at_every_point_on_the_way_to_a_commit(short_dir: Path, where: str) -> None:
    """It resumes: the fence is one, the VM's bytes are all there, the file is right in the end."""
    kills = Kills(where)
    site = make_site(short_dir, crash_point=kills)
    async with running(site):
        model = await protected(site)
        offset = model.last - 7
        await site.tell(
            ev.FailoverRequested, failover="f", volumes=("v",), diskbox="box", point_kind="offset",
            point_value=str(offset), dry_run=False, planned=False,
        )  # fmt: skip
        await site.failed_over("f", "planned")
        await site.tell(ev.FailoverStarted, failover="f")
        if where in CRASH_POINTS[:6]:
            await _dies(site, kills)
        found = await site.failed_over("f", "opened")
        await site.until(lambda _: "f" in site.diskbox.failovers.open, "served")
        guest = Guest(found.views[0]["uri"], model.image_at(offset))
        await guest.check()
        await guest.writes()
        await folded(site)
        await site.tell(ev.CommitRequested, failover="f", close=False)
        if where not in CRASH_POINTS[:6]:
            await _dies(site, kills)
        await site.failed_over("f", "committed")
        await site.until(lambda _: "f" in site.diskbox.failovers.open, "served")
        await guest.check()
        await guest.writes()
        await guest.check()
        assert file_of(site) == bytes(guest.image)
        reader = site.store.reader("v")
        assert await reader.next_offset() == model.last + 1 + FENCE_EPOCHS, "one fence, however often it died"


@pytest.mark.parametrize("where", [name for name in CRASH_POINTS if "undo" in name or "shut" in name])
async def test_killed_at_every_point_of_a_rollback(short_dir: Path, where: str) -> None:
    """It is cleanly undone."""
    kills = Kills(where)
    site = make_site(short_dir, crash_point=kills)
    async with running(site):
        model = await protected(site)
        guest = await opened(site, model, model.last - 7)
        await guest.writes()
        await folded(site)
        await site.tell(ev.RollbackRequested, failover="f", reason="test")
        await _dies(site, kills)
        await site.failed_over("f", "rolled_back")
        assert site.status("v")["pins"] == {}
        assert list((short_dir / "diskbox/box/failovers").iterdir()) == []
        fot = await site.fot("t", ["v"], "offset", str(model.last))
        assert await read_all(fot.views[0]["uri"]) == model.image_at(model.last)


class SlowFile(RawFile):
    """A recovery volume whose reads return what was there a while ago."""

    gate: asyncio.Event

    async def pread(self, start: int, length: int) -> bytes:
        data = await super().pread(start, length)
        await self.gate.wait()
        return data


async def test_neighbours_in_one_block_do_not_undo_each_other(short_dir: Path) -> None:
    """While it is folded: a write that has to read the rest of a block, beside one to that very rest."""
    (short_dir / "disk").write_bytes(bytes(8 * BLOCK_BYTES))
    recovery = SlowFile(short_dir / "disk")
    recovery.gate = asyncio.Event()
    overlay = Overlay.create(short_dir, "v", 8 * BLOCK_BYTES, None, {}, durable=True)
    base = RecoveryBase(recovery, 8 * BLOCK_BYTES)
    view = FailoverView("v", 1, 8 * BLOCK_BYTES, base, overlay)
    await view.write(0, b"h" * BLOCK_BYTES, fua=False)
    view.write_through(recovery)
    # Of a block that the overlay holds, and part of one that it does not.
    first = asyncio.create_task(view.write(100, b"1" * BLOCK_BYTES, fua=False))
    for _ in range(20):
        await asyncio.sleep(0.005)
    second = asyncio.create_task(view.write(BLOCK_BYTES + 3000, b"2" * 50, fua=False))
    for _ in range(20):
        await asyncio.sleep(0.005)
    recovery.gate.set()
    await asyncio.gather(first, second)
    [moved async for moved in view.fold()]
    expected = bytearray(8 * BLOCK_BYTES)
    expected[:BLOCK_BYTES] = b"h" * BLOCK_BYTES
    expected[100 : 100 + BLOCK_BYTES] = b"1" * BLOCK_BYTES
    expected[BLOCK_BYTES + 3000 : BLOCK_BYTES + 3050] = b"2" * 50
    assert bytes(await view.read(0, 8 * BLOCK_BYTES)) == bytes(expected)
    await view.write(5, b"3", fua=True)
    assert (short_dir / "disk").read_bytes()[5:6] == b"3"
    overlay.discard()
    await recovery.close()


async def test_one_that_came_to_nothing_does_not_let_go_of_a_promote(short_dir: Path) -> None:
    """It was planned, and pinned; a promote began before it."""
    async with running(make_site(short_dir, detach_seconds=60.0)) as site:
        model = await protected(site)
        offset = model.last - 4
        await site.tell(
            ev.FailoverRequested, failover="f", volumes=("v",), diskbox="box", point_kind="latest",
            point_value="", dry_run=False, planned=False,
        )  # fmt: skip
        await site.failed_over("f", "planned")
        await site.promotion("p", ["v"], "offset", str(offset))
        await site.tell(ev.PromoteStarted, promotion="p")
        projector = site.diskbox.volumes["v"].projector
        assert projector is not None
        projector.hold_at(offset)
        await site.tell(ev.FailoverFailed, failover="f", error="{}")
        await site.until(lambda _: "failover:f" not in projector.pins, "its pin is gone")
        await site.tell(ev.CaptureDetached, volume="v", epoch=model.epoch)
        promoted = await site.promoted("p")
        assert promoted.state == "promoted", promoted
        assert file_of(site) == model.image_at(offset)
