"""Reads a volume from QEMU and publishes it into the volume's own journal, behind the live writes.

All of it (`full`), or only extents that may differ from what the journal holds (`delta`). Per window: ask what is
allocated; holes become Zero at once, data are read in chunks, a few at a time. Every read is registered with the queue
before it is issued, so that bytes written meanwhile are masked out of it (`queue.py`).

Correct because the mirror filter writes the source first and sends to us after: a write that reached the queue before
the read was issued was on the disk by then, so the read sees it; one that reaches the queue between issue and enqueue
is masked; one that comes later stands later in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from rephub.agent.dirty import DirtyRegions
from rephub.agent.extents import Extent, intersect, split
from rephub.agent.queue import EventQueue, Kind, SyncRead
from rephub.core.errors import ProtocolError

CHUNK_BYTES = 1 << 20
"""One read, and at most one event's data."""

READS_IN_FLIGHT_MAX = 4
"""Reads under way: enough to hide the round trip, few enough to leave the disk to the guest."""

WINDOW_BYTES = 64 << 20
"""Range whose allocation is asked at once; its Zero events and masks stay small."""

BACKLOG_BYTES_MAX = 4 << 20
"""Sync waits while so much of its own is not acked: a live write never stands behind much more sync data."""

GUEST_SHARE = 3
"""While the guest itself has a backlog, sync may have a third of that unacked: a quarter of the journal's rate is its,
so that it never starves, and a guest that writes all the time does not wait for ever for its protection."""

STATE_HOLE = 1
STATE_ZERO = 2
"""Flags of base:allocation. Only ZERO says what a read returns."""

_ZEROES = bytes(CHUNK_BYTES)


class Source(Protocol):
    """What sync reads from: an NBD client, or its stand-in."""

    async def read(self, start: int, length: int) -> bytes | bytearray | memoryview:
        """Exactly these bytes."""

    async def block_status(self, start: int, length: int) -> list[tuple[int, int]]:
        """(length, flags) of consecutive extents from `start` on; may cover less than asked."""


