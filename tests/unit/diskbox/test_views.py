"""Views while they are hydrated, and while the projector passes their point: right at every moment."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from diskbox_site import DiskboxSite, protected, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox import hydrator as hydrator_module
from rephub.consumers.diskbox.fots import Limits
from rephub.consumers.diskbox.hydrator import Hydrator, Pace
from rephub.consumers.diskbox.kept import Kept
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.status import status_document
from rephub.consumers.diskbox.view import View
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import RequestError, UnavailableError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.nbd.client import NbdClient
from rephub.projections import envelope
from rephub.projections.window import History
from rephub.schemas import events as ev
from volume_site import WAIT, Site, rot

LONG = History(86400, 1 << 30)


@pytest.fixture(autouse=True)
def fine_byte_curve(monkeypatch) -> None:
    """Volumes here are small: so is what the byte curve may be off by."""
    monkeypatch.setattr(envelope, "SAMPLE_BYTES", 4096)


async def opened(tmp_path: Path, seed: int, writes: int = 120) -> tuple[Site, JournalModel, Projector]:
    model = JournalModel(seed=seed)
    model.protect(writes=0)
    site = Site(tmp_path, model, LONG)
    projector = await site.start()
    await site.publish()
    await site.settle()
    model.some_writes(writes)
    await site.publish()
    await site.settle()
    return site, model, projector


# Hydration


@pytest.mark.parametrize("seed", range(6))
async def test_reads_are_right_while_a_view_is_hydrated_and_need_no_journal_after(
    tmp_path, monkeypatch, seed
) -> None:
    """With writes, applying up to the point, and stops at random meanwhile."""
    monkeypatch.setattr(hydrator_module, "STEP_BYTES", 20_000)
    monkeypatch.setattr(hydrator_module, "PLAN_BYTES", 1 << 16)
    site, model, projector = await opened(tmp_path, seed)
    randomly = random.Random(seed)
    offset = model.last - randomly.randrange(40)
    view = View(projector, offset, None)
    projector.pin("fot:x", offset)
    pace = Pace(0)
    hydrator = view.hydrator = Hydrator(projector, offset, model.size, tmp_path / "v.hydrated", pace)
    hydrator.start()
    while hydrator.state != "done":
        assert bytes(await view.read(0, model.size)) == model.image_at(offset)
        start = randomly.randrange(model.size - 5000)
        assert bytes(await view.read(start, 5000)) == model.image_at(offset)[start : start + 5000]
        if randomly.random() < 0.2:
            await hydrator.stop()
            hydrator.start()
        if randomly.random() < 0.2:
            model.some_writes(3)
            await site.publish()
        if randomly.random() < 0.1:
            projector.history = History(86400, randomly.randrange(20_000, 400_000))
        await asyncio.sleep(0)
    await projector.catch_up()
    fetched = projector.source.fetches
    projector.source._cache.clear()
    assert bytes(await view.read(0, model.size)) == model.image_at(offset)
    assert projector.source.fetches == fetched
    assert hydrator.status()["done_events"] == hydrator.status()["total_events"] > 0
    await view.close(discard=True)
    assert not list(tmp_path.glob("*.hydrated"))
    await site.kill()


async def test_what_is_hidden_by_later_writes_is_not_copied(tmp_path) -> None:
    """A volume that rewrites one place: what is copied is what the view shows, not the history."""
    site, model, projector = await opened(tmp_path, 1, writes=0)
    for _ in range(200):
        model.write(4096, model.random.randbytes(8192))
    await site.publish()
    await site.settle()
    view = View(projector, model.last, None)
    hydrator = view.hydrator = Hydrator(projector, model.last, model.size, tmp_path / "v.hydrated", Pace(0))
    hydrator.start()
    await _until(lambda: hydrator.state == "done")
    assert hydrator.status()["total_events"] == 1
    assert hydrator.bytes == 8192
    await view.close(discard=True)
    await site.kill()


async def test_a_full_disk_ends_the_hydration_and_no_read(tmp_path, monkeypatch) -> None:
    site, model, projector = await opened(tmp_path, 2)
    monkeypatch.setattr(hydrator_module, "STEP_BYTES", 20_000)
    write_all, count = hydrator_module.write_all, 0

    def filling(*args) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(errno.ENOSPC, "full")
        write_all(*args)

    monkeypatch.setattr(hydrator_module, "write_all", filling)
    view = View(projector, model.last, None)
    hydrator = view.hydrator = Hydrator(projector, model.last, model.size, tmp_path / "v.hydrated", Pace(0))
    hydrator.start()
    while hydrator.state != "failed":
        assert bytes(await view.read(0, model.size)) == model.image_at(model.last)
    assert "No space left" in hydrator.problem
    assert not (tmp_path / "v.hydrated").exists()
    assert bytes(await view.read(0, model.size)) == model.image_at(model.last)
    count = -1000
    hydrator.start()  # as `fot hydrate --resume` does
    await _until(lambda: hydrator.state == "done")
    assert bytes(await view.read(0, model.size)) == model.image_at(model.last)
    await view.close(discard=True)
    await site.kill()


async def test_a_disk_that_is_nearly_full_is_left_to_others(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hydrator_module, "RESERVE_SHARE", 1.0)
    monkeypatch.setattr(hydrator_module, "RESERVE_BYTES_MAX", 1 << 60)
    site, model, projector = await opened(tmp_path, 3, writes=5)
    view = View(projector, model.last, None)
    hydrator = view.hydrator = Hydrator(projector, model.last, model.size, tmp_path / "v.hydrated", Pace(0))
    hydrator.start()
    await _until(lambda: hydrator.state == "failed")
    assert "nearly full" in hydrator.problem
    assert not (tmp_path / "v.hydrated").exists()
    assert bytes(await view.read(0, model.size)) == model.image_at(model.last)
    await view.close(discard=True)
    await site.kill()


async def test_an_event_that_rots_is_never_zeroes(tmp_path) -> None:
    """Hydration fails, and whoever reads the event is told."""
    site, model, projector = await opened(tmp_path, 4, writes=0)
    rotten = model.write(8192, b"r" * 4096)
    model.write(64 << 10, b"s" * 4096)
    await site.publish()
    await site.settle()
    rot(site, rotten)
    view = View(projector, model.last, None)
    hydrator = view.hydrator = Hydrator(projector, model.last, model.size, tmp_path / "v.hydrated", Pace(0))
    hydrator.start()
    await _until(lambda: hydrator.state == "failed")
    with pytest.raises(RequestError):
        await view.read(8192, 4096)
    assert bytes(await view.read(64 << 10, 4096)) == b"s" * 4096
    await view.close(discard=True)
    await site.kill()


async def test_events_that_were_applied_and_deleted_while_a_view_was_hydrated(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hydrator_module, "STEP_BYTES", 1)
    site, model, projector = await opened(tmp_path, 5, writes=60)
    offset = model.last
    projector.pin("fot:x", offset)
    view = View(projector, offset, None)
    pace = Pace(200_000)
    hydrator = view.hydrator = Hydrator(projector, offset, model.size, tmp_path / "v.hydrated", pace)
    hydrator.start()
    await _until(lambda: hydrator.done_events > 2)
    projector.history = site.history = History(0, 1 << 30)
    projector.changed.notify()
    await site.settle()
    assert projector.applier.applied_offset == offset
    await site.store.delete_records("v", offset)
    pace.bytes_per_second = 0
    while hydrator.state == "running":
        assert bytes(await view.read(0, model.size)) == model.image_at(offset)
        await asyncio.sleep(0)
    assert hydrator.state == "done"
    assert bytes(await view.read(0, model.size)) == model.image_at(offset)
    await view.close(discard=True)
    await site.kill()


async def _until(condition) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.005)


# The history's limit


class Test:
    """A test's view that gives way, and a model of what its user sees."""

    __test__ = False

    def __init__(
        self, directory: Path, name: str, projector: Projector, model: JournalModel, offset: int
    ) -> None:
        self.model, self.offset, self.projector, self.name = model, offset, projector, name
        self.image = bytearray(model.image_at(offset))
        scratch = Overlay.create(directory, name, model.size, None, {}, durable=False)
        kept = Kept(projector, directory, name, offset, 1 << 30, {})
        self.view = View(projector, offset, scratch, kept)
        self.projector.pin(name, offset, self.give_way)

    async def give_way(self, floor: int) -> None:
        await self.view.keep_upto(floor)
        self.projector.pin(self.name, self.view.kept.upto, self.give_way)

    async def write(self, randomly: random.Random) -> None:
        length = randomly.choice([1, 700, 4096, 9000])
        start = randomly.randrange(self.model.size - length)
        if randomly.random() < 0.3:
            self.image[start : start + length] = bytes(length)
            await self.view.zero(start, length, unmap=True, fua=False)
        else:
            data = randomly.randbytes(length)
            self.image[start : start + length] = data
            await self.view.write(start, data, fua=False)

    async def check(self) -> None:
        assert bytes(await self.view.read(0, self.model.size)) == bytes(self.image)
        start = 0
        for length, flags in await self.view.block_status(0, self.model.size):
            assert not flags or not any(self.image[start : start + length])
            start += length


