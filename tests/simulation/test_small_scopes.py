"""Everything that can happen in small: all orders of up to four writes on three blocks, all crash points, all interleavings.

Where the simulation draws, this counts through. Two parts: what becomes of requests up to the recovery volume, with a crash
at each durable step and the disk losing all, nothing or a part of what was not synced; and a sync read between writes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest

from rephub.agent import overload
from rephub.agent.capture import AckPolicy, Capture
from rephub.agent.dirty import DirtyRegions
from rephub.agent.publisher import Encoder
from rephub.agent.queue import EventQueue, SyncRead
from rephub.consumers.diskbox import applier as applier_module
from rephub.consumers.diskbox import files
from rephub.consumers.diskbox.applier import Applier
from rephub.consumers.diskbox.position import Position, load_position, save_position
from rephub.consumers.diskbox.recovery import RawFile, create_raw_file
from rephub.core.codec import decode_journal, encode_journal
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Request
from rephub.projections.index import DATA, ZERO, Index
from rephub.projections.journal_fold import JournalFold, fresh_state
from rephub.schemas import journal as j
from simulation import disk as disk_module
from simulation.disk import Disk, SimPath

BLOCK = 512
BLOCKS = 3
SIZE = BLOCK * BLOCKS
ID = b"i" * 16
DIRECTORY = SimPath("/v")
DATA_PATH = SimPath("/v/data.raw")
OPS = [(kind, block) for kind in "WZT" for block in range(BLOCKS)] + [("F", 0)]
FIRST = 3
"""Offset of the first event of a guest; before it the sync."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


class Nobody:
    """Marks that nobody waits for, and a connection that nobody listens at."""

    away = False

    def want(self, *_: Any) -> None: ...

    def reply(self, *_: Any) -> None: ...


def records_of(ops: tuple[tuple[str, int], ...]) -> list[bytes]:
    """What capture, queue and encoder make of requests."""
    queue, nobody = EventQueue(FIRST), Nobody()
    capture = Capture(
        queue, DirtyRegions(SIZE), nobody, policy=AckPolicy.JOURNAL, overload_policy=overload.Policy.GAP,  # type: ignore[arg-type]
        buffer_bytes=1 << 30, delay_max_ms=0, wake=lambda: None, offer=lambda: None, lost=lambda _: None, ended=lambda _: None,
    )  # fmt: skip
    command = {"W": nbd.CMD_WRITE, "Z": nbd.CMD_WRITE_ZEROES, "T": nbd.CMD_TRIM, "F": nbd.CMD_FLUSH}
    requests = []
    for number, (kind, block) in enumerate(ops):
        flags = nbd.CMD_FLAG_NO_HOLE if kind == "Z" else 0
        data = bytes([number + 1]) * BLOCK if kind == "W" else None
        length = 0 if kind == "F" else BLOCK
        requests.append(Request(command[kind], flags, number, block * BLOCK, length, data))
    capture.on_requests(nobody, requests)  # type: ignore[arg-type]
    encoder = Encoder(1, ID)
    return [encoder.encode(event) for event in queue.take_batch(1 << 30)]


def image_after(ops: tuple[tuple[str, int], ...]) -> bytes:
    """The disk when these were done."""
    image = bytearray(SIZE)
    for number, (kind, block) in enumerate(ops):
        if kind != "F":
            image[block * BLOCK : (block + 1) * BLOCK] = bytes([number + 1 if kind == "W" else 0]) * BLOCK
    return bytes(image)


def test_every_order_of_requests_becomes_these_events() -> None:
    """A flush is no event, a trim is a zero that makes a hole, and the order is that of arrival."""
    for count in range(1, 5):
        for ops in itertools.product(OPS, repeat=count):
            fold = JournalFold(good_state())
            image = bytearray(SIZE)
            events = [decode_journal(value) for value in records_of(ops)]
            for offset, event in enumerate(events, FIRST):
                assert fold.feed(offset, event).value == "apply"
                if isinstance(event, j.Zero):
                    image[event.start : event.start + event.length] = bytes(event.length)
                elif isinstance(event, j.Write):
                    image[event.start : event.start + len(event.data)] = event.data
            assert image == image_after(ops), ops
            assert [event.unmap for event in events if isinstance(event, j.Zero)] == [
                kind == "T" for kind, _ in ops if kind in "ZT"
            ]


