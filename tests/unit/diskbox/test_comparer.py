"""Digests compared with the view at their offsets, on a journal in memory and a real file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from journal_model import JournalModel
from rephub.consumers.diskbox.comparer import Comparer
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.volume import BoxVolume, Wanted
from rephub.core.digests import digests_of
from rephub.core.errors import RephubError, UnavailableError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.projections.journal_fold import JournalFold, Verdict
from rephub.projections.window import History
from rephub.schemas import journal as j

CHUNK = 4096
HISTORY = History(1, 1 << 30)


class Site:
    """A volume and its diskbox half."""

    def __init__(self, directory: Path, model: JournalModel) -> None:
        self.store = MemoryJournalStore()
        self.model = model
        self.directory = directory / "v"

    async def start(self, *runs: str) -> tuple[Projector, Comparer]:
        await self.store.create("v")
        self.box = BoxVolume(
            "v",
            self.directory,
            self.store,
            pace_seconds=0.0,
            on_stopped=lambda *_: None,
            on_resumed=lambda *_: None,
        )
        await self.box.make(Wanted("v", self.model.size, "s", 0, -1, None, HISTORY))
        await self.box.open(HISTORY)
        assert self.box.projector
        assert self.box.comparer
        for run in runs:
            self.box.comparer.begin(run)
        self.box.start()
        return self.box.projector, self.box.comparer

    async def publish(self) -> None:
        writer = self.store.writer("v")
        await writer.start()
        first = await self.store.reader("v").next_offset()
        await writer.append(self.model.values[first:])

    def digest(
        self, start: int, length: int, run: str = "run", round_: int = 1, *, zero: bool = False
    ) -> int:
        """What the source holds now, as the journal's next event."""
        data = bytes(self.model.source[start : start + length])
        said = b"" if zero else digests_of(data, start, CHUNK)
        fields = {"run": run, "round": round_, "start": start, "length": length, "chunk_bytes": CHUNK}
        return self.model.put(j.Digest, **fields, digests=said)

    def flip(self, *at: int) -> None:
        """Change bytes of the recovery volume behind the diskbox's back."""
        path = self.directory / "data.raw"
        with path.open("r+b") as file:
            for byte in at:
                file.seek(byte)
                value = file.read(1)
                file.seek(byte)
                file.write(bytes((value[0] ^ 0xFF,)))


@pytest.fixture
def model() -> JournalModel:
    made = JournalModel(seed=3)
    made.protect(writes=30)
    return made


async def test_digests_between_writes_are_equal_at_their_offsets(tmp_path: Path, model: JournalModel) -> None:
    site = Site(tmp_path, model)
    projector, comparer = await site.start("run")
    covered = 0
    for number in range(60):
        start = model.random.randrange(model.size - 70_000)
        length = model.random.choice((1, 4096, 69_999))
        last = site.digest(start, length)
        covered += length
        model.some_writes(3)
        if number % 10 == 0:
            await site.publish()
    await site.publish()
    result = await comparer.result("run", 1, last, covered)
    assert (result.differing, result.compared_bytes, result.offset) == ([], covered, last)
    assert "digests" not in projector.pins
    await site.box.close()


async def test_changed_bytes_are_named_by_chunk(tmp_path: Path, model: JournalModel) -> None:
    model.zero(100_000, 50_000)
    site = Site(tmp_path, model)
    projector, comparer = await site.start("run")
    await site.publish()
    await projector.catch_up()
    # All of it is applied: what is read comes from the file.
    await projector.apply_exactly(model.last, 10)
    projector.thaw()
    site.flip(5, 8192, 8192 + 4096, 120_000)
    site.digest(0, 65_536)
    last = site.digest(100_000, 50_000, zero=True)
    await site.publish()
    result = await comparer.result("run", 1, last, 65_536 + 50_000)
    assert result.differing[:2] == [(0, 4096), (8192, 8192)]
    ((start, length),) = result.differing[2:]
    assert start <= 120_000 < start + length <= start + CHUNK
    assert result.differing_bytes == 3 * 4096 + length
    # The next round is counted for itself.
    model.write(0, bytes(model.source[:65_536]))
    last = site.digest(0, 65_536, round_=2)
    await site.publish()
    assert (await comparer.result("run", 2, last, 65_536)).differing == []
    await site.box.close()