@pytest.mark.parametrize("seed", range(12))
async def test_views_stay_right_when_the_limit_forces_the_floor_past_them(tmp_path, seed) -> None:
    """Several views at several points, written to, read at random moments; one is hydrated meanwhile."""
    site, model, projector = await opened(tmp_path, seed)
    randomly = random.Random(seed)
    tests = [
        Test(tmp_path, f"t{number}", projector, model, model.last - randomly.randrange(100))
        for number in range(3)
    ]
    tests[0].view.hydrator = Hydrator(projector, tests[0].offset, model.size, tmp_path / "h", Pace(0))
    tests[0].view.hydrator.start()
    projector.history = site.history = History(86400, 100_000)
    ended = asyncio.Event()

    async def read(test: Test) -> None:
        while not ended.is_set():
            await test.check()
            await test.write(randomly)
            await asyncio.sleep(0.001)

    readers = [asyncio.create_task(read(test)) for test in tests]
    for _ in range(25):
        model.some_writes(randomly.randint(1, 12))
        await site.publish()
        await asyncio.sleep(0.003)
    newest = max(test.offset for test in tests)
    await projector.changed.wait_for(lambda: projector.applier.applied_offset > newest, WAIT, "passing all")
    ended.set()
    await asyncio.gather(*readers)
    for test in tests:
        await test.check()
        assert test.view.status()["kept_bytes"] > 0
    assert await site.read(model.last) == model.image_at(model.last)
    for test in tests:
        await test.view.close(discard=True)
    await site.kill()


