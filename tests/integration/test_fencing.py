"""Whoever comes later, or has stood still, writes nothing that counts; its agent hears of it, and does not fight.

A real agent and a real diskbox on one journal; the test plays the hub, and whoever takes over.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import intruder
from agent_rig import Rig, fresh
from diskbox_site import DiskboxSite, read_all, running
from intruder import Intruder
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.agent import epochs
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.projections.journal_fold import JournalFold, Verdict, fresh_state
from rephub.schemas import events as ev
from rephub.schemas import journal as jr

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 4 * MIB
LATE, THEIRS = MIB, 3 * MIB
"""Where the one that stood still writes, and where the other does."""


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE])
    yield daemon
    daemon.stop()


@pytest.fixture
async def site(rig: Rig, short_dir: Path, kafka: str) -> AsyncIterator[DiskboxSite]:
    control, store = KafkaControlLog(kafka), KafkaJournalStore(kafka, JOURNAL_CONFIG)
    await control.start()
    site = DiskboxSite(short_dir, store, control)
    site.box = fresh("box")
    async with running(site):
        yield site
    await store.close()
    await control.close()


class Case:
    """One protected volume whose agent can be stopped as a whole."""

    def __init__(self, rig: Rig, site: DiskboxSite, qsd: StorageDaemon) -> None:
        self.rig, self.site, self.qsd, self.name = rig, site, qsd, fresh()
        self.load = Load(qsd.uri())

    async def protect(self, **options: Any) -> None:
        self.load("write", start=0, length=MIB, seed=1)
        await self.rig.protect(self.name, self.qsd.qmp, "disk0", SIZE, diskbox=self.site.box, **options)
        await self.rig.protected(self.name)

    def stand_still(self) -> list[int]:
        """Control process and workers; returns their pids, the workers' first."""
        assert self.rig.process is not None
        pids = [*self.rig.workers(), self.rig.process.pid]
        for pid in reversed(pids):
            freeze(pid)
        return pids

    async def late_write(self, pids: list[int]) -> None:
        """The guest writes while nobody answers; then the agent goes on. No error reaches the guest."""
        self.load.send("write", start=LATE, length=4096, seed=2)
        await asyncio.to_thread(self.in_flight)
        for pid in pids:
            thaw(pid)
        answer = await asyncio.to_thread(self.load.receive)
        assert "error" not in answer

    def in_flight(self) -> None:
        """The write is on the disk, as the filter writes the source first: the agent is to answer now."""
        while not any(self.disk()[LATE : LATE + 4096]):
            pass

    def disk(self) -> bytes:
        return self.qsd.files[0].read_bytes()

    async def verdicts(self) -> tuple[list[tuple[jr.Record, Verdict]], JournalFold]:
        fold = JournalFold(fresh_state(-1, SIZE))
        records = await self.rig.records(self.name)
        return [(record, fold.feed(offset, record)) for offset, record in records], fold

    async def view(self) -> bytes:
        """The newest point, as the diskbox serves it."""
        fot = await self.site.fot(fresh("fot"), [self.name], "latest", "")
        assert fot.state == "started", fot.reason
        data = await read_all(fot.views[0]["uri"])
        await self.site.stop_fot(fot.name)
        return data


@pytest.fixture
def case(rig: Rig, site: DiskboxSite, qsd: StorageDaemon) -> Iterator[Case]:
    case = Case(rig, site, qsd)
    yield case
    case.load.close()