class Pace:
    """Keeps sync behind live writes: waits for room in the queue, stands still or holds a rate if told so.

    Args:
        queue: whose backlog counts.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._changed = asyncio.Event()
        self._free_at = 0.0
        self.running = True
        self.bytes_per_second: int | None = None
        """Limit; None for none."""
        self.changes = 0
        """How often `set` has changed something: what was measured before says nothing about what comes."""

    def set(self, *, running: bool, bytes_per_second: int | None) -> None:
        """From now on: stand still or go on, and hold a rate; reads that were issued are not taken back."""
        if (running, bytes_per_second) == (self.running, self.bytes_per_second):
            return
        self.running, self.bytes_per_second = running, bytes_per_second
        self.changes += 1
        # What was waited for at the old rate is owed no more: it may have been hours.
        self._free_at = 0.0
        self._changed.set()

    def acked(self) -> None:
        """A batch was acked."""
        self._changed.set()

    async def wait(self, length: int) -> None:
        """Return when so many bytes may be read."""
        while (delay := self._delay_seconds()) != 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()
        if self.bytes_per_second:
            self._free_at = max(self._free_at, time.monotonic()) + length / self.bytes_per_second

    def _delay_seconds(self) -> float | None:
        """How long to wait before looking again; None: until something changes; 0: go."""
        if not self.running or self._queue.unacked_sync_bytes > self._backlog_max():
            return None
        return max(0.0, self._free_at - time.monotonic()) if self.bytes_per_second else 0.0

    def _backlog_max(self) -> int:
        guest = self._queue.unacked_bytes - self._queue.unacked_sync_bytes
        return max(BACKLOG_BYTES_MAX, guest // GUEST_SHARE)


def windows(extents: Iterable[Extent]) -> list[tuple[int, list[Extent]]]:
    """The extents by window: (its number, what lies in it), both ascending.

    Args:
        extents: ascending, disjoint.
    """
    pieces = (piece for extent in extents for piece in split(*extent, WINDOW_BYTES))
    grouped = itertools.groupby(pieces, key=lambda piece: piece[0] // WINDOW_BYTES)
    return [(number, list(inside)) for number, inside in grouped]


class Sync:
    """One sync of one attachment.

    Args:
        source: where to read.
        size_bytes: of the volume.
        extents: what to copy, ascending, disjoint, inside the volume: the journal has the rest of the volume as it is
            now. None: everything.
        queue: where events go.
        dirty: regions; synced ones are settled.
        pace: decides when to go on.
        wake: tells the publisher that there is something.
        mode: as the journal says it; empty: by `extents`.
        cursor_bytes: the sync before this one was complete up to here.
    """

    def __init__(
        self,
        source: Source,
        size_bytes: int,
        extents: Sequence[Extent] | None = None,
        *,
        queue: EventQueue,
        dirty: DirtyRegions,
        pace: Pace,
        wake: Callable[[], None],
        mode: str = "",
        cursor_bytes: int = 0,
    ) -> None:
        self._source = source
        self._queue = queue
        self._dirty = dirty
        self._pace = pace
        self._wake = wake
        self._since = (time.monotonic(), 0, pace.changes)
        """Since when the speed is measured, what was done then, and under which pace."""
        self._size_bytes = size_bytes
        self._extents = extents
        self.mode = mode or ("full" if extents is None else "delta")
        self._cursor_bytes = cursor_bytes
        self._reached: deque[tuple[int, int]] = deque()
        """(seq, byte): what is below the byte is in the queue up to this event."""
        self.total_bytes = size_bytes if extents is None else sum(length for _, length in extents)
        """Bytes to copy."""
        self.done_bytes = 0
        self.moved_bytes = 0
        """Data that travel: without holes, zeroes and what the guest wrote meanwhile."""

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the speed since the pace was last changed; None while it stands still or nothing was done.

        Before anything was done under a rate, the rate counts: holes may make it sooner.
        """
        pace, now = self._pace, time.monotonic()
        if pace.changes != self._since[2]:
            self._since = (now, self.done_bytes, pace.changes)
        began_at, done_before, _ = self._since
        done, left = self.done_bytes - done_before, self.total_bytes - self.done_bytes
        if not pace.running:
            return None
        if done:
            return round((now - began_at) / done * left, 1)
        return round(left / pace.bytes_per_second, 1) if pace.bytes_per_second else None

    def acked_bytes(self, acked_seq: int) -> int:
        """Where the next attachment could go on: below it all that this sync copies is in the journal.

        Args:
            acked_seq: newest event that is acked.
        """
        while self._reached and self._reached[0][0] <= acked_seq:
            self._cursor_bytes = max(self._cursor_bytes, self._reached.popleft()[1])
        return self._cursor_bytes

    async def run(self) -> int:
        """Copy what is to be copied.

        Returns:
            Journal offset of `SyncCompleted`, which is acked, and with it all before it.

        Raises:
            ProtocolError, UnavailableError, RequestError: the source cannot be read; the attachment is of no use.
        """
        self._mark(Kind.SYNC_STARTED, mode=self.mode, total_bytes=self.total_bytes)
        everything = [(0, self._size_bytes)] if self._size_bytes else []
        extents = everything if self._extents is None else self._extents
        self._dirty.limit_unsynced(extents)
        await self.copy(extents)
        return await self._mark(Kind.SYNC_COMPLETED, total_bytes=self.total_bytes)

    async def copy(self, extents: Iterable[Extent]) -> None:
        """Copy extents, without the marks of a sync; returns when all is enqueued.

        Args:
            extents: ascending, disjoint.

        Raises: as `run`.
        """
        for number, inside in windows(extents):
            # Holes cost no rate, but they stand still too.
            await self._pace.wait(0)
            await self._window(inside)
            self._dirty.synced(number * WINDOW_BYTES, WINDOW_BYTES)
            self._reached.append((self._queue.next_seq - 1, (number + 1) * WINDOW_BYTES))

    async def _window(self, inside: list[Extent]) -> None:
        before = self.done_bytes
        data = await self._holes(inside)
        chunks = [chunk for extent in data for chunk in split(*extent, CHUNK_BYTES)]
        gate = asyncio.Semaphore(READS_IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as tasks:
                for chunk in chunks:
                    await self._pace.wait(chunk[1])
                    await gate.acquire()
                    tasks.create_task(self._chunk(*chunk, gate))
                    self.done_bytes = before + sum(
                        max(0, min(length, chunk[0] - start)) for start, length in inside
                    )
        except ExceptionGroup as exc:
            raise exc.exceptions[0] from None
        self.done_bytes = before + sum(length for _, length in inside)

    async def _holes(self, inside: list[Extent]) -> list[Extent]:
        """Journal the holes in a window's extents; returns what must be read, neighbours joined."""
        data: list[Extent] = []
        at, end = inside[0][0], inside[-1][0] + inside[-1][1]
        while at < end:
            read = self._queue.open_read(at, end - at)
            try:
                statuses = await self._source.block_status(at, end - at)
                if not any(size for size, _flags in statuses):
                    raise ProtocolError("block status covers nothing")
                now = time.time_ns() // 1000
                for size, flags in statuses:
                    # The last extent may reach beyond the window.
                    for start, length in intersect(inside, at, min(size, end - at)):
                        if flags & STATE_ZERO:
                            self._zero(now, read, start, length, unmap=bool(flags & STATE_HOLE))
                        elif data and data[-1][0] + data[-1][1] == start:
                            data[-1] = (data[-1][0], data[-1][1] + length)
                        else:
                            data.append((start, length))
                    at = min(at + size, end)
            finally:
                self._queue.close_read(read)
        return data

    async def _chunk(self, start: int, length: int, gate: asyncio.Semaphore) -> None:
        read = self._queue.open_read(start, length)
        try:
            data = await self._source.read(start, length)
            # From here to close_read without an await: the mask must be whole when the data enter the queue.
            now = time.time_ns() // 1000
            if data[0] == 0 and bytes(data) == _ZEROES[:length]:
                self._zero(now, read, start, length, unmap=False)
            else:
                for event in self._queue.sync_data(now, read, data):
                    self._dirty.hold(event.start, event.length)
                    self.moved_bytes += event.length
        finally:
            self._queue.close_read(read)
            gate.release()
        self._wake()

    def _zero(self, now: int, read: SyncRead, start: int, length: int, *, unmap: bool) -> None:
        for event in self._queue.sync_zero(now, read, start, length, unmap=unmap):
            self._dirty.hold(event.start, event.length)
        self._wake()

    def _mark(self, kind: Kind, **fields: object) -> Awaitable[int]:
        acked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        event = self._queue.mark(kind, time.time_ns() // 1000, **fields)
        event.on_ack = lambda offset: None if acked.done() else acked.set_result(offset)
        self._wake()
        return acked
