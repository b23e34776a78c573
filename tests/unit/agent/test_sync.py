"""Sync against a disk in memory: what it journals, applied to what the journal had, gives the disk."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rephub.agent import sync as sync_module
from rephub.agent.delta import context_of, to_copy, union
from rephub.agent.dirty import DirtyRegions
from rephub.agent.extents import Extent
from rephub.agent.queue import EventQueue, Kind, Queued
from rephub.agent.sync import Pace, Sync, windows

MIB = 1 << 20
SIZE = 5 * MIB + 512
BLOCK = 64 << 10


class Disk:
    """A source; a write may happen while it reads."""

    def __init__(self, seed: int, queue: EventQueue) -> None:
        self.random = random.Random(seed)
        self.data = bytearray(self.random.randbytes(SIZE))
        self.holes = [number for number in range(SIZE // BLOCK) if self.random.random() < 0.3]
        for number in self.holes:
            self.data[number * BLOCK : (number + 1) * BLOCK] = bytes(BLOCK)
        self.queue = queue
        self.read_bytes = 0

    async def read(self, start: int, length: int) -> bytes:
        self.read_bytes += length
        data = bytes(self.data[start : start + length])
        await asyncio.sleep(0)
        if self.random.random() < 0.3:
            self.write(start + self.random.randrange(length))
        return data

    def write(self, at: int) -> None:
        length = min(self.random.choice((1, 512, 100_000)), SIZE - at)
        data = self.random.randbytes(length)
        self.data[at : at + length] = data
        self.queue.write(0, at, data)

    async def block_status(
        self, start: int, length: int, context: str = "base:allocation"
    ) -> list[tuple[int, int]]:
        """As a server that looks a little further than it was asked, or not so far."""
        assert context == "base:allocation"
        found = []
        at = start
        while at < min(start + length, SIZE):
            number = at // BLOCK
            size = min((number + 1) * BLOCK, SIZE) - at
            whole = bytes(self.data[at : at + size])
            found.append((size, 3 if number in self.holes and not any(whole) else 0))
            at += size
        return found[: self.random.randrange(1, 20)]


class Journal:
    """Takes what is queued, acks it and applies it to a copy."""

    def __init__(self, queue: EventQueue, dirty: DirtyRegions, copy: bytearray) -> None:
        self.queue, self.dirty, self.copy = queue, dirty, copy
        self.events: list[Queued] = []
        self.sync_bytes = 0

    def publish(self) -> None:
        while batch := self.queue.take_batch(1 << 20):
            for event in batch:
                data = bytes(event.length) if event.data is None else bytes(event.data)
                if event.is_sync:
                    self.sync_bytes += event.length
                self.copy[event.start : event.start + event.length] = data
                self.events.append(event)
                if event.is_sync:
                    self.dirty.acked(event.start, event.length, 0)
            self.queue.acked()
            for event in batch:
                if event.on_ack:
                    event.on_ack(len(self.events))


async def run(
    seed: int, extents: list[Extent] | None, base: bytes | None = None
) -> tuple[Disk, Journal, Sync]:
    queue, dirty = EventQueue(), DirtyRegions(SIZE)
    disk = Disk(seed, queue)
    copy = bytearray(SIZE) if base is None else bytearray(base)
    if extents is not None:
        # The journal has everything but the extents.
        for start, length in union([*extents], SIZE):
            copy[start : start + length] = b"\xee" * length
        kept = bytearray(disk.data)
        for start, length in extents:
            kept[start : start + length] = copy[start : start + length]
        copy = kept
    journal = Journal(queue, dirty, copy)
    sync = Sync(disk, SIZE, extents, queue=queue, dirty=dirty, pace=Pace(queue), wake=journal.publish)
    await asyncio.wait_for(sync.run(), 10)
    journal.publish()
    return disk, journal, sync


Extents = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, MIB)), max_size=6).map(
    lambda extents: union(extents, SIZE)
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "WINDOW_BYTES", 2 * MIB)


def marks(journal: Journal) -> list[tuple[Kind, dict[str, object]]]:
    return [(event.kind, event.fields) for event in journal.events if event.fields]


@pytest.mark.parametrize("seed", range(5))
async def test_full_sync_copies_the_disk(seed: int) -> None:
    disk, journal, sync = await run(seed, None)
    assert journal.copy == disk.data
    assert (sync.mode, sync.total_bytes, sync.done_bytes) == ("full", SIZE, SIZE)
    assert marks(journal)[0] == (Kind.SYNC_STARTED, {"mode": "full", "total_bytes": SIZE})
    assert journal.dirty.dirty_bytes == 0


@settings(max_examples=15)
@given(Extents, st.integers(0, 1000))
def test_delta_sync_copies_its_extents_and_nothing_else(extents: list[Extent], seed: int) -> None:
    sync_module.WINDOW_BYTES = 2 * MIB
    disk, journal, sync = asyncio.run(run(seed, extents))
    wanted = sum(length for _, length in extents)
    assert journal.copy == disk.data
    assert (sync.mode, sync.total_bytes, sync.done_bytes) == ("delta", wanted, wanted)
    assert journal.sync_bytes <= wanted
    assert disk.read_bytes <= wanted
    assert marks(journal)[0] == (Kind.SYNC_STARTED, {"mode": "delta", "total_bytes": wanted})
    assert journal.dirty.dirty_bytes == 0


async def test_progress_counts_the_bytes_to_copy() -> None:
    _, journal, sync = await run(1, [(MIB, BLOCK), (4 * MIB, 2 * BLOCK)])
    assert (sync.done_bytes, sync.total_bytes) == (3 * BLOCK, 3 * BLOCK)
    assert sync.eta_seconds == 0
    assert marks(journal)[-1] == (Kind.SYNC_COMPLETED, {"total_bytes": 3 * BLOCK})


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=20), st.integers(0, 100))
def test_union_is_the_set_of_bytes(extents: list[Extent], size: int) -> None:
    joined = union(extents, size)
    covered = {byte for start, length in extents for byte in range(start, min(start + length, size))}
    assert {byte for start, length in joined for byte in range(start, start + length)} == covered
    assert all(first + length < second for (first, length), (second, _) in itertools.pairwise(joined))


@given(Extents)
def test_too_many_extents_become_regions(extents: list[Extent]) -> None:
    joined = union(extents, SIZE, extents_max=1)
    if len(extents) > 1:
        assert all(start % MIB == 0 and (start + length) % MIB in (0, SIZE % MIB) for start, length in joined)
    for start, length in extents:
        assert any(first <= start and start + length <= first + size for first, size in joined)


@given(Extents)
def test_windows_hold_each_byte_once_and_in_order(extents: list[Extent]) -> None:
    sync_module.WINDOW_BYTES = 2 * MIB
    found = windows(extents)
    assert union([piece for _, inside in found for piece in inside], SIZE) == extents
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    for number, inside in found:
        assert all(piece[0] // (2 * MIB) == (sum(piece) - 1) // (2 * MIB) == number for piece in inside)


class Server:
    """Shows two bitmaps of 1,500 bytes, and says of each at most what was asked."""

    def __init__(self, *shown: str) -> None:
        self.contexts = frozenset(shown)
        self.asked: list[tuple[int, int]] = []

    async def block_status(self, start: int, length: int, context: str) -> list[tuple[int, int]]:
        self.asked.append((start, length))
        if context == context_of("record"):
            return [(100, 0), (50, 1), (length - 150, 0)] if start == 0 else [(length, 0)]
        return [(length, 1)] if start == 0 else [(200, 1), (length - 200, 0)]


async def test_what_was_written_and_what_the_guard_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(context_of("record"), "qemu:dirty-bitmap:guard")
    monkeypatch.setattr("rephub.agent.delta.STATUS_BYTES", 1000)
    assert await to_copy(server, "record", "guard", 1500) == [(100, 50), (1200, 300)]
    assert server.asked == 2 * [(0, 1000), (1000, 500)]


async def test_bitmaps_that_are_not_shown_say_nothing() -> None:
    assert await to_copy(Server(context_of("record")), "record", "guard", 1500) is None
