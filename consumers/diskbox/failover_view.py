"""What a recovered VM runs from: the overlay of its own writes above the volume at a point, as one NBD export.

Before a commit all writes go into the overlay. From then on (`write_through`) they go into the recovery volume, and what the
overlay holds is folded into it block by block, beside the running VM: a block is in one of the two at every moment, and
which one says the overlay's map. Nothing is cut out of the overlay while it is folded, so that a read which was planned
before a fold still finds the bytes that it was planned for.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Protocol

from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.recovery import RecoveryVolume
from rephub.consumers.diskbox.view import HOLE_AND_ZERO, request_errors
from rephub.core.errors import RequestError
from rephub.core.nbd.export import Buffer, ExportInfo, Extents
from rephub.projections.coalesce import DeviceWrite
from rephub.projections.index import RECOVERY, Piece
from rephub.projections.view import ABSENT, BLOCK_BYTES, FOLDED, HELD, ZEROED, allocation, zero_parts

FOLD_BLOCKS = 256
"""Folded while writes wait: 1 MiB, some milliseconds."""
STATUS_BYTES_MAX = 64 << 20
"""A block status answer looks at so much at most; the client asks on."""


class Base(Protocol):
    """What lies below the overlay."""

    async def read(self, start: int, length: int) -> Buffer:
        """The bytes. Raises RequestError."""

    async def block_status(self, start: int, length: int) -> Extents:
        """base:allocation. Raises RequestError."""


class RecoveryBase:
    """The recovery volume alone, once all events up to the point are in it.

    Args:
        recovery: open; closed by whoever opened it.
        size_bytes: of the view.
    """

    def __init__(self, recovery: RecoveryVolume, size_bytes: int) -> None:
        self.recovery = recovery
        self._size_bytes = size_bytes

    async def read(self, start: int, length: int) -> Buffer:
        """See `Base.read`."""
        with request_errors():
            return await self.recovery.pread(start, length)

    async def block_status(self, start: int, length: int) -> Extents:
        """See `Base.block_status`; only whole blocks are called holes."""
        with request_errors():
            holes = await self.recovery.allocation(start, length)
        found = allocation([Piece(start, length, RECOVERY)], lambda _first, _count: holes, self._size_bytes)
        return [(count, HOLE_AND_ZERO if is_zero else 0) for count, is_zero in found]


class FailoverView:
    """An `AsyncExport`: the volume at the point of a fail-over, and what was written to it since.

    Args:
        volume: its name.
        offset: the point.
        size_bytes: of the volume there.
        base: the volume at the point.
        overlay: durable, open.
    """

    def __init__(self, volume: str, offset: int, size_bytes: int, base: Base, overlay: Overlay) -> None:
        self.volume, self.offset, self.size_bytes = volume, offset, size_bytes
        self.overlay = overlay
        self._base = base
        self._through: RecoveryVolume | None = None
        self._moved = False
        """Written through, and nothing is left in the overlay."""
        self._lock = asyncio.Lock()
        self._overlay_reads, self._read_ended = 0, asyncio.Event()

    @property
    def info(self) -> ExportInfo:
        """What clients are told."""
        return ExportInfo(
            name=self.volume,
            size_bytes=self.size_bytes,
            description=f"{self.volume} failed over at journal offset {self.offset}",
            block_status=True,
            multi_conn=True,
        )

    @property
    def committing(self) -> bool:
        """Writes go into the recovery volume."""
        return self._through is not None

    def write_through(self, recovery: RecoveryVolume) -> None:
        """From now on writes go into the recovery volume, which holds all events up to the point."""
        self._base = RecoveryBase(recovery, self.size_bytes)
        self._through = recovery
        self._moved = self._next_run(0) is None

    def _next_run(self, block: int) -> tuple[int, int, int] | None:
        """What is to be moved next into the recovery volume."""
        return self.overlay.map.next_run((HELD, ZEROED), block, FOLD_BLOCKS)

    # Reading.

    async def read(self, start: int, length: int) -> Buffer:
        """The bytes as the VM has them. Raises RequestError."""
        runs = list(self.overlay.map.runs(start, length))
        if len(runs) == 1 and runs[0][2] in (ABSENT, FOLDED):
            return await self._base.read(start, length)
        out = bytearray(length)
        for first, count, state in runs:
            at = first - start
            if state == HELD:
                self._overlay_reads += 1
                try:
                    with request_errors():
                        out[at : at + count] = await self.overlay.pread(first, count)
                finally:
                    self._overlay_reads -= 1
                    self._read_ended.set()
            elif state != ZEROED:
                out[at : at + count] = await self._base.read(first, count)
        return out

    async def block_status(self, start: int, length: int) -> Extents:
        """base:allocation. Raises RequestError."""
        length = min(length, STATUS_BYTES_MAX)
        extents: Extents = []
        for first, count, state in self.overlay.map.runs(start, length):
            if state in (HELD, ZEROED):
                extents.append((count, HOLE_AND_ZERO if state == ZEROED else 0))
                continue
            below = await self._base.block_status(first, count)
            extents += below
            if sum(extent for extent, _ in below) < count:
                break
        return extents

    # Writing.

    async def write(self, start: int, data: Buffer, fua: bool) -> None:
        """Write; with `fua` it is durable when this returns. Raises RequestError."""
        end = start + len(data)
        blocks = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        if self._moved:
            await self._write_moved(start, data, blocks)
        else:
            async with self._lock:
                # One that reads the rest of a block must not undo another that writes there: no way around the lock
                # before there is nothing to read.
                if self._moved:
                    await self._write_moved(start, data, blocks)
                else:
                    await self._write_blocks(start, data, blocks)
        if fua:
            await self.flush()

    async def _write_moved(self, start: int, data: Buffer, blocks: tuple[int, int]) -> None:
        self.overlay.mark_folded(*blocks)
        await self._put(DeviceWrite(start, len(data), [memoryview(data)]))

    async def _write_blocks(self, start: int, data: Buffer, blocks: tuple[int, int]) -> None:
        end = start + len(data)
        low, high = blocks[0] * BLOCK_BYTES, min(blocks[1] * BLOCK_BYTES, self.size_bytes)
        head = await self.read(low, start - low) if start > low else b""
        tail = await self.read(end, high - end) if end < high else b""
        content = data if not head and not tail else b"".join((head, data, tail))
        if self._through is not None:
            # The overlay's state says where the bytes are until they are in the recovery volume.
            self._mark_absent_as_folded(*blocks)
            await self._put(DeviceWrite(low, len(content), [memoryview(content)]))
            self.overlay.mark_folded(*blocks)
            return
        if not self.overlay.has_room(*blocks):
            raise RequestError("the limit of the overlay is reached", errno=errno.ENOSPC)
        with request_errors():
            await self.overlay.write(low, content)

    def _mark_absent_as_folded(self, first_block: int, next_block: int) -> None:
        """What is about to reach the recovery volume was written since the fail-over, whatever happens next."""
        start = first_block * BLOCK_BYTES
        for first, count, state in self.overlay.map.runs(start, (next_block - first_block) * BLOCK_BYTES):
            if state == ABSENT:
                self.overlay.mark_folded(first // BLOCK_BYTES, (first + count) // BLOCK_BYTES)

    async def _put(self, write: DeviceWrite) -> None:
        assert self._through is not None
        with request_errors():
            await self._through.write([write])

    async def zero(self, start: int, length: int, unmap: bool, fua: bool) -> None:  # noqa: ARG002
        """Whole blocks take no space; the edges are written. Raises RequestError."""
        edges, whole = zero_parts(start, length, self.size_bytes)
        for first, count in edges:
            await self.write(first, bytes(count), fua=False)
        if whole is not None:
            async with self._lock:
                await self._zero_blocks(*whole)
        if fua:
            await self.flush()

    async def _zero_blocks(self, first_block: int, next_block: int) -> None:
        if self._through is None:
            with request_errors():
                self.overlay.zero(first_block, next_block)
            return
        self._mark_absent_as_folded(first_block, next_block)
        low, high = first_block * BLOCK_BYTES, min(next_block * BLOCK_BYTES, self.size_bytes)
        await self._put(DeviceWrite(low, high - low, None))
        self.overlay.mark_folded(first_block, next_block)

    async def trim(self, start: int, length: int) -> None:
        """A hint; the content stays."""

    async def flush(self) -> None:
        """Everything answered before is durable when this returns. Raises RequestError."""
        through = self._through
        with request_errors():
            await self.overlay.flush(through.fdatasync if through is not None else None)

    # Folding.

    async def fold(self) -> AsyncIterator[int]:
        """Move what the overlay holds into the recovery volume; after `write_through`.

        Yields:
            Bytes that were moved, after each step; writes wait during a step alone.

        Raises:
            StorageError: the recovery volume, or the overlay, refuses; nothing is lost, it may be called again.
        """
        recovery = self._through
        if recovery is None:
            raise RuntimeError(f"{self.volume} is not written through")
        block = 0
        while True:
            async with self._lock:
                run = self._next_run(block)
                if run is None:
                    self._moved = True
                    break
                await self._fold_run(recovery, *run)
            block = run[1]
            yield (run[1] - run[0]) * BLOCK_BYTES
        await self.overlay.flush(recovery.fdatasync)
        # Reads that were planned before still look there.
        while self._overlay_reads:
            self._read_ended.clear()
            await self._read_ended.wait()
        await self.overlay.drop_data()

    async def _fold_run(
        self, recovery: RecoveryVolume, first_block: int, next_block: int, state: int
    ) -> None:
        low, high = first_block * BLOCK_BYTES, min(next_block * BLOCK_BYTES, self.size_bytes)
        if state == ZEROED:
            await recovery.write([DeviceWrite(low, high - low, None)])
        else:
            data = await self.overlay.pread(low, high - low)
            await recovery.write([DeviceWrite(low, high - low, [memoryview(data)])])
        self.overlay.mark_folded(first_block, next_block)
