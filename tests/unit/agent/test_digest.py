"""Digests beside a guest: what the journal holds at a digest's offset is what the digest says.

The model has what makes it hard: a write is on the disk before it is in the queue.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rephub.agent import digest
from rephub.agent.digest import Digester, settled
from rephub.agent.queue import EventQueue, Kind, Queued
from rephub.agent.sync import Pace
from rephub.core.digests import CHUNK_BYTES, DIGEST_BYTES, chunks, differing_chunks, digests_of, is_zero

SIZE = 9 * CHUNK_BYTES + 5000


class Guest:
    """A disk, its guest, what is on its way to the queue, and the journal as it comes out of it."""

    def __init__(self, seed: int, hot: bool) -> None:
        self.random = random.Random(seed)
        self.hot = hot
        self.disk = bytearray(SIZE)
        for _ in range(6):
            start = self.random.randrange(SIZE - 40_000)
            self.disk[start : start + 40_000] = self.random.randbytes(40_000)
        self.image = bytearray(self.disk)
        """By the journal's events so far."""
        self.flying: list[tuple[int, bytes]] = []
        self.queue = EventQueue()
        self.wrong: list[tuple[int, int]] = []
        """Chunks that differed at their digest's offset."""
        self.explained = True
        self.covered = 0
        self.idle = False

    async def read(self, start: int, length: int) -> bytes:
        self.act()
        data = bytes(self.disk[start : start + length])
        self.act()
        await asyncio.sleep(0)
        self.act()
        return data

    async def block_status(self, start: int, length: int) -> list[tuple[int, int]]:
        self.act()
        found, end = [], min(start + length, start + 3 * CHUNK_BYTES)
        for at in range(start, end, 4096):
            size = min(4096, end - at)
            found.append((size, 3 if is_zero(self.disk[at : at + size]) else 0))
        await asyncio.sleep(0)
        self.act()
        return found

    def act(self) -> None:
        """The guest writes, and what it wrote arrives, in any mixture."""
        for _ in range(0 if self.idle else self.random.randrange(4)):
            if self.random.random() < 0.5:
                length = self.random.choice((1, 512, 4096, 30_000))
                start = self.random.randrange(CHUNK_BYTES if self.hot else SIZE - length)
                data = bytes(length) if self.random.random() < 0.2 else self.random.randbytes(length)
                self.disk[start : start + length] = data
                self.flying.append((start, data))
            elif self.flying:
                self.arrive()

    def arrive(self) -> None:
        """The oldest write on its way enters the queue."""
        start, data = self.flying.pop(0)
        self.queue.write(0, start, data)
        self.pump()

    def settle(self) -> None:
        """What QEMU's drain does."""
        while self.flying:
            self.arrive()

    def pump(self) -> None:
        """Publish at once: the journal's order is the queue's."""
        batch = self.queue.take_batch(1 << 30)
        data = {event.seq: bytes(event.data) for event in batch if event.data is not None}
        for event in self.queue.acked():
            if event.kind is Kind.WRITE:
                self.image[event.start : event.start + event.length] = data[event.seq]
            else:
                self.check(event)
            if event.on_ack:
                event.on_ack(event.seq)

    def check(self, event: Queued) -> None:
        assert event.kind is Kind.DIGEST
        fields = event.fields
        start, length = int(fields["start"]), int(fields["length"])  # type: ignore[call-overload]
        self.covered += length
        here = self.image[start : start + length]
        wrong = differing_chunks(here, start, CHUNK_BYTES, fields["digests"])  # type: ignore[arg-type]
        self.wrong += wrong
        for first, size in wrong:
            # A difference that is none: a write that the read saw has not arrived.
            if not any(at < first + size and first < at + len(data) for at, data in self.flying):
                self.explained = False

    def digester(self, round_: int) -> Digester:
        return Digester(self, self.queue, Pace(self.queue), self.pump, "run", round_)


