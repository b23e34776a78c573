"""Reads a volume and journals digests of it, so that the diskbox can compare its own copy without a byte of it travelling.

Digest and content meet at the digest's journal offset: a read is registered with the queue before it is issued
(`EventQueue.open_read`), and in the loop turn in which the digest is enqueued no write since then may overlap it.

That is not enough by itself. The mirror filter writes the source first and sends to us after, so a read can see a write that is
still on its way to the queue; its digest then stands before the write in the journal, and the diskbox finds a difference that
is none. So there are two kinds of passes:

* `run` digests beside the guest. Equal is equal; what differs is only suspected.
* `hold` and `release` look at the suspects. The reads stay open while the control process lets QEMU settle all requests
  (`transaction` with no actions, which waits for our answers): after that every write that a read may have seen is in the
  queue, and has masked it.

Both end on a volume that is written all the time: what was overlapped is read again a few times, then digested without the bytes
that were written meanwhile. Those are in the journal, in the write that masked them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rephub.agent.extents import Extent, intersect, split, subtract
from rephub.agent.queue import READS_MAX, EventQueue, Kind, SyncRead
from rephub.agent.sync import CHUNK_BYTES as READ_BYTES
from rephub.agent.sync import READS_IN_FLIGHT_MAX, STATE_ZERO, WINDOW_BYTES, Pace, Source
from rephub.core.digests import CHUNK_BYTES, DIGEST_BYTES, digests_of, is_zero
from rephub.core.errors import ProtocolError
from rephub.projections.extent_lists import joined, total

READS_AGAIN_MAX = 3
"""Times that what was overlapped is read again before it is digested without the bytes that were written."""

BACK_OFF_SECONDS = 0.05
"""Before the first of them, doubled each time: a burst of writes to one place is over by then."""

HELD_READS_MAX = READS_MAX - READS_IN_FLIGHT_MAX
"""Reads of 1 MiB that `hold` keeps open, with their data: as many as the queue takes, without a sync's."""


@dataclass(slots=True)
class Counts:
    """What a pass did."""

    last_offset: int = -1
    """Journal offset of its newest digest that is acked."""
    digested_bytes: int = 0
    skipped_bytes: int = 0
    """Written whenever they were read."""
    done_bytes: int = 0
    """Of its extents, for the progress."""


@dataclass(slots=True)
class _Held:
    """A read that is complete and still registered."""

    read: SyncRead
    data: memoryview
    digests: bytes = b""
    zero: bool = False


def settled(start: int, length: int, younger: Iterable[Extent]) -> tuple[list[Extent], list[Extent]]:
    """Rule: which chunks of a finished read may be digested as they are.

    Args:
        start: of the read.
        length: bytes.
        younger: extents written since it was issued.

    Returns:
        Extents of whole chunks that nothing overlapped, and the chunks that something did; both ascending, joined.
    """
    written = list(younger)
    whole = [chunk for chunk in split(start, length, CHUNK_BYTES) if not intersect(written, *chunk)]
    kept = joined(whole)
    return kept, subtract(start, length, kept)


