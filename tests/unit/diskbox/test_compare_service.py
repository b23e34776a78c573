"""Comparisons on a whole diskbox: accepted, answered, given up, and begun anew after a restart; hub and agent are played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diskbox_site import DiskboxSite, read_all, running
from journal_model import JournalModel
from rephub.core.control.memory import MemoryControlLog
from rephub.core.digests import digests_of
from rephub.core.errors import RephubError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.projections.entities import Comparison
from rephub.schemas import events as ev
from rephub.schemas import journal as j

CHUNK = 4096
HALF = 128 << 10


class Agent:
    """The agent's half of one comparison."""

    def __init__(self, site: DiskboxSite, model: JournalModel, run: str) -> None:
        self.site, self.model, self.run = site, model, run

    @property
    def comparison(self) -> Comparison:
        return self.site.diskbox.catalogue.comparisons[self.run]

    async def until(self, *states: str) -> Comparison:
        await self.site.until(lambda _: self.comparison.state in states, f"{self.run} {states}")
        return self.comparison

    async def digest(self, start: int, length: int) -> None:
        data = bytes(self.model.source[start : start + length])
        fields = {"run": self.run, "round": self.comparison.round, "start": start, "length": length}
        self.model.put(j.Digest, **fields, chunk_bytes=CHUNK, digests=digests_of(data, start, CHUNK))
        self.model.some_writes(2)
        await self.site.publish("v")

    async def digested(self, length: int) -> None:
        await self.site.tell(
            ev.ExtentsDigested, run=self.run, round=self.comparison.round, volume="v", epoch=self.model.epoch,
            last_offset=self.model.last, digested_bytes=length, skipped_bytes=0, copied_bytes=0,
        )  # fmt: skip


def make_site(short_dir: Path, **options: Any) -> DiskboxSite:
    return DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog(), **options)


async def protected(site: DiskboxSite, **fields: Any) -> JournalModel:
    """A volume that is synced and has written since."""
    model = JournalModel(seed=5)
    await site.protect("v", model, **fields)
    await site.created("v")
    model.source[:] = model.random.randbytes(model.size)
    model.start_epoch()
    await site.publish("v")
    await site.attach("v")
    await site.tell(ev.SyncRequested, volume="v", epoch=1)
    if "seed" not in fields:
        done = model.sync()
        model.some_writes(20)
        await site.publish("v")
        await site.tell(ev.VolumeSyncCompleted, volume="v", epoch=1, offset=done)
    return model


async def quiet(site: DiskboxSite) -> None:
    """Nothing is written: a thread of a life that ended must not meet the next one in this process."""

    def settled(_catalogue: object) -> bool:
        status = site.status("v")
        return status["applied_offset"] == status["intent_offset"] and status["pins"] == {}

    await site.caught_up("v")
    await site.until(settled, "quiet")


async def verify(site: DiskboxSite, model: JournalModel, run: str) -> Agent:
    """A verify that the diskbox accepted."""
    await site.tell(
        ev.VerifyRequested,
        verify=run,
        volume="v",
        epoch=model.epoch,
        repair=False,
        rate_bytes=None,
        deadline_at=1 << 60,
    )
    agent = Agent(site, model, run)
    await agent.until("digesting")
    return agent


