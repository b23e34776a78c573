"""What every journal adapter must do. A subclass gives `store`; see `test_journal_*.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from rephub.core.errors import ConflictError, IndeterminateError, IntegrityError, NotFoundError, UsageError
from rephub.core.journal.port import APPEND_BYTES_MAX, BATCH_BYTES_MAX, JournalStore, StoredRecord

WAIT_SECONDS = 20


async def take(records: AsyncIterator[list[StoredRecord]], count: int) -> list[StoredRecord]:
    """The first records of a tail, as many as `count` or a few more."""
    taken: list[StoredRecord] = []
    async with asyncio.timeout(WAIT_SECONDS), aclosing(records) as open_records:
        async for batch in open_records:
            assert batch
            taken += batch
            if len(taken) >= count:
                break
    return taken


class JournalCases:
    """One journal store, one fresh volume per test."""

    async def write(self, store: JournalStore, volume: str, *batches: list[bytes]) -> list[int]:
        writer = store.writer(volume)
        await writer.start()
        offsets = [await writer.append(batch) for batch in batches]
        await writer.close()
        return offsets

    async def test_create_is_idempotent(self, store: JournalStore, volume: str) -> None:
        assert await store.admin().create(volume) is False  # the fixture made it
        await store.admin().delete(volume)
        assert await store.admin().create(volume) is True
        assert await store.admin().create(volume) is False

    async def test_delete_of_what_is_not_there(self, store: JournalStore, volume: str) -> None:
        await store.admin().delete(volume)
        await store.admin().delete(volume)

    async def test_append_returns_base_offsets(self, store: JournalStore, volume: str) -> None:
        assert await self.write(store, volume, [b"a", b"b", b"c"], [b"d"], [b"e", b"f"]) == [0, 3, 4]

    async def test_append_takes_any_buffer(self, store: JournalStore, volume: str) -> None:
        writer, reader = store.writer(volume), store.reader(volume)
        await writer.start()
        await reader.start()
        buffer = bytearray(b"0123456789")
        await writer.append([b"bytes", bytearray(b"bytearray"), memoryview(buffer)[2:5]])
        buffer[:] = bytes(10)  # ours again once the append returned
        assert [record.value for record in await reader.fetch(0)] == [b"bytes", b"bytearray", b"234"]
        await writer.close()
        await reader.close()

    async def test_a_new_writer_goes_on_at_the_head(self, store: JournalStore, volume: str) -> None:
        assert await self.write(store, volume, [b"a", b"b"]) == [0]
        assert await self.write(store, volume, [b"c"]) == [2]

    async def test_largest_batch_fits(self, store: JournalStore, volume: str) -> None:
        event = bytes(1 << 20)
        batch = [event, event, b"x" * (BATCH_BYTES_MAX - 2 * len(event) - 1 + 1), event]
        await self.write(store, volume, [value for value in batch if value])
        reader = store.reader(volume)
        await reader.start()
        assert (await take(reader.tail(0), 3))[-1].value == event
        await reader.close()

    async def test_batch_that_never_fits_is_refused_before_it_is_sent(
        self, store: JournalStore, volume: str
    ) -> None:
        writer = store.writer(volume)
        await writer.start()
        for batch in ([], [bytes(APPEND_BYTES_MAX)]):
            with pytest.raises(UsageError):
                await writer.append(batch)
        assert await writer.append([b"still alive"]) == 0
        await writer.close()

    async def test_offsets_of_an_empty_journal(self, store: JournalStore, volume: str) -> None:
        reader = store.reader(volume)
        await reader.start()
        assert (await reader.first_offset(), await reader.next_offset()) == (0, 0)
        with pytest.raises(IntegrityError):
            await reader.fetch(0)
        await reader.close()

    async def test_fetch_begins_at_the_offset(self, store: JournalStore, volume: str) -> None:
        values = [b"%d" % n for n in range(100)]
        await self.write(store, volume, values[:60], values[60:])
        reader = store.reader(volume)
        await reader.start()
        for offset in (0, 1, 59, 60, 99):
            records = await reader.fetch(offset)
            assert records[0] == StoredRecord(offset, values[offset])
            assert [record.value for record in records] == values[offset : offset + len(records)]
        await reader.close()

    async def test_fetch_returns_a_record_larger_than_asked(self, store: JournalStore, volume: str) -> None:
        await self.write(store, volume, [b"small"], [bytes(100_000)], [b"small"])
        reader = store.reader(volume)
        await reader.start()
        assert len((await reader.fetch(1, 10))[0].value) == 100_000
        await reader.close()

    @pytest.mark.parametrize("offset", [-1, 3, 1000])
    async def test_fetch_outside_the_log(self, store: JournalStore, volume: str, offset: int) -> None:
        await self.write(store, volume, [b"a", b"b", b"c"])
        reader = store.reader(volume)
        await reader.start()
        with pytest.raises(IntegrityError) as caught:
            await reader.fetch(offset)
        assert (caught.value.fields["first_offset"], caught.value.fields["next_offset"]) == (0, 3)
        await reader.close()

    async def test_fetches_at_once(self, store: JournalStore, volume: str) -> None:
        await self.write(store, volume, *[[b"%d" % n] for n in range(20)])
        reader = store.reader(volume)
        await reader.start()
        async with asyncio.timeout(WAIT_SECONDS):
            found = await asyncio.gather(*(reader.fetch(n, 1) for n in range(20)))
        assert [records[0].value for records in found] == [b"%d" % n for n in range(20)]
        await reader.close()

    async def test_tail_from_the_middle_then_what_comes(self, store: JournalStore, volume: str) -> None:
        await self.write(store, volume, [b"a", b"b", b"c"])
        reader = store.reader(volume)
        await reader.start()
        async with asyncio.timeout(WAIT_SECONDS):
            tailing = asyncio.create_task(take(reader.tail(1), 4))
            await self.write(store, volume, [b"d"], [b"e"])
            found = await tailing
        assert found == [StoredRecord(n + 1, value) for n, value in enumerate((b"b", b"c", b"d", b"e"))]
        await reader.close()

    async def test_tail_waits_at_the_head(self, store: JournalStore, volume: str) -> None:
        reader = store.reader(volume)
        await reader.start()
        async with asyncio.timeout(WAIT_SECONDS):
            tailing = asyncio.create_task(take(reader.tail(0), 1))
            await self.write(store, volume, [b"first"])
            assert await tailing == [StoredRecord(0, b"first")]
        await reader.close()

    @pytest.mark.parametrize("offset", [0, 4])
    async def test_tail_outside_the_log(self, store: JournalStore, volume: str, offset: int) -> None:
        await self.write(store, volume, [b"a", b"b", b"c"])
        await store.admin().delete_records(volume, 1)
        reader = store.reader(volume)
        await reader.start()
        with pytest.raises(IntegrityError):
            await take(reader.tail(offset), 1)
        await reader.close()

    async def test_tail_ends_with_its_reader_task(self, store: JournalStore, volume: str) -> None:
        reader = store.reader(volume)
        await reader.start()
        tailing = asyncio.create_task(take(reader.tail(0), 1))
        await asyncio.sleep(0)
        tailing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tailing
        await reader.close()

    async def test_delete_records_moves_the_log_start(self, store: JournalStore, volume: str) -> None:
        await self.write(store, volume, [b"a", b"b", b"c", b"d"])
        reader = store.reader(volume)
        await reader.start()
        await store.admin().delete_records(volume, 2)
        assert (await reader.first_offset(), await reader.next_offset()) == (2, 4)
        assert (await reader.fetch(2))[0].value == b"c"
        with pytest.raises(IntegrityError):
            await reader.fetch(1)
        await store.admin().delete_records(volume, 1)  # below the log start: nothing happens
        assert await reader.first_offset() == 2
        await store.admin().delete_records(volume, 4)  # all of it
        assert (await reader.first_offset(), await reader.next_offset()) == (4, 4)
        with pytest.raises(IntegrityError):
            await store.admin().delete_records(volume, 5)
        await reader.close()

    async def test_no_such_journal(self, store: JournalStore) -> None:
        with pytest.raises(NotFoundError):
            await store.writer("nobody-made-this").start()
        with pytest.raises(NotFoundError):
            await store.reader("nobody-made-this").start()
        with pytest.raises(NotFoundError):
            await store.admin().delete_records("nobody-made-this", 1)

    async def test_abandoned_writer_is_dead(self, store: JournalStore, volume: str) -> None:
        writer = store.writer(volume)
        await writer.start()
        await writer.append([b"a"])
        await writer.abandon()
        await writer.abandon()
        with pytest.raises(IndeterminateError):
            await writer.append([b"b"])
        reader = store.reader(volume)
        await reader.start()
        assert await reader.next_offset() == 1
        await reader.close()

    async def test_abandon_before_start(self, store: JournalStore, volume: str) -> None:
        await store.writer(volume).abandon()

    async def test_cancelled_append_makes_the_writer_dead(self, store: JournalStore, volume: str) -> None:
        writer = store.writer(volume)
        await writer.start()
        appending = asyncio.create_task(writer.append([b"a"]))
        await asyncio.sleep(0)
        appending.cancel()
        try:
            await appending
        except asyncio.CancelledError:
            with pytest.raises(IndeterminateError):
                await writer.append([b"b"])
        await writer.abandon()

    async def test_one_append_at_a_time(self, store: JournalStore, volume: str) -> None:
        writer = store.writer(volume)
        with pytest.raises(UsageError):
            await writer.append([b"not started"])
        await writer.abandon()


class NameCollisionCases:
    """Only where names collide."""

    async def test_dot_and_underscore_collide(self, store: JournalStore, volume: str) -> None:
        name = f"{volume}.disk"
        await store.admin().create(name)
        try:
            with pytest.raises(ConflictError, match="collides"):
                await store.admin().create(name.replace(".disk", "_disk"))
        finally:
            await store.admin().delete(name)
