"""The ordered queue against a model: whatever the interleaving of writes and sync reads, replay equals the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.agent import extents, queue
from rephub.agent.queue import EVENT_DATA_BYTES_MAX, EventQueue, Kind, Queued

DISK = 48

Extents = st.lists(st.tuples(st.integers(0, DISK - 1), st.integers(1, DISK)), max_size=6)


class Run:
    """A disk, its filter and its queue. A write reaches the source first and the queue later, as QEMU's filter does it;
    a sync read is issued, then served by the disk, then enqueued: three moments with anything between."""

    def __init__(self) -> None:
        self.disk = bytearray(b"\xee" * DISK)
        self.queue = EventQueue()
        self.replica = bytearray(DISK)
        self.unsent: list[tuple[int, int, int]] = []
        self.issued: list[tuple[queue.SyncRead, bytes | None]] = []
        self.synced = bytearray(DISK)

    def write_source(self, start: int, length: int, value: int) -> None:
        if any(extents.overlaps(start, length, other, size) for other, size, _value in self.unsent):
            return  # the filter serialises overlapping writes
        self.disk[start : start + length] = bytes([value]) * length
        self.unsent.append((start, length, value))

    def capture(self, number: int) -> None:
        if self.unsent:
            start, length, value = self.unsent.pop(number % len(self.unsent))
            if value:
                self.queue.write(0, start, bytes([value]) * length)
            else:
                self.queue.zero(0, start, length, unmap=False)

    def issue(self, start: int, length: int) -> None:
        if len(self.issued) < 5:
            self.issued.append((self.queue.open_read(start, length), None))

    def serve(self, number: int) -> None:
        if self.issued:
            read, _ = self.issued[number % len(self.issued)]
            data = bytes(self.disk[read.start : read.start + read.length])
            self.issued[number % len(self.issued)] = (read, data)

    def enqueue(self, number: int) -> None:
        done = [item for item in self.issued if item[1] is not None]
        if done:
            read, data = done[number % len(done)]
            self.issued.remove((read, data))
            assert data is not None
            self.queue.sync_data(0, read, data)
            self.queue.close_read(read)
            self.synced[read.start : read.start + read.length] = b"\1" * read.length

    def publish(self, bytes_max: int) -> None:
        batch = self.queue.take_batch(bytes_max)
        for event in batch:
            self.apply(event)
        self.queue.acked()

    def apply(self, event: Queued) -> None:
        data = bytes(event.length) if event.data is None else bytes(event.data)
        self.replica[event.start : event.start + event.length] = data

    def finish(self) -> None:
        while self.unsent:
            self.capture(0)
        for number in range(len(self.issued)):
            self.serve(number)
        while self.issued:
            self.enqueue(0)
        for start in range(DISK):
            if not self.synced[start]:
                self.issue(start, 1)
                self.serve(0)
                self.enqueue(0)
        while len(self.queue):
            self.publish(1)


Steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("write_source"), st.integers(0, DISK - 1), st.integers(1, DISK), st.integers(0, 255)
        ),
        st.tuples(st.just("capture"), st.integers(0, 9)),
        st.tuples(st.just("issue"), st.integers(0, DISK - 1), st.integers(1, DISK)),
        st.tuples(st.just("serve"), st.integers(0, 9)),
        st.tuples(st.just("enqueue"), st.integers(0, 9)),
        st.tuples(st.just("publish"), st.integers(1, 2000)),
    ),
    max_size=60,
)


def play(steps: list[tuple[Any, ...]]) -> Run:
    run = Run()
    for name, *arguments in steps:
        if name in ("write_source", "issue"):
            arguments[1] = min(arguments[1], DISK - arguments[0])
        getattr(run, name)(*arguments)
    run.finish()
    return run


@given(Steps)
def test_replay_equals_the_disk(steps: list[tuple[Any, ...]]) -> None:
    run = play(steps)
    assert run.replica == run.disk
    assert run.queue.queued_bytes == run.queue.unacked_bytes == 0
    assert run.queue.unacked_data_bytes == run.queue.unacked_sync_bytes == 0


STALE = [
    ("issue", 0, 8),
    ("serve", 0),
    ("write_source", 2, 3, 7),
    ("capture", 0),
    ("enqueue", 0),
]


@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        ("unmasked", lambda _read, start, length: [(start, length)]),
        ("covers", lambda *_: False),
        ("covers", lambda read, start, _length: read.start == start),
    ],
)
def test_a_dropped_mask_is_caught(rule: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(STALE).replica == play(STALE).disk
    monkeypatch.setattr(queue, rule, mutant)
    run = play(STALE)
    assert run.replica != run.disk


def test_seq_is_contiguous_over_all_kinds() -> None:
    events = EventQueue()
    read = events.open_read(0, 10)
    events.write(1, 0, b"ab")
    events.zero(2, 4, 2, unmap=True)
    events.mark(Kind.CHECKPOINT, 3, checkpoint="c")
    events.sync_data(4, read, bytes(10))
    events.close_read(read)
    batch = events.take_batch(1 << 20)
    assert [event.seq for event in batch] == list(range(1, len(batch) + 1))
    assert [(event.start, event.length) for event in batch[3:]] == [(2, 2), (6, 4)]
    assert events.oldest_captured_at == 1


def test_a_batch_is_bounded_and_alone_in_flight() -> None:
    events = EventQueue()
    for number in range(5):
        events.write(0, number, bytes(1000))
    batch = events.take_batch(2 * (1000 + queue.EVENT_OVERHEAD_BYTES))
    assert len(batch) == 2
    with pytest.raises(RuntimeError):
        events.take_batch(1)
    assert all(not event.acked for event in batch)
    assert [event.acked for event in events.acked()] == [True, True]
    assert len(events.take_batch(1)) == 1, "one event goes even if it is larger than a batch"


def test_limits() -> None:
    events = EventQueue()
    with pytest.raises(ValueError, match="not split"):
        events.write(0, 0, bytes(EVENT_DATA_BYTES_MAX + 1))
    for _ in range(queue.READS_MAX):
        events.open_read(0, 1)
    with pytest.raises(ValueError, match="sync reads"):
        events.open_read(0, 1)


@given(st.integers(0, DISK), st.integers(0, DISK), Extents)
def test_subtract_against_a_set(start: int, length: int, holes: list[tuple[int, int]]) -> None:
    expected = set(range(start, start + length))
    for hole, size in holes:
        expected -= set(range(hole, hole + size))
    found = extents.subtract(start, length, holes)
    assert [byte for first, size in found for byte in range(first, first + size)] == sorted(expected)
    assert all(size > 0 for _first, size in found)


def pieces(start: int, length: int, bytes_max: int) -> Iterator[int]:
    for first, size in extents.split(start, length, bytes_max):
        assert 0 < size <= bytes_max
        assert first // bytes_max == (first + size - 1) // bytes_max
        yield from range(first, first + size)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 30))
def test_split_covers_exactly(start: int, length: int, bytes_max: int) -> None:
    assert list(pieces(start, length, bytes_max)) == list(range(start, start + length))


def test_regions_touched() -> None:
    mib = 1 << 20
    assert list(extents.regions(0, 1)) == [0]
    assert list(extents.regions(mib - 1, 2)) == [0, 1]
    assert list(extents.regions(5, 0)) == []