async def test_a_verify_is_accepted_and_each_round_answered(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        agent = await verify(site, model, "one")
        await agent.digest(0, HALF)
        await agent.digest(HALF, HALF)
        await agent.digested(model.size)
        comparison = await agent.until("compared")
        assert (comparison.equal, comparison.compared_bytes) == (True, model.size)
        assert site.status("v")["pins"] == {}

        agent = await verify(site, model, "two") if await ended(site, "one") else agent
        model.source[5000] ^= 1  # a write that never came to the journal
        await agent.digest(0, HALF)
        await agent.digested(HALF)
        comparison = await agent.until("digesting")
        await site.until(lambda _: comparison.round == 2, "the suspects are looked at")
        assert comparison.extents == [[4096, 4096]]
        await agent.digest(4096, 4096)
        await agent.digested(4096)
        comparison = await agent.until("compared")
        assert (comparison.equal, comparison.found, comparison.found_bytes) == (False, [[4096, 4096]], 4096)


async def ended(site: DiskboxSite, run: str) -> bool:
    """Play the hub's end of a verify."""
    await site.tell(ev.VerifyFailed, verify=run, volume="v", error=RephubError("over").to_json())
    await site.until(lambda catalogue: catalogue.comparisons[run].ended, "over")
    return True


async def test_one_that_is_cancelled_holds_nothing(short_dir: Path) -> None:
    async with running(make_site(short_dir)) as site:
        model = await protected(site)
        agent = await verify(site, model, "one")
        await agent.digest(0, HALF)
        await ended(site, "one")
        await site.until(lambda _: site.status("v")["pins"] == {}, "no pin is left")
        await agent.digest(HALF, HALF)
        await site.caught_up("v")
        assert site.status("v")["pins"] == {}
        assert site.status("v")["stopped"] is None


async def applied(site: DiskboxSite, model: JournalModel) -> None:
    """Let the floor pass all that is there: an hour of nothing."""
    last = model.last
    for _ in range(2):
        model.put(j.Checkpoint, checkpoint="c", group="g", kind="crash", periodic=True, step=100_000_000_000)
    await site.publish("v")
    await site.until(lambda _: (site.status("v")["applied_offset"] or 0) >= last, "applied")
    await quiet(site)


async def test_after_a_restart_a_verify_fails_or_goes_on(short_dir: Path) -> None:
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site)
        agent = await verify(site, model, "kept")
        await agent.digest(0, HALF)
        await quiet(site)
    async with running(site):
        # Nothing of it was applied: its digests are read again.
        await agent.digest(HALF, HALF)
        await agent.digested(model.size)
        assert (await agent.until("compared")).equal
        await ended(site, "kept")
        agent = await verify(site, model, "missed")
        await agent.digest(0, HALF)
        await applied(site, model)
    async with running(site):
        await agent.digest(HALF, HALF)
        await agent.digested(model.size)
        assert "restarted" in (await agent.until("failed")).reason


async def test_after_a_restart_a_seed_is_compared_anew(short_dir: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed.raw"
    model = JournalModel(seed=5)
    content = bytearray(model.random.randbytes(model.size))
    content[70_000] ^= 1
    seed.write_bytes(content)
    site = make_site(short_dir)
    async with running(site):
        model = await protected(site, seed=str(seed))
        assert site.diskbox.catalogue.volumes["v"].to_compare
        assert bytes(model.source) != bytes(content), "the guest has written since"
        model.put(j.SyncStarted, mode="compare", total_bytes=model.size)
        await site.tell(ev.VolumeSyncStarted, volume="v", epoch=1, mode="compare", total_bytes=model.size)
        agent = Agent(site, model, model.attachment.hex())
        await site.until(lambda catalogue: agent.run in catalogue.comparisons, "begun")
        await agent.until("digesting")
        await agent.digest(0, HALF)
        await site.until(
            lambda _: (site.status("v")["applied_offset"] or 0) >= model.last, "a gap is applied at once"
        )
        await quiet(site)
    async with running(site):
        await agent.digest(HALF, HALF)
        await agent.digested(model.size)
        await site.until(lambda _: agent.comparison.round == 2, "begun anew")
        await agent.until("digesting")
        await agent.digest(0, model.size)
        await agent.digested(model.size)
        comparison = await agent.until("copying")
        assert any(start <= 70_000 < start + length for start, length in comparison.extents)
        for start, length in comparison.extents:
            model.put(j.SyncData, start=start, flags=0, data=bytes(model.source[start : start + length]))
        done = model.put(j.SyncCompleted, total_bytes=model.size)
        await site.publish("v")
        await site.tell(ev.VolumeSyncCompleted, volume="v", epoch=1, offset=done)
        await site.caught_up("v")
        assert not site.diskbox.catalogue.volumes["v"].to_compare
        fot = await site.fot("f", ["v"], "latest", "")
        assert fot.state == "started", fot
        assert await read_all(fot.views[0]["uri"]) == bytes(model.source)
        assert seed.read_bytes() == bytes(content)
