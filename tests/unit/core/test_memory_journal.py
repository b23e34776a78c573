"""The memory journal's faults: what a simulator builds on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from rephub.core.errors import IndeterminateError, IntegrityError, NotFoundError, UnavailableError
from rephub.core.journal.memory import Fault, MemoryJournalStore, MemoryJournalWriter


@pytest.fixture
async def store() -> MemoryJournalStore:
    store = MemoryJournalStore()
    await store.create("v")
    return store


async def started(store: MemoryJournalStore) -> MemoryJournalWriter:
    writer = store.writer("v")
    await writer.start()
    return writer


def inject(store: MemoryJournalStore, *faults: Fault) -> None:
    left = list(faults)
    store.fault = lambda _volume, _values: left.pop(0) if left else None


async def values(store: MemoryJournalStore) -> Sequence[bytes]:
    return store.journal("v").values


async def test_lost_ack(store: MemoryJournalStore) -> None:
    inject(store, Fault(acked=False))
    writer = await started(store)
    with pytest.raises(IndeterminateError):
        await writer.append([b"a"])
    assert await values(store) == [b"a"]
    with pytest.raises(IndeterminateError):
        await writer.append([b"b"])
    assert await (await started(store)).append([b"c"]) == 1


async def test_lost_batch(store: MemoryJournalStore) -> None:
    inject(store, Fault(lands=False))
    with pytest.raises(IndeterminateError):
        await (await started(store)).append([b"a"])
    assert await values(store) == []


async def test_a_batch_that_lands_late(store: MemoryJournalStore) -> None:
    inject(store, Fault(lands=False, late=True))
    writer = await started(store)
    with pytest.raises(IndeterminateError):
        await writer.append([b"late"])
    await writer.abandon()
    assert await (await started(store)).append([b"next epoch"]) == 0
    await store.land_late("v")
    assert await values(store) == [b"next epoch", b"late"]


@pytest.mark.parametrize("place", ["before", "after"])
async def test_delay_and_abandon(store: MemoryJournalStore, place: str) -> None:
    gates = [asyncio.get_running_loop().create_future() for _ in range(2)]
    inject(store, *(Fault(**{place: gate}) for gate in gates))
    writer = await started(store)
    appending = asyncio.create_task(writer.append([b"a"]))
    await asyncio.sleep(0)
    assert not appending.done()
    assert await values(store) == ([b"a"] if place == "after" else [])
    gates[0].set_result(None)
    assert await appending == 0
    appending = asyncio.create_task(writer.append([b"b"]))
    await asyncio.sleep(0)
    await writer.abandon()
    with pytest.raises(IndeterminateError):
        await appending
    assert await values(store) == ([b"a", b"b"] if place == "after" else [b"a"])


async def test_outage(store: MemoryJournalStore) -> None:
    writer, reader = await started(store), store.reader("v")
    async with asyncio.timeout(5), aclosing(reader.tail(0)) as tail:
        following = asyncio.create_task(anext(tail))
        await asyncio.sleep(0)
        await store.set_unavailable(True)
        for call in (reader.fetch(0), reader.next_offset(), store.writer("v").start(), store.create("w")):
            with pytest.raises(UnavailableError):
                await call
        with pytest.raises(IndeterminateError):
            await writer.append([b"a"])
        await store.set_unavailable(False)
        await (await started(store)).append([b"b"])
        assert [record.value for record in await following] == [b"b"]


async def test_a_power_cut_takes_acked_records(store: MemoryJournalStore) -> None:
    await (await started(store)).append([b"a", b"b", b"c"])
    async with asyncio.timeout(5), aclosing(store.reader("v").tail(0)) as tail:
        assert len(await anext(tail)) == 3
        await store.truncate("v", 1)
        with pytest.raises(IntegrityError):
            await anext(tail)


async def test_a_deleted_journal_ends_its_tail(store: MemoryJournalStore) -> None:
    async with asyncio.timeout(5), aclosing(store.reader("v").tail(0)) as tail:
        following = asyncio.create_task(anext(tail))
        await asyncio.sleep(0)
        await store.delete("v")
        with pytest.raises(NotFoundError):
            await following


async def test_corrupt(store: MemoryJournalStore) -> None:
    await (await started(store)).append([b"a", b"b"])
    store.corrupt("v", 1, b"x")
    assert (await store.reader("v").fetch(1))[0].value == b"x"
