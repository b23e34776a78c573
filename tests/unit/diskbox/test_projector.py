"""The projector on a journal in memory and a real file: right content at every offset, killed at every step."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from journal_model import JournalModel
from recovery_servers import qemu_nbd
from rephub.consumers.diskbox.applier import CRASH_POINTS
from rephub.consumers.diskbox.position import load_position
from rephub.consumers.diskbox.view import View
from rephub.core.codec import decode_journal
from rephub.core.errors import IntegrityError, PointNotAvailableError, RequestError, StorageError
from rephub.projections.points import resolve
from rephub.projections.window import History
from volume_site import WAIT, Site, rot


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("history", [History(86400, 1 << 30), History(0, 1 << 30), History(86400, 60_000)])
async def test_every_offset_of_the_window_reads_as_the_events_up_to_it(tmp_path, history) -> None:
    model = JournalModel(seed=3)
    done = model.protect(writes=60)
    site = Site(tmp_path, model, history)
    projector = await site.start()
    await site.publish()
    await site.settle()
    earliest, latest = projector.timeline.earliest_offset(), projector.timeline.latest_offset()
    assert latest == model.last
    assert earliest >= done
    assert (earliest == done) == (history.seconds > 0 and history.bytes > 1 << 20)
    for offset in range(earliest, latest + 1):
        assert await site.read(offset) == model.image_at(offset), offset
    if earliest:
        with pytest.raises(PointNotAvailableError) as caught:
            await site.read(earliest - 1)
        assert caught.value.fields["nearest_offset"] == earliest
    await site.kill()


@pytest.mark.parametrize("step", range(1, 5))
@pytest.mark.parametrize("name", CRASH_POINTS)
async def test_killed_at_every_step_of_applying(tmp_path, name, step) -> None:
    """Promises 5 and 6: after the restart every offset from the floor on is right, and nothing below is served."""
    model = JournalModel(seed=step)
    count = 0

    def crash_point(reached: str) -> None:
        nonlocal count
        count += reached == name
        if reached == name and count == step:
            raise Crash

    site = Site(tmp_path, model, History(0, 1 << 30), crash_point)
    await site.start()
    model.protect(writes=1)
    await site.publish()
    crashed = False
    for _ in range(30):
        model.some_writes(3)
        await site.publish()
        try:
            projector = site.box.projector
            done, _ = await asyncio.wait(
                [*site.tasks, waiting := asyncio.create_task(site.settle())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiting not in done:
                waiting.cancel()
                await asyncio.wait([waiting])
                raise next(iter(done)).exception()
            waiting.result()
        except* Crash:
            crashed = True
        if crashed:
            break
    assert crashed, f"{name} was not reached {step} times"
    await site.kill()
    position = load_position(site.directory)
    projector = await site.start()
    assert projector.floor_offset == max(position.intent_offset, position.applied_offset)
    site.history = projector.history = History(86400, 1 << 30)
    await site.settle()
    for offset in range(projector.timeline.earliest_offset(), model.last + 1):
        assert await site.read(offset) == model.image_at(offset), offset
    await site.kill()


async def test_an_open_gap_holds_the_floor_and_a_closed_one_is_crossed_in_one_go(tmp_path) -> None:
    model = JournalModel()
    model.protect()
    site = Site(tmp_path, model, History(0, 1 << 30))
    projector = await site.start()
    good = model.last
    model.start_epoch("agent restarted")
    model.some_writes(5)
    await site.publish()
    await site.settle()
    assert projector.floor_offset == projector.timeline.latest_offset() == good
    assert await site.read(good) == model.image_at(good)
    with pytest.raises(PointNotAvailableError) as caught:
        resolve(projector.timeline, "offset", str(good + 2))
    assert caught.value.fields["nearest_offset"] == good
    closed = model.sync()
    await site.publish()
    await site.settle()
    assert projector.timeline.earliest_offset() == projector.timeline.latest_offset() == closed
    assert await site.read(closed) == model.image_at(closed)
    assert site.told == []
    await site.kill()


async def test_a_pin_holds_the_floor(tmp_path) -> None:
    model = JournalModel()
    done = model.protect()
    site = Site(tmp_path, model, History(86400, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    projector.pin("fot:x", done + 3)
    projector.history = History(0, 1 << 30)
    model.some_writes(30)
    await site.publish()
    await site.settle()
    assert projector.floor_offset == projector.applier.applied_offset == done + 3
    projector.unpin("fot:x")
    await site.settle()
    assert projector.floor_offset == model.last
    assert projector.applier.applied_events == model.last + 1
    payloads = [getattr(decode_journal(value), "data", b"") for value in model.values]
    assert projector.applier.applied_bytes == sum(map(len, payloads)) > 0
    await site.kill()


async def test_poison_stops_and_a_full_resync_is_the_way_out(tmp_path) -> None:
    model = JournalModel()
    model.protect()
    site = Site(tmp_path, model, History(86400, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    good = model.last
    damaged = model.write(0, b"x" * 4096)
    model.values[damaged] = model.values[damaged][:-1] + b"y"
    model.some_writes(5)
    await site.publish()
    await site.settle()
    assert projector.stopped.exit_code == 11
    assert [entry[:3] for entry in site.told] == [("stopped", "v", damaged)]
    assert projector.timeline.latest_offset() == good
    assert await site.read(good) == model.image_at(good)
    model.start_epoch("agent restarted")
    model.sync(mode="delta")
    await site.publish()
    await site.settle()
    assert projector.timeline.latest_offset() == good
    await site.kill()
    projector = await site.start()  # the poison is found again
    await site.settle()
    assert projector.stopped is not None
    model.start_epoch("resync")
    model.some_writes(3)
    closed = model.sync()
    model.some_writes(3)
    await site.publish()
    await site.settle()
    assert projector.stopped is None
    assert site.told[-1][:2] == ("resumed", "v")
    for offset in [good, *range(closed, model.last + 1)]:
        assert await site.read(offset) == model.image_at(offset), offset
    projector.history = History(0, 1 << 30)
    projector.changed.notify()
    await site.settle()
    assert projector.applier.applied_offset == model.last
    assert await site.read(model.last) == model.image_at(model.last)
    await site.kill()


async def test_a_record_that_rots_after_it_was_read_stops_the_volume(tmp_path) -> None:
    """Found by the simulation, seed 107: it was left out when it was applied, and every later point was wrong."""
    model = JournalModel()
    model.protect(writes=30)
    site = Site(tmp_path, model, History(86400, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    rotten = model.last - 10
    view = View(projector, model.last, None)
    projector.pin("fot:x", rotten - 2)
    rot(site, rotten)
    projector.history = History(0, 1 << 30)
    projector.changed.notify()
    await site.settle()
    projector.unpin("fot:x")
    await projector.changed.wait_for(lambda: projector.poison is not None, WAIT, "poison")
    assert projector.timeline.latest_offset() == rotten - 1
    assert await site.read(rotten - 1) == model.image_at(rotten - 1)
    with pytest.raises(RequestError):
        await view.read(0, model.size)
    with pytest.raises(PointNotAvailableError):
        resolve(projector.timeline, "offset", str(rotten))
    assert [entry[:3] for entry in site.told] == [("stopped", "v", rotten)]
    model.start_epoch("resync")
    closed = model.sync()
    model.some_writes(3)
    await site.publish()
    await site.settle()
    assert projector.stopped is None
    assert projector.timeline.earliest_offset() >= closed
    assert await site.read(model.last) == model.image_at(model.last)
    assert projector.applier.applied_offset == model.last
    await site.kill()


async def test_rot_below_a_full_sync_costs_only_the_points_before_it(tmp_path) -> None:
    """The volume goes on: nothing after the sync depends on what is lost."""
    model = JournalModel()
    model.protect(writes=10)
    rotten = model.last - 3
    model.start_epoch("again")
    closed = model.sync()
    model.some_writes(10)
    site = Site(tmp_path, model, History(86400, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    rot(site, rotten)
    projector.pin("fot:x", rotten - 1)
    projector.history = History(0, 1 << 30)
    projector.changed.notify()
    await site.settle()
    projector.unpin("fot:x")
    await projector.changed.wait_for(
        lambda: projector.applier.applied_offset == model.last, WAIT, "applying all"
    )
    assert projector.stopped is None
    assert projector.floor_offset >= closed
    assert await site.read(model.last) == model.image_at(model.last)
    await site.kill()


async def test_a_promotion_does_not_leave_a_rotten_record_out(tmp_path) -> None:
    model = JournalModel()
    model.protect(writes=10)
    site = Site(tmp_path, model, History(86400, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    rot(site, model.last - 3)
    with pytest.raises(IntegrityError):
        await projector.apply_exactly(model.last, WAIT)
    assert projector.applier.applied_offset < model.last - 3
    projector.thaw()
    await site.kill()


async def test_a_journal_that_lost_its_end_is_called_diverged(tmp_path) -> None:
    model = JournalModel()
    model.protect()
    site = Site(tmp_path, model, History(0, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    applied = projector.applier.applied_offset
    await site.kill()
    await site.store.truncate("v", applied - 2)
    model.values[applied - 2 :] = []
    model.seq -= 3
    model.some_writes(10)
    await site.publish()
    projector = await site.start()
    await projector.changed.wait_for(lambda: projector.divergence is not None, WAIT, "divergence")
    assert "diverged" in projector.stopped.message
    assert site.told[-1][:3] == ("stopped", "v", applied)
    await site.kill()


async def test_a_full_disk_pauses_and_goes_on(tmp_path, monkeypatch) -> None:
    model = JournalModel()
    model.protect()
    site = Site(tmp_path, model, History(0, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    recovery = projector.applier.recovery
    full = True
    original = type(recovery).write

    async def write(self, writes) -> None:
        await original(self, writes[: len(writes) // 2])
        if full:
            raise StorageError("cannot write: no space", errno=errno.ENOSPC, path="x")
        await original(self, writes)

    monkeypatch.setattr(type(recovery), "write", write)
    monkeypatch.setattr("rephub.consumers.diskbox.projector.RETRY_SECONDS", 0.01)
    before = projector.applier.applied_offset
    model.some_writes(10)
    await site.publish()
    await projector.changed.wait_for(lambda: projector.stopped is not None, WAIT, "pause")
    assert projector.stopped.to_dict()["errno"] == errno.ENOSPC
    await projector.catch_up(WAIT)
    assert projector.applier.applied_offset == before
    assert await site.read(projector.timeline.latest_offset()) == model.image_at(model.last)
    full = False
    await site.settle()
    assert projector.stopped is None
    assert await site.read(model.last) == model.image_at(model.last)
    assert site.told == []
    await site.kill()


async def test_a_view_below_the_floor_fails_instead_of_lying(tmp_path) -> None:
    model = JournalModel()
    done = model.protect()
    site = Site(tmp_path, model, History(0, 1 << 30))
    projector = await site.start()
    await site.publish()
    await site.settle()
    with pytest.raises(RequestError) as caught:
        await View(projector, done, None).read(0, 4096)
    assert caught.value.errno == errno.EIO
    await site.kill()


@pytest.mark.qemu
async def test_a_volume_that_outgrows_its_target_says_so_at_once(short_dir, tmp_path) -> None:
    """Not when the growth is applied, a history later; points stay, and it goes on by itself."""
    file = short_dir / "r.raw"
    model = JournalModel()
    file.write_bytes(bytes(model.size))
    server = qemu_nbd(short_dir, file)
    try:
        model.protect()
        site = Site(tmp_path, model, History(86400, 1 << 30))
        site.recovery = server.uri
        projector = await site.start()
        await site.publish()
        await site.settle()
        good, small = model.last, model.size
        model.size *= 2
        model.image.extend(bytes(small))
        model.source.extend(bytes(small))
        model.start_epoch("resumed after a pause")
        model.sync(mode="delta")
        await site.publish()
        await projector.changed.wait_for(lambda: projector.storage is not None, WAIT, "no room")
        assert projector.storage.fields["errno"] == errno.ENOSPC
        assert f"has {small} bytes, the volume {model.size}" in projector.storage.message
        assert projector.storage.hint
        assert bytes(await View(projector, good, None).read(0, small)) == model.image_at(good)
        server.kill()
        os.truncate(file, model.size)
        server.start()
        await projector.changed.wait_for(lambda: projector.storage is None, 3 * WAIT, "room")
        assert await site.read(model.last) == model.image_at(model.last)
        await site.kill()
    finally:
        server.kill()