@pytest.mark.parametrize("ack", ["async", "journal"])
async def test_an_agent_that_stood_still_while_another_took_over_is_fenced(
    case: Case, kafka: str, ack: str
) -> None:
    rig, site, name = case.rig, case.site, case.name
    await case.protect(ack=ack)
    pids = case.stand_still()
    before, journal = case.disk(), Intruder(kafka, name)
    started, other = intruder.takeover(await journal.newest(), SIZE)
    theirs = intruder.write(other, THEIRS, b"theirs")
    taken_at = await journal.put(started, theirs)
    await case.late_write(pids)

    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, name))
    (lost,) = rig.of(ev.CaptureLost, name)
    assert (lost.epoch, lost.reason) == (1, "epoch 2 took over from epoch 1")
    status = rig.volume_status(name)
    assert (status["attached"], status["reason"]) == (False, lost.reason)
    assert status["gap_since_at"]
    # The guest goes on, and nobody takes the volume back.
    case.load("scattered", size=SIZE, length=4096, seconds=1.5, depth=4, per_second=200, seed=3)
    found, fold = await case.verdicts()
    late = [(record, verdict) for record, verdict in found[taken_at:] if record.epoch == 1]
    assert late
    assert {verdict for _, verdict in late} == {Verdict.FENCED}
    assert any(isinstance(record, jr.Write) and record.start == LATE for record, _ in late)
    assert [record.epoch for record, _ in found if isinstance(record, jr.EpochStarted)] == [1, 2]
    box = await site.until(
        lambda _: (found := site.status(name)) and found["epoch"] == 2 and found, "epoch 2"
    )
    assert (box["fenced_events"], box["in_gap"], box["stopped"]) == (len(late), True, None)
    assert fold.state.fenced_events == len(late)
    assert box["latest_offset"] == taken_at - 1
    assert await case.view() == before

    await rig.tell(ev.ResyncRequested, volume=name)
    await rig.until("third epoch", lambda: rig.of(ev.FilterAttached, name)[-1].epoch == 3)
    await rig.protected(name)
    offset = (await rig.checkpoint(fresh("c"), name))[name]
    await site.until(lambda _: site.status(name)["latest_offset"] >= offset, "the checkpoint")
    assert await case.view() == case.disk()
    assert len(rig.of(ev.FilterAttached, name)) == 2


async def test_an_agent_that_returns_after_a_promote_adds_nothing(case: Case) -> None:
    rig, site, name = case.rig, case.site, case.name
    await case.protect()
    offset = (await rig.checkpoint(fresh("c"), name))[name]
    before, pids = case.disk(), case.stand_still()
    promotion = fresh("p")
    await site.promotion(promotion, [name], "offset", str(offset))
    await rig.tell(ev.PromoteStarted, promotion=promotion)
    done = await site.promoted(promotion)
    assert done.state == "promoted", done.reason
    (fence,) = [at for at, record in await rig.records(name) if record.epoch == 2]
    await case.late_write(pids)
    # Whether it first hears of the promote or of the fence.
    await rig.until("let go", lambda: rig.of(ev.CaptureDetached, name) or rig.of(ev.CaptureLost, name))
    case.load("scattered", size=SIZE, length=4096, seconds=1, depth=4, per_second=200, seed=3)
    assert rig.state(name) == "promoted"
    assert not rig.volume_status(name).get("attached")
    found, _fold = await case.verdicts()
    assert all(verdict is Verdict.FENCED for _, verdict in found[fence + 1 :])
    assert len(rig.of(ev.FilterAttached, name)) == 1
    assert Path(done.plans[0]["path"]).read_bytes() == before
    await rig.until("nothing is left in QEMU", lambda: not case.qsd.execute("query-block-jobs")["return"])


async def test_of_two_that_write_the_same_next_epoch_one_wins(kafka: str) -> None:
    """Both looked before either wrote: the later one finds that out, and takes the next."""
    stores = [KafkaJournalStore(kafka, JOURNAL_CONFIG) for _ in range(2)]
    name = fresh()
    await stores[0].admin().create(name)
    claims: list[epochs.Claim] = []
    for _ in range(5):
        claims += await asyncio.gather(
            *(epochs.claim(store, name, [], uuid.uuid4().hex, SIZE, "race") for store in stores)
        )
    journal = Intruder(kafka, name)
    newest = await journal.newest()
    await journal.put(*(intruder.takeover(newest, SIZE, epoch=11)[0] for _ in range(2)))
    claims.append(await epochs.claim(stores[1], name, [], uuid.uuid4().hex, SIZE, "after both"))
    assert sorted(claim.epoch for claim in claims) == [*range(1, 11), 12]
    reader = stores[0].reader(name)
    await reader.start()
    fold, head, at, won = JournalFold(fresh_state(-1, SIZE)), await reader.next_offset(), 0, {}
    while at < head:
        for stored in await reader.fetch(at):
            record = epochs.started(stored.value)
            assert record is not None
            if fold.feed(stored.journal_offset, record) is not Verdict.FENCED:
                won[record.epoch] = record.attachment_id.hex()
            at = stored.journal_offset + 1
    await reader.close()
    assert {claim.epoch: claim.attachment_id for claim in claims}.items() <= won.items()
    assert fold.state.fenced_events == head - 12
    assert fold.state.fenced_events > 1, "two did want the same epoch"
    for store in stores:
        await store.close()