async def test_a_backlog_holds_the_floor_and_no_more(tmp_path: Path, model: JournalModel) -> None:
    site = Site(tmp_path, model)
    gate = asyncio.Semaphore(0)
    projector, comparer = await site.start("run")
    comparer._gate = gate
    first = site.digest(0, 4096)
    for _ in range(50):
        model.put(j.Checkpoint, checkpoint="c", group="g", kind="crash", periodic=True, step=1_000_000)
        model.some_writes(2)
    last = site.digest(0, 65_536)
    await site.publish()
    await projector.catch_up()
    await projector.changed.wait_for(
        lambda: projector.floor_offset == first, 10, "the floor comes to the digest"
    )
    assert projector.pins == {"digests": first}
    gate.release()
    result = await comparer.result("run", 1, last, 4096 + 65_536)
    assert result.differing == []
    await projector.changed.wait_for(lambda: projector.floor_offset > first, 10, "the floor goes on")
    await site.box.close()


async def test_nobody_verifies_so_digests_cost_nothing(tmp_path: Path, model: JournalModel) -> None:
    site = Site(tmp_path, model)
    projector, comparer = await site.start()
    for _ in range(20):
        site.digest(0, 65_536)
    await site.publish()
    await projector.catch_up()
    assert projector.pins == {}
    assert projector.stopped is None
    with pytest.raises(UnavailableError):
        await comparer.result("run", 1, model.last, 65_536)
    await site.box.close()


async def test_a_restart_in_the_middle_is_not_called_equal(tmp_path: Path, model: JournalModel) -> None:
    site = Site(tmp_path, model)
    projector, _ = await site.start("run")
    site.digest(0, 65_536)
    for _ in range(3):
        model.put(j.Checkpoint, checkpoint="c", group="g", kind="crash", periodic=True, step=1_000_000)
    await site.publish()
    await projector.catch_up()
    await projector.changed.wait_for(
        lambda: projector.applier.applied_offset >= model.last - 1, 10, "the digest is applied"
    )
    await site.box.close()
    _, comparer = await site.start("run")
    last = site.digest(65_536, 65_536)
    await site.publish()
    with pytest.raises(UnavailableError, match="restarted"):
        await comparer.result("run", 1, last, 2 * 65_536)
    await site.box.close()


async def test_a_foreign_or_odd_digest_is_a_difference_and_never_a_crash(
    tmp_path: Path, model: JournalModel
) -> None:
    site = Site(tmp_path, model)
    _, comparer = await site.start("run")
    fields = {"run": "run", "round": 1, "chunk_bytes": CHUNK}
    model.put(j.Digest, **fields, start=model.size - 10, length=20, digests=bytes(16))
    model.put(j.Digest, **fields, start=0, length=4096, digests=b"short")
    last = model.put(j.Digest, **{**fields, "chunk_bytes": 0}, start=4096, length=4096, digests=b"")
    await site.publish()
    result = await comparer.result("run", 1, last, 20 + 8192)
    assert result.differing == [(0, 8192), (model.size - 10, 20)]
    await site.box.close()


async def test_an_unreadable_recovery_volume_is_an_error(tmp_path: Path, model: JournalModel) -> None:
    site = Site(tmp_path, model)
    projector, comparer = await site.start("run")
    await site.publish()
    await projector.apply_exactly(model.last, 10)
    await projector.applier.recovery.close()
    last = site.digest(0, 65_536)
    await site.publish()
    with pytest.raises(RephubError):
        await comparer.result("run", 1, last, 65_536)
    await site.box.close()


def test_the_fold_takes_a_digest_as_a_marker(model: JournalModel) -> None:
    from rephub.core.codec import decode_journal  # noqa: PLC0415 - of this test alone
    from rephub.projections.journal_fold import fresh_state  # noqa: PLC0415 - of this test alone

    before = len(model.values)
    fields = {"run": "r", "round": 1, "start": 1 << 60, "length": 1, "chunk_bytes": 1, "digests": b""}
    model.put(j.Digest, **fields)
    fold = JournalFold(fresh_state(-1, model.size))
    verdicts = [fold.feed(number, decode_journal(value)) for number, value in enumerate(model.values)]
    assert verdicts[before] is Verdict.MARKER
    assert Verdict.POISON not in verdicts