@pytest.fixture(autouse=True, scope="module")
def at_once() -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(digest, "BACK_OFF_SECONDS", 0)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), hot=st.booleans())
def test_beside_the_guest_only_writes_on_their_way_look_like_differences(seed: int, hot: bool) -> None:
    async def run() -> None:
        guest = Guest(seed, hot)
        counts = await guest.digester(1).run([(0, SIZE)])
        assert guest.explained
        assert counts.digested_bytes == guest.covered
        assert counts.digested_bytes + counts.skipped_bytes == SIZE

    asyncio.run(run())


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), hot=st.booleans(), final=st.booleans())
def test_held_reads_are_exact_once_all_writes_arrived(seed: int, hot: bool, final: bool) -> None:
    async def run() -> None:
        guest = Guest(seed, hot)
        digester = guest.digester(2)
        pieces = [
            (0, 4 * CHUNK_BYTES),
            (5 * CHUNK_BYTES + 4096, 20_000),
            (8 * CHUNK_BYTES, SIZE - 8 * CHUNK_BYTES),
        ]
        await digester.hold(pieces)
        guest.act()
        guest.settle()
        guest.act()
        again = await digester.release(final=final)
        assert guest.wrong == []
        counts = digester.counts
        left = sum(length for _, length in again)
        assert counts.digested_bytes + counts.skipped_bytes + left == sum(length for _, length in pieces)
        assert not (final and again)
        assert not guest.queue._reads, "no read stays registered"

    asyncio.run(run())


def test_without_the_drain_it_would_not_be_exact() -> None:
    async def wrong(seed: int) -> int:
        guest = Guest(seed, hot=True)
        digester = guest.digester(2)
        await digester.hold([(0, CHUNK_BYTES)])
        await digester.release(final=True)
        return len(guest.wrong)

    assert any(asyncio.run(wrong(seed)) for seed in range(50))


def test_an_idle_disk_is_digested_whole_and_equal() -> None:
    async def run() -> None:
        guest = Guest(7, hot=False)
        guest.idle = True
        counts = await guest.digester(1).run([(0, SIZE)])
        assert (guest.wrong, counts.digested_bytes, counts.skipped_bytes) == ([], SIZE, 0)
        guest.disk[5 * CHUNK_BYTES] ^= 1
        counts = await guest.digester(1).run([(0, SIZE)])
        assert [start for start, _ in guest.wrong] == [5 * CHUNK_BYTES]

    asyncio.run(run())


def test_a_failed_read_leaves_nothing_registered() -> None:
    async def run() -> None:
        guest = Guest(1, hot=False)
        guest.idle = True
        reads = 0

        async def read(start: int, length: int) -> bytes:
            nonlocal reads
            reads += 1
            if reads == 3:
                raise ConnectionError
            return bytes(guest.disk[start : start + length])

        source: Callable[..., object] = read
        guest.read = source  # type: ignore[method-assign, assignment]
        digester = guest.digester(2)
        with pytest.raises(ConnectionError):
            await digester.hold([(0, CHUNK_BYTES)] * 5)
        assert not guest.queue._reads

    asyncio.run(run())


@given(
    start=st.integers(0, 3 * CHUNK_BYTES),
    length=st.integers(1, 4 * CHUNK_BYTES),
    younger=st.lists(st.tuples(st.integers(0, 8 * CHUNK_BYTES), st.integers(1, 70_000)), max_size=6),
)
def test_settled_keeps_whole_chunks_that_nothing_touched(
    start: int, length: int, younger: list[tuple[int, int]]
) -> None:
    kept, again = settled(start, length, younger)
    inside = sorted([*kept, *again])
    assert sum(size for _, size in inside) == length
    assert all(a + n <= at or at + size <= a for at, size in kept for a, n in younger), (
        "what was written is never kept"
    )
    for at, _ in again:
        chunk = at // CHUNK_BYTES * CHUNK_BYTES
        assert any(a < chunk + 4 * CHUNK_BYTES and chunk < a + n for a, n in younger)


@given(
    data=st.binary(max_size=3 * 4096),
    chunk=st.sampled_from((1, 512, 4096)),
    flips=st.sets(st.integers(0, 12287)),
    base=st.integers(0, 9999),
)
def test_differing_chunks_are_those_that_were_changed(
    data: bytes, chunk: int, flips: set[int], base: int
) -> None:
    data = data[: 200 * chunk]
    said = digests_of(data, base, chunk)
    assert len(said) == len(list(chunks(base, len(data), chunk))) * DIGEST_BYTES
    flips = {at for at in flips if at < len(data)}
    other = bytearray(data)
    for at in flips:
        other[at] ^= 0xFF
    found = differing_chunks(other, base, chunk, said) if data else []
    assert {start // chunk for start, _ in found} == {(base + at) // chunk for at in flips}
    zero = differing_chunks(data, base, chunk, b"")
    assert {start // chunk for start, _ in zero} == {
        (base + at) // chunk for at, byte in enumerate(data) if byte
    }