class Digester:
    """Journals digests of one volume for one round of a comparison.

    Args:
        source: where to read.
        queue: of the attachment.
        pace: decides when to go on.
        wake: tells the publisher that there is something.
        run: the comparison.
        round_: of it.
    """

    def __init__(
        self,
        source: Source,
        queue: EventQueue,
        pace: Pace,
        wake: Callable[[], None],
        run: str,
        round_: int,
    ) -> None:
        self._source = source
        self._queue = queue
        self._pace = pace
        self._wake = wake
        self._run = run
        self._round = round_
        self._held: list[_Held] = []
        self._last: asyncio.Future[int] | None = None
        self.counts = Counts()

    async def run(self, extents: Sequence[Extent]) -> Counts:
        """Digest extents beside the guest; returns when all is acked.

        Raises:
            ProtocolError, UnavailableError, RequestError: the source cannot be read.
        """
        for start, length in extents:
            for window in split(start, length, WINDOW_BYTES):
                again = await self._window(*window)
                await self._again(again)
                self.counts.done_bytes += window[1]
        return await self._acked()

    async def hold(self, extents: Sequence[Extent]) -> None:
        """Read extents and keep the reads registered until `release`.

        Args:
            extents: at most HELD_READS_MAX reads of 1 MiB.

        Raises: as `run`; nothing is held then.
        """
        try:
            for start, length in extents:
                for piece in split(start, length, READ_BYTES):
                    await self._pace.wait(piece[1])
                    held = await self._read(*piece)
                    self._held.append(held)
                    held.digests = await asyncio.to_thread(_digest, held)
        except BaseException:
            self.drop()
            raise

    async def release(self, *, final: bool) -> list[Extent]:
        """Journal the digests of what was held; returns when they are acked.

        Args:
            final: digest what was overlapped without the bytes that were written.

        Returns:
            What was overlapped, and was not digested.
        """
        again: list[Extent] = []
        held, self._held = self._held, []
        for item in held:
            again += self._settle(item, final=final)
        await self._acked()
        return joined(again)

    def drop(self) -> None:
        """Let go of what is held without a digest."""
        for item in self._held:
            self._queue.close_read(item.read)
        self._held = []

    async def _window(self, start: int, length: int) -> list[Extent]:
        """Digest a window; returns what was overlapped."""
        data, again = await self._zeroes(start, length)
        gate = asyncio.Semaphore(READS_IN_FLIGHT_MAX)

        async def one(piece: Extent) -> None:
            try:
                again.extend(await self._digest(piece, final=False))
            finally:
                gate.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                for extent in data:
                    for piece in split(*extent, READ_BYTES):
                        await self._pace.wait(piece[1])
                        await gate.acquire()
                        tasks.create_task(one(piece))
        except ExceptionGroup as exc:
            raise exc.exceptions[0] from None
        return joined(again)

    async def _again(self, again: list[Extent]) -> None:
        """Read what was overlapped until nothing is, or without what is written at last."""
        for number in range(READS_AGAIN_MAX):
            if not again:
                return
            await asyncio.sleep(BACK_OFF_SECONDS * 2**number)
            final = number == READS_AGAIN_MAX - 1
            left: list[Extent] = []
            for start, length in again:
                # Chunk by chunk: the shorter a read, the less is written meanwhile.
                for piece in split(start, length, CHUNK_BYTES):
                    await self._pace.wait(piece[1])
                    left += await self._digest(piece, final=final)
            again = joined(left)

    async def _zeroes(self, start: int, length: int) -> tuple[list[Extent], list[Extent]]:
        """Journal what is known to be zeroes; returns what must be read, and what was overlapped."""
        data: list[Extent] = []
        again: list[Extent] = []
        at, end = start, start + length
        while at < end:
            read = self._queue.open_read(at, end - at)
            try:
                statuses = await self._source.block_status(at, end - at)
                if not any(size for size, _flags in statuses):
                    raise ProtocolError("block status covers nothing")
                for size, flags in statuses:
                    size = min(size, end - at)  # noqa: PLW2901 - the last extent may reach beyond the window
                    if flags & STATE_ZERO and size:
                        kept = subtract(at, size, read.younger)
                        for extent in kept:
                            self._mark(*extent, b"")
                        again += subtract(at, size, kept)
                    elif size:
                        data.append((at, size))
                    at += size
            finally:
                self._queue.close_read(read)
        return joined(data), again

    async def _digest(self, piece: Extent, *, final: bool) -> list[Extent]:
        held = await self._read(*piece)
        try:
            held.digests = await asyncio.to_thread(_digest, held)
            return self._settle(held, final=final)
        finally:
            self._queue.close_read(held.read)

    async def _read(self, start: int, length: int) -> _Held:
        read = self._queue.open_read(start, length)
        try:
            return _Held(read, memoryview(await self._source.read(start, length)))
        except BaseException:
            self._queue.close_read(read)
            raise

    def _settle(self, held: _Held, *, final: bool) -> list[Extent]:
        """Journal what no write overlapped, in this loop turn; returns the rest."""
        read = held.read
        kept, again = settled(read.start, read.length, read.younger)
        for start, length in kept:
            self._mark(start, length, b"" if held.zero else _part(held, start, length))
        if final:
            for chunk in again:
                for start, length in subtract(*chunk, read.younger):
                    first = start - read.start
                    self._mark(start, length, digests_of(held.data[first : first + length], start))
            self.counts.skipped_bytes += total(again) - sum(
                length for chunk in again for _, length in subtract(*chunk, read.younger)
            )
            again = []
        self._queue.close_read(read)
        return again

    def _mark(self, start: int, length: int, digests: bytes) -> None:
        last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        event = self._queue.mark(
            Kind.DIGEST,
            time.time_ns() // 1000,
            run=self._run,
            round=self._round,
            start=start,
            length=length,
            chunk_bytes=CHUNK_BYTES,
            digests=digests,
        )
        event.on_ack = lambda offset: None if last.done() else last.set_result(offset)
        self._last = last
        self.counts.digested_bytes += length
        self._wake()

    async def _acked(self) -> Counts:
        if self._last is not None:
            self.counts.last_offset = await self._last
        return self.counts


def _digest(held: _Held) -> bytes:
    held.zero = is_zero(held.data)
    return b"" if held.zero else digests_of(held.data, held.read.start)


def _part(held: _Held, start: int, length: int) -> bytes:
    """The digests of whole chunks of a read."""
    first = start // CHUNK_BYTES - held.read.start // CHUNK_BYTES
    count = (start + length - 1) // CHUNK_BYTES - start // CHUNK_BYTES + 1
    return held.digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]
