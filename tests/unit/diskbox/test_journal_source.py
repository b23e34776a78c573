"""Events by offset, through a cache that others fill meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal_model import JournalModel
from rephub.consumers.diskbox.journal_source import JournalSource
from rephub.core.journal.port import StoredRecords


class Gated:
    """A reader that brings `count` records, once the gate is open for their first offset."""

    def __init__(self, count: int = 4) -> None:
        model = JournalModel(seed=3)
        model.start_epoch()
        for number in range(1, 12):
            model.write(number * 512, bytes([number]) * 512)
        self.values, self.count = model.values, count
        self.gates: dict[int, asyncio.Future[None]] = {}

    async def fetch(self, journal_offset: int, bytes_max: int) -> StoredRecords:
        if journal_offset in self.gates:
            await self.gates[journal_offset]
        return StoredRecords.of(journal_offset, self.values[journal_offset : journal_offset + self.count])


@pytest.mark.timeout(20)
async def test_an_event_that_its_own_fetch_drives_out_is_read_all_the_same() -> None:
    """It came with a neighbour's fetch before, so it is among the oldest; somebody else asks for it at that very moment."""
    reader: Any = Gated()
    source = JournalSource(reader, cache_bytes_max=4 * len(reader.values[1]))
    gate = reader.gates[5] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(source.data(5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bytes(await source.data(3)) == bytes([3]) * 512

    async def late() -> memoryview:
        await gate
        return await source.data(5)

    second = asyncio.create_task(late())
    await asyncio.sleep(0)
    gate.set_result(None)
    assert bytes(await first) == bytes(await second) == bytes([5]) * 512
    assert source.cached_bytes <= 4 * len(reader.values[1])