def good_state() -> Any:
    """Of a fold that has seen a whole sync."""
    fold = JournalFold(fresh_state(-1, SIZE))
    header = {"crc32c": bytes(4), "epoch": 1, "attachment_id": ID, "captured_at": 1}
    for offset, made in enumerate(
        (
            j.EpochStarted(**header, seq=0, prev_epoch=0, reason="", size_bytes=SIZE),
            j.SyncStarted(**header, seq=1, mode="full", total_bytes=SIZE),
            j.SyncCompleted(**header, seq=2, total_bytes=SIZE),
        )
    ):
        fold.feed(offset, decode_journal(encode_journal(made)))
    return fold.state


@contextlib.contextmanager
def at_once(disk: Disk) -> Iterator[None]:
    """Files on the disk, without threads."""

    async def to_thread(function: Any, *args: Any) -> Any:
        return function(*args)

    async def in_place(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self._descriptor, *args, **kwargs)

    with (
        disk_module.installed(disk, None),
        patch.object(applier_module.asyncio, "to_thread", to_thread),
        patch.object(files.ThreadedFile, "run", in_place),
    ):
        yield


@dataclass
class Case:
    """One order of writes."""

    disk: Disk
    values: list[bytes]
    images: list[bytes]
    """The volume at FIRST - 1 + number of events."""

    @property
    def last(self) -> int:
        return FIRST + len(self.values) - 1

    def events(self, first: int, last: int) -> list[Any]:
        return [(offset, decode_journal(self.values[offset - FIRST])) for offset in range(first, last + 1)]

    def open(self, crash_point: Any = lambda _name: None) -> Applier:
        position = load_position(DIRECTORY)  # type: ignore[arg-type]
        assert position is not None
        return Applier(DIRECTORY, position, RawFile(DATA_PATH), crash_point)  # type: ignore[arg-type]

    def crashes(self, stops: list[int]) -> Iterator[dict[str, bytes]]:
        """What is on the disk after a crash at each crash point while it is applied up to each of the stops."""
        left: list[dict[str, bytes]] = []

        def crash_point(_name: str) -> None:
            left.extend(self.disk.after_cut(share) for share in (0.0, 0.5, 1.0))

        own = self.open(crash_point)
        for stop in stops:
            run(own.set_intent(stop))
            run(own.apply(self.events(own.applied_offset + 1, stop)))
        return iter(left)

    def check(self, contents: dict[str, bytes]) -> None:
        """5 and 6: all points from the floor on are right, and what is applied again leads to the same."""
        self.disk.load(contents)
        own = self.open()
        applied, floor = own.applied_offset, max(own.applied_offset, own.intent_offset)
        content = contents[str(DATA_PATH)]
        index = Index(applied)
        for offset, event in self.events(applied + 1, self.last):
            if isinstance(event, j.Zero):
                index.add(offset, event.start, event.length, ZERO)
            else:
                index.add(offset, event.start, len(event.data), DATA)
        for point in range(floor, self.last + 1):
            assert self.view(index, content, point) == self.images[point - FIRST + 1], point
        run(own.set_intent(self.last))
        run(own.apply(self.events(applied + 1, self.last)))
        assert self.disk.after_cut(0.0)[str(DATA_PATH)] == self.images[-1]

    def view(self, index: Index, content: bytes, point: int) -> bytes:
        out = b""
        for piece in index.lookup(0, SIZE, point):
            if piece.kind == ZERO:
                out += bytes(piece.length)
            elif piece.kind == DATA:
                data = bytes(decode_journal(self.values[piece.journal_offset - FIRST]).data)
                out += data[piece.delta : piece.delta + piece.length]
            else:
                out += content[piece.start : piece.start + piece.length]
        return out


def cases() -> Iterator[tuple[tuple[str, int], ...]]:
    """Orders of writes and zeroes; what trim and flush become is the test above."""
    for count in range(1, 5):
        yield from itertools.product(OPS[: 2 * BLOCKS], repeat=count)


