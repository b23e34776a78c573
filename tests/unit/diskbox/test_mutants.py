"""The judges are judged: with one rule broken, the comparison with the model must fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskbox_site import DiskboxSite, read_all, running
from journal_model import JournalModel
from rephub.consumers.diskbox.projector import Projector
from rephub.core.codec import journal as codec
from rephub.core.codec import runs
from rephub.core.control.memory import MemoryControlLog
from rephub.core.errors import RephubError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.projections import coalesce, index, journal_fold
from rephub.schemas import events as ev

apply_exactly = Projector.apply_exactly


def unchecked(value: bytes) -> Any:
    """Decode as if the crc were right."""
    original = codec.crc32c
    codec.crc32c = lambda _data, _crc=0: int.from_bytes(bytes(value[10:14]), "big")
    try:
        return codec.decode_journal(value)
    finally:
        codec.crc32c = original


async def one_more(self: Projector, offset: int, seconds: float, *more: Any) -> None:
    self.pins.clear()
    await apply_exactly(self, offset + 1, seconds, *more)


async def one_less(self: Projector, offset: int, seconds: float, *more: Any) -> None:
    await apply_exactly(self, offset - 1, seconds, *more)


MUTANTS: dict[str, tuple[object, str, Callable]] = {
    "merge takes the older event": (index, "newest_first", iter),
    "merge shows one event more": (index, "visible", lambda at, low, high: (at > low) & (at <= high + 1)),
    "merge shows one event less": (index, "visible", lambda at, low, high: (at > low) & (at < high)),
    "coalescing keeps the first": (coalesce, "last_first", iter),
    "promote applies one event more": (Projector, "apply_exactly", one_more),
    "promote applies one event less": (Projector, "apply_exactly", one_less),
    "crc unchecked": (runs, "decode_journal", unchecked),
    "fence forgotten": (journal_fold, "is_current", lambda state, record: record.epoch <= state.epoch),
    "seq unchecked": (journal_fold, "seq_fault", lambda state, record: ""),
}


async def scenario(short_dir: Path, poison: str) -> None:
    """Views, a damaged and a stale record, and a promote, all compared with the model."""
    site = DiskboxSite(short_dir, MemoryJournalStore(), MemoryControlLog())
    async with running(site), asyncio.timeout(20):
        model = JournalModel(size=64 << 10, seed=5)
        await site.protect("v", model)
        await site.created("v")
        model.source[:] = model.random.randbytes(model.size)
        model.start_epoch()
        first = model.attachment
        model.sync()
        model.start_epoch("again")
        model.sync()
        model.some_writes(30)
        stale = JournalModel(size=model.size)
        stale.epoch, stale.attachment, stale.seq = 1, first, 40
        stale.write(0, b"stale" * 1000)
        model.values.append(stale.values[0])
        model.images.append(model.images[-1])
        model.some_writes(5)
        point = model.write(100, b"the point")
        model.write(105, b"beyond")
        model.write(0, b"last" * 8000)
        model.seq += poison == "seq"
        damaged = model.write(0, b"x" * 100)
        if poison == "crc":
            model.values[damaged] = model.values[damaged][:-1] + b"y"
        await site.publish("v")
        await site.caught_up("v")
        await site.until(lambda _: site.status("v")["stopped"], "poison")
        assert site.status("v")["latest_offset"] == damaged - 1
        assert site.status("v")["fenced_events"] == 1
        for offset in (site.status("v")["earliest_offset"], point, damaged - 1):
            fot = await site.fot(f"f{offset}", ["v"], "offset", str(offset))
            assert fot.state == "started", fot.reason
            assert await read_all(fot.views[0]["uri"]) == model.image_at(offset)
            await site.stop_fot(fot.name)
        await site.promotion("p", ["v"], "offset", str(point))
        await site.tell(ev.PromoteStarted, promotion="p")
        promotion = await site.promoted("p")
        assert promotion.state == "promoted", promotion.reason
        assert Path(promotion.plans[0]["path"]).read_bytes() == model.image_at(point)


@pytest.mark.parametrize("poison", ["crc", "seq"])
async def test_the_scenario_holds(short_dir, poison) -> None:
    await scenario(short_dir, poison)


@pytest.mark.parametrize("name", MUTANTS)
async def test_each_mutant_is_caught(short_dir, monkeypatch, name) -> None:
    monkeypatch.setattr("diskbox_site.WAIT", 3.0)
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises((AssertionError, TimeoutError, RephubError)):  # a read that fails is a catch, too
        await scenario(short_dir, "seq" if name == "seq unchecked" else "crc")