def make_site(short_dir: Path, *, save: bool = True, scratch_bytes: int = 1 << 30) -> DiskboxSite:
    return DiskboxSite(
        short_dir, MemoryJournalStore(), MemoryControlLog(), limits=Limits(scratch_bytes, 0, save=save)
    )


async def overrun(site: DiskboxSite, model: JournalModel) -> None:
    """Journal far more than the history's limit."""
    await site.tell(ev.HistorySet, volumes=("v",), history_bytes=20_000)
    for _ in range(10):
        model.some_writes(10)
        await site.publish("v")
    await site.caught_up("v")


async def test_a_restart_finds_what_was_kept(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        fot = await site.fot("f", ["v"], "latest", "")
        offset = fot.views[0]["offset"]
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        await client.write(5000, b"mine")
        await client.close()
        await overrun(site, model)
        await site.until(
            lambda _: (site.status("v")["applied_offset"] or 0) > offset, "applied beyond the test"
        )
        image = bytearray(model.image_at(offset))
        image[5000:5004] = b"mine"
        for _ in range(3):
            assert await read_all(fot.views[0]["uri"]) == bytes(image)
            await site.stop()
            await site.start()
            await site.until(lambda _: "f" in site.diskbox.fots.open, "open again")
            assert await read_all(fot.views[0]["uri"]) == bytes(image)
            model.some_writes(20)
            await site.publish("v")
            await site.caught_up("v")
        assert site.diskbox.catalogue.fots["f"].state == "started"
        await site.stop_fot("f")
        assert [path for path in (short_dir / "diskbox/box/fots").rglob("*") if path.is_file()] == []


async def test_without_what_was_kept_a_test_is_over_and_says_why(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        await site.fot("f", ["v"], "latest", "")
        offset = model.last
        await overrun(site, model)
        await site.until(
            lambda _: (site.status("v")["applied_offset"] or 0) > offset, "applied beyond the test"
        )
        await site.stop()
        (upto,) = (short_dir / "diskbox/box/fots").rglob("*.upto")
        upto.write_text("{}")
        await site.start()
        fot = await site.until(
            lambda catalogue: catalogue.fots["f"].ended and catalogue.fots["f"], "the test is over"
        )
        assert "diskbox restarted" in fot.reason


async def test_a_test_that_is_stopped_while_it_gives_way_leaves_no_pin(short_dir, monkeypatch) -> None:
    """Its files go once what is kept for it is written; the floor rises then."""
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        await site.fot("f", ["v"], "latest", "")
        keeping = asyncio.Event()
        keep_range = Kept._keep_range

        async def slowly(*args) -> None:
            keeping.set()
            await asyncio.sleep(0.02)
            await keep_range(*args)

        monkeypatch.setattr(Kept, "_keep_range", slowly)
        overrunning = asyncio.create_task(overrun(site, model))
        await keeping.wait()
        await site.stop_fot("f")
        await overrunning
        await site.until(lambda _: site.status("v")["applied_offset"] > model.last - 60, "the floor rises")
        assert site.status("v")["pins"] == {}
        assert [path for path in (short_dir / "diskbox/box/fots").rglob("*") if path.is_file()] == []


async def test_an_outage_ends_no_test_that_is_to_give_way(short_dir) -> None:
    store = MemoryJournalStore()
    site = DiskboxSite(short_dir, store, MemoryControlLog(), limits=Limits(1 << 30, 0, save=True))
    async with running(site):
        model = await protected(site)
        model.some_writes(30)
        await site.publish("v")
        await site.caught_up("v")
        fot = await site.fot("f", ["v"], "latest", "", read_only=True)
        offset = fot.views[0]["offset"]
        model.some_writes(60)
        await site.publish("v")
        await site.caught_up("v")
        projector = site.diskbox.volumes["v"].projector
        store.unavailable = True
        await site.tell(ev.HistorySet, volumes=("v",), history_bytes=20_000)
        await asyncio.sleep(0.3)
        assert site.diskbox.catalogue.fots["f"].state == "started"
        assert projector.floor_offset <= offset
        store.unavailable = False
        await site.until(lambda _: projector.applier.applied_offset > offset, "applied beyond the test")
        assert await read_all(fot.views[0]["uri"]) == model.image_at(offset)
        assert site.diskbox.catalogue.fots["f"].state == "started"


@pytest.mark.parametrize("why", ["as configured", "no room to keep it"])
async def test_a_test_that_cannot_give_way_ends_and_says_why(short_dir, why) -> None:
    configured = why == "as configured"
    site = make_site(short_dir, save=not configured, scratch_bytes=1 << 30 if configured else 8192)
    async with running(site):
        model = await protected(site)
        # A read-only one has no scratch whose loss would keep it from being opened again.
        fot = await site.fot("f", ["v"], "latest", "", read_only=configured)
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        await overrun(site, model)
        ended = await site.until(
            lambda catalogue: catalogue.fots["f"].ended and catalogue.fots["f"], "the test is over"
        )
        assert ended.reason.startswith("the history's limit was reached")
        assert ("pins_at_limit" in ended.reason) == configured
        with pytest.raises(UnavailableError):
            await client.read(0, 4096)
        await client.close()
        await site.until(lambda _: site.status("v")["pins"] == {}, "no pin")
        await site.until(lambda _: site.status("v")["journal_bytes"] < 80_000, "history within its limit")
        assert not site.diskbox.fots.open


async def test_a_full_scratch_is_said_once(short_dir) -> None:
    site = make_site(short_dir, scratch_bytes=16 * 4096)
    async with running(site):
        await protected(site)
        fot = await site.fot("f", ["v"], "latest", "")
        client = await NbdClient.connect_uri(fot.views[0]["uri"])
        await client.write(0, b"a" * 16 * 4096)
        for block in (17, 18):
            with pytest.raises(RequestError):
                await client.write(block * 4096, b"b")
        await site.until(lambda catalogue: catalogue.fots["f"].full == ["v"], "said")
        head = await site.control.next_offset("rephub.events")
        told = [event for _, event in await site.control.read("rephub.events", 0, head)]
        assert sum(isinstance(event, ev.FotScratchFull) for event in told) == 1
        (view,) = status_document(site.diskbox)["fots"]
        assert view["scratch_bytes"] == view["scratch_limit_bytes"] == 16 * 4096
        await client.close()


async def test_the_pace_of_a_hydration_is_set_and_outlives_a_restart(short_dir) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        model.some_writes(50)
        await site.publish("v")
        await site.caught_up("v")
        await site.fot("f", ["v"], "latest", "", read_only=True)

        def hydration() -> dict:
            (view,) = status_document(site.diskbox)["fots"]
            return view["hydration"]

        await site.until(lambda _: hydration()["state"] == "done", "hydrated")
        await site.tell(ev.HydrationSet, fot="f", stopped=True, rate_bytes_per_second=7)
        await site.until(lambda catalogue: catalogue.fots["f"].hydration_stopped, "said")
        await site.stop()
        await site.start()
        await site.until(lambda _: "f" in site.diskbox.fots.open, "open again")
        await asyncio.sleep(0.1)
        assert hydration()["state"] == "stopped"
        await site.tell(ev.HydrationSet, fot="f", stopped=False, rate_bytes_per_second=0)
        await site.until(lambda _: hydration()["state"] == "done", "hydrated")
