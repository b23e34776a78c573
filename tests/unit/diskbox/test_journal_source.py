"""Events by offset, through a cache that others fill meanwhile."""

from __future__ import annotations

import asyncio

from journal_model import JournalModel
from rephub.consumers.diskbox.journal_source import JournalSource
from rephub.core.journal.memory import MemoryJournalStore


async def test_a_cache_that_is_too_small_costs_time_and_nothing_else() -> None:
    """Many ask at once for events whose neighbours drive each other out."""
    store = MemoryJournalStore()
    await store.admin().create("v")
    writer, reader = store.writer("v"), store.reader("v")
    await writer.start()
    await reader.start()
    model = JournalModel(seed=3)
    model.start_epoch()
    written = {model.write(number * 512, bytes([number % 251 + 1]) * 512): number for number in range(300)}
    for value in model.values:
        await writer.append([value])
    source = JournalSource(reader, cache_bytes_max=2000)
    async with asyncio.timeout(20):
        for step in (1, 7, 300):
            offsets = list(written)[::step]
            for found in await asyncio.gather(*(source.data_of(offsets) for _ in range(4))):
                assert {offset: bytes(data) for offset, data in found.items()} == {
                    offset: bytes([written[offset] % 251 + 1]) * 512 for offset in offsets
                }
    assert source.cached_bytes <= 2000