@pytest.mark.timeout(300)
def test_a_crash_at_every_step_of_every_order_of_writes() -> None:
    """In one batch and in two; what was not synced is lost, torn, or kept."""
    crashes = checked = 0
    disk = Disk(random.Random(7))
    with at_once(disk):
        create_raw_file(DATA_PATH, SIZE)  # type: ignore[arg-type]
        fresh = Position("v", str(DATA_PATH), "s", good_state(), FIRST - 1, ready=True)
        save_position(DIRECTORY, fresh)  # type: ignore[arg-type]
        begin = disk.after_cut(0.0)
        for ops in cases():
            case = Case(disk, records_of(ops), [image_after(ops[:count]) for count in range(len(ops) + 1)])
            seen: set[tuple[bytes, ...]] = set()
            for stops in [[case.last], [FIRST + len(ops) // 2 - 1, case.last]][: len(ops)]:
                disk.load(begin)
                for left in case.crashes(stops):
                    crashes += 1
                    if (key := tuple(left.values())) not in seen:
                        seen.add(key)
                        case.check(left)
                        checked += 1
    print(f"crashes={crashes} different_states={checked}")
    assert crashes > 50_000


# A sync read between writes.

SYNC_STEPS = ("open", 0, 1, 2, "enqueue")
"""The read is issued, looks at each block at an instant of its own, and its data enter the queue."""


class Play:
    """One interleaving, played on the real queue; blocks are bytes."""

    def __init__(self, ops: tuple[tuple[int, int], ...]) -> None:
        self.ops = ops
        self.source = bytearray(b"abc")
        self.queue = EventQueue()
        self.read: SyncRead | None = None
        self.sample = bytearray(BLOCKS)
        self.sync_at = 0
        self.started = 0
        self.open_ops: list[int] = []

    def choices(self) -> list[Any]:
        """What may happen next."""
        found: list[Any] = ["sync"] if self.sync_at < len(SYNC_STEPS) else []
        found += self.open_ops
        if self.started < len(self.ops):
            block = self.ops[self.started][0]
            # The mirror serialises what overlaps.
            if all(self.ops[number][0] != block for number in self.open_ops):
                found.append("start")
        return found

    def step(self, choice: Any) -> None:
        if choice == "start":
            block, value = self.ops[self.started]
            self.source[block] = value
            self.open_ops.append(self.started)
            self.started += 1
        elif choice == "sync":
            step = SYNC_STEPS[self.sync_at]
            self.sync_at += 1
            if step == "open":
                self.read = self.queue.open_read(0, BLOCKS)
            elif step == "enqueue":
                assert self.read is not None
                self.queue.sync_data(0, self.read, bytes(self.sample))
                self.queue.close_read(self.read)
            else:
                self.sample[step] = self.source[step]
        else:
            self.open_ops.remove(choice)
            block, value = self.ops[choice]
            if value:
                self.queue.write(0, block, bytes([value]))
            else:
                self.queue.zero(0, block, 1, unmap=False)

    def replica(self) -> bytes:
        """What the events make of a disk that held something else."""
        image = bytearray(b"???")
        for event in self.queue._queued:
            image[event.start : event.start + event.length] = event.data or bytes(event.length)
        return bytes(image)

    def key(self) -> Any:
        younger = frozenset(self.read.younger) if self.read else None
        return (
            self.sync_at, self.started, tuple(sorted(self.open_ops)), bytes(self.source), bytes(self.sample), younger,
            self.replica(),
        )  # fmt: skip


@pytest.mark.timeout(300)
def test_a_sync_read_between_every_order_of_writes() -> None:
    """3: whatever happens between the steps of a read, the replica ends as the source."""
    ends = states = 0
    for count in range(1, 5):
        for blocks in itertools.product(range(BLOCKS), repeat=count):
            for zeroes in range(2):
                ops = tuple(
                    (block, 0 if number % 2 == zeroes else number + 1) for number, block in enumerate(blocks)
                )
                seen: set[Any] = set()
                paths: list[tuple[Any, ...]] = [()]
                while paths:
                    path = paths.pop()
                    play = Play(ops)
                    for choice in path:
                        play.step(choice)
                    key = play.key()
                    if key in seen:
                        continue
                    seen.add(key)
                    choices = play.choices()
                    paths += [(*path, choice) for choice in choices]
                    if not choices:
                        ends += 1
                        assert play.replica() == play.source, (ops, path)
                states += len(seen)
    print(f"states={states} ends={ends}")
    assert ends > 240
