"""A recovery volume moves between two diskboxes: real files, real NBD, the journal and the log in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox import move_copy
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import UnavailableError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.names import EVENTS_TOPIC
from rephub.schemas import events as ev


class Pair:
    """Two diskboxes on one log; the test is hub and agent."""

    def __init__(self, short_dir: Path) -> None:
        store, control = MemoryJournalStore(), MemoryControlLog()
        self.old = DiskboxSite(short_dir / "a", store, control)
        self.new = DiskboxSite(short_dir / "b", store, control)
        self.new.box, self.new.models, self.new.published = "other", self.old.models, self.old.published
        self.model = JournalModel(seed=3)

    async def protect(self, **fields: int) -> None:
        site, model = self.old, self.model
        await site.protect("v", model, **fields)
        await site.created("v")
        model.source[:] = model.random.randbytes(model.size)
        model.start_epoch()
        await site.publish("v")
        await site.attach("v")
        model.sync()
        model.some_writes(30)
        await site.publish("v")
        await site.tell(ev.SyncRequested, volume="v", epoch=model.epoch)
        await site.tell(ev.VolumeSyncCompleted, volume="v", epoch=model.epoch, offset=model.last)
        await site.caught_up("v")
        await self.new.until(lambda catalogue: catalogue.volumes["v"].state == "protected", "protected")

    async def move(self, name: str = "m") -> None:
        await self.old.tell(
            ev.MoveRequested,
            id=f"id-{name}",
            move=name,
            volumes=("v",),
            diskbox="other",
            previous_diskbox="box",
        )

    async def write(self, count: int = 10) -> None:
        self.model.some_writes(count)
        await self.old.publish("v")

    async def copied(self, name: str = "m") -> None:
        await self.new.until(lambda catalogue: "v" in catalogue.moves[name].copied, "copied")

    async def switch(self, name: str = "m") -> None:
        following = self.new.diskbox.moves.incoming.get("v")
        await self.old.tell(ev.VolumesMoved, move=name)
        await self.new.until(lambda _: "v" in self.new.diskbox.volumes, "switched")
        if following is not None:
            assert self.new.diskbox.volumes["v"] is following, "it goes on, and is not opened anew"
        await self.new.caught_up("v")

    async def check(self, site: DiskboxSite, offset: int, name: str) -> None:
        fot = await site.fot(name, ["v"], "offset", str(offset), read_only=True)
        assert fot.state == "started", fot
        assert await read_all(fot.views[0]["uri"]) == self.model.image_at(offset)
        await site.stop_fot(name)

    @property
    def copy(self) -> Path:
        return self.new.state_dir / "diskbox/other/volumes/v"


@pytest.fixture
async def pair(short_dir: Path) -> AsyncIterator[Pair]:
    pair = Pair(short_dir)
    async with running(pair.old), running(pair.new):
        await pair.protect()
        yield pair


async def test_points_of_before_are_there_after_it(pair: Pair) -> None:
    model = pair.model
    earliest = pair.old.status("v")["earliest_offset"]
    early, epoch = earliest + 5, model.epoch
    await pair.move()
    await pair.write()
    await pair.copied()
    await pair.write()
    await pair.check(pair.old, early, "before")
    await pair.switch()
    await pair.write()
    await pair.new.caught_up("v")
    for number, offset in enumerate([earliest, early, early + 9, model.last]):
        await pair.check(pair.new, offset, f"f{number}")
    assert pair.new.status("v")["earliest_offset"] == earliest, "the window is as long as it was"
    assert model.epoch == epoch
    stale = pair.old.state_dir / "diskbox/box/volumes/v"
    await pair.old.until(lambda _: not stale.exists(), "released")
    assert list((pair.old.state_dir / "s").iterdir()) == []


async def test_the_old_one_stands_still_and_alone_deletes_records(pair: Pair) -> None:
    await pair.move()
    await pair.copied()
    old, new = pair.old.diskbox.volumes["v"].projector, pair.new.diskbox.moves.incoming["v"].projector
    assert old is not None
    assert new is not None
    stood = old.applier.applied_offset
    for site in (pair.old, pair.new):
        site.diskbox.catalogue.volumes["v"].history_bytes = 1  # a window that would rise with each write
    old.history = new.history = type(old.history)(0, 1)
    await pair.write(30)
    await pair.old.until(lambda _: old.head_offset == pair.model.last, "read on")
    await pair.old.until(lambda _: new.applier.applied_offset > stood, "the new one applies")
    assert old.applier.applied_offset == stood
    assert await pair.old.diskbox._ownership.owns("v")
    assert not await pair.new.diskbox._ownership.owns("v")
    await pair.switch()
    assert await pair.new.diskbox._ownership.owns("v")
    await pair.old.until(lambda _: "v" not in pair.old.diskbox.volumes, "let go")
    assert not await pair.old.diskbox._ownership.owns("v")


async def test_after_a_restart_it_stands_still_where_it_stood(short_dir: Path) -> None:
    """With a window that would rise with each write."""
    pair = Pair(short_dir)
    async with running(pair.old), running(pair.new):
        await pair.protect(history_bytes=1)
        await pair.move()
        await pair.copied()
        position = pair.old.diskbox.catalogue.moves["m"].served["v"]["position"]
        await pair.old.stop()
        await pair.write(30)
        await pair.old.start()
        await pair.old.caught_up("v")
        await pair.old.until(lambda _: pair.old.diskbox.moves.is_serving("m", "v"), "served again")
        last = await pair.old.control.next_offset(EVENTS_TOPIC)
        await pair.old.until(lambda catalogue: catalogue.next_offset >= last, "told again")
        assert pair.old.diskbox.catalogue.moves["m"].served["v"]["position"] == position
        await pair.switch()
        await pair.check(pair.new, pair.model.last, "last")


async def test_a_move_that_is_cancelled_leaves_the_old_one_going_on(pair: Pair) -> None:
    await pair.move()
    await pair.copied()
    old = pair.old.diskbox.volumes["v"].projector
    assert old is not None
    assert old._frozen_at is not None
    await pair.old.tell(ev.MoveFailed, move="m", error="cancelled")
    await pair.new.until(lambda _: not pair.copy.exists(), "the copy is gone")
    await pair.old.until(lambda _: old._frozen_at is None and not old.pins, "goes on")
    await pair.write()
    await pair.old.caught_up("v")
    await pair.check(pair.old, pair.model.last, "after")
    await pair.move("again")
    await pair.copied("again")
    await pair.switch("again")
    await pair.check(pair.new, pair.model.last, "moved")
    await pair.old.tell(
        ev.MoveRequested, move="back", volumes=("v",), diskbox="box", previous_diskbox="other"
    )
    await pair.old.until(lambda catalogue: "v" in catalogue.moves["back"].copied, "copied back")
    await pair.old.tell(ev.VolumesMoved, move="back")
    await pair.old.until(lambda _: "v" in pair.old.diskbox.volumes, "back")
    await pair.check(pair.old, pair.model.last, "home")


@pytest.mark.parametrize("killed", ["old", "new", "both"])
@pytest.mark.parametrize("point", ["served", "half", "copied", "switched"])
async def test_killed_at_any_point_it_goes_on(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, killed: str, point: str
) -> None:
    pair = Pair(short_dir)
    blocked = asyncio.Event()

    async with contextlib.AsyncExitStack() as stack:
        for site in (pair.old, pair.new):
            await stack.enter_async_context(running(site))
        await pair.protect()
        early = pair.old.status("v")["earliest_offset"] + 3
        if point in ("served", "half"):
            real = move_copy._extent

            async def slow(client, file, start, length, progress, *, hole):
                if point == "half":
                    half = length // 2
                    await real(client, file, start, half, progress, hole=hole)
                blocked.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(move_copy, "_extent", slow)
        await pair.move()
        if point in ("served", "half"):
            await asyncio.wait_for(blocked.wait(), 30)
            monkeypatch.setattr(move_copy, "_extent", real)
        else:
            await pair.copied()
            if point == "switched":
                await pair.old.tell(ev.VolumesMoved, move="m")
        await pair.write()
        sites = {"old": [pair.old], "new": [pair.new], "both": [pair.old, pair.new]}[killed]
        for site in sites:
            await site.stop()
        await pair.write()
        for site in sites:
            await site.start()
        if killed == "old" and point in ("served", "half"):
            # What was cut off in the middle ends with its connection in a real process.
            await pair.new.stop()
            await pair.new.start()
        if point != "switched":
            await pair.copied()
            await pair.old.tell(ev.VolumesMoved, move="m")
        await pair.new.until(lambda _: "v" in pair.new.diskbox.volumes, "switched")
        await pair.new.caught_up("v")
        await pair.check(pair.new, early, "early")
        await pair.check(pair.new, pair.model.last, "last")
        stale = pair.old.state_dir / "diskbox/box/volumes/v"
        await pair.old.until(lambda _: not stale.exists(), "released")


async def test_a_test_that_is_open_keeps_its_pin_on_the_old_one(pair: Pair) -> None:
    await pair.move()
    await pair.copied()
    early = pair.old.status("v")["earliest_offset"]
    fot = await pair.old.fot("f", ["v"], "offset", str(early), read_only=True)
    await pair.write(30)
    assert await read_all(fot.views[0]["uri"]) == pair.model.image_at(early)
    assert pair.old.status("v")["pins"].keys() == {"fot:f", "move:m"}
    await pair.old.stop_fot("f")
    await pair.switch()


async def test_a_position_of_another_version_ends_the_move(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_document: dict[str, object]) -> None:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(move_copy.FoldState, "from_dict", unknown)
    await pair.move()
    ended = await pair.new.until(
        lambda catalogue: (m := catalogue.moves["m"]).state == "failed" and m, "failed"
    )
    assert "cannot be read" in ended.reason


async def test_a_copy_that_cannot_be_made_ends_the_move(pair: Pair) -> None:
    pair.copy.parent.mkdir(parents=True, exist_ok=True)
    pair.copy.write_text("a file in the place of the directory")
    await pair.move()
    ended = await pair.new.until(
        lambda catalogue: (m := catalogue.moves["m"]).state == "failed" and m, "failed"
    )
    assert "cannot" in ended.reason
    await pair.check(pair.old, pair.model.last, "after")
    with pytest.raises(UnavailableError):
        await read_all(ended.served["v"]["uri"])
