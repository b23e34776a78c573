"""An export in memory: for tests, and as the shortest example of an `AsyncExport`."""

from __future__ import annotations

from typing import Final

from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Buffer, ExportInfo, Extents

BLOCK_BYTES: Final = 4096
"""Granule of what is stored and of what block status tells."""
_ZEROES: Final = bytes(BLOCK_BYTES)


class MemoryExport:
    """A sparse disk in a dict; what was never written, or unmapped in whole blocks, is a hole.

    Args:
        info: as clients are to see it.
    """

    def __init__(self, info: ExportInfo) -> None:
        self._info = info
        self._blocks: dict[int, bytearray] = {}
        self.flushes = 0
        """Flushes and FUA writes seen."""

    @property
    def info(self) -> ExportInfo:
        """See `AsyncExport`."""
        return self._info

    @property
    def stored_bytes(self) -> int:
        """What it takes in memory, in whole blocks."""
        return len(self._blocks) * BLOCK_BYTES

    async def read(self, start: int, length: int) -> Buffer:
        """See `AsyncExport`."""
        first, last = start // BLOCK_BYTES, (start + length - 1) // BLOCK_BYTES
        found = b"".join([self._blocks.get(block, _ZEROES) for block in range(first, last + 1)])
        skipped = start - first * BLOCK_BYTES
        return memoryview(found)[skipped : skipped + length]

    async def write(self, start: int, data: Buffer, fua: bool) -> None:
        """See `AsyncExport`."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            block, within = divmod(start + done, BLOCK_BYTES)
            piece = view[done : done + BLOCK_BYTES - within]
            stored = self._blocks.get(block)
            if stored is None:
                stored = self._blocks[block] = bytearray(BLOCK_BYTES)
            stored[within : within + len(piece)] = piece
            done += len(piece)
        self.flushes += fua

    async def zero(self, start: int, length: int, unmap: bool, fua: bool) -> None:
        """See `AsyncExport`."""
        end = start + length
        if unmap and length > BLOCK_BYTES * max(2, len(self._blocks)):  # a huge range, little in it
            first, last = -(-start // BLOCK_BYTES), end // BLOCK_BYTES
            self._blocks = {b: data for b, data in self._blocks.items() if not first <= b < last}
            await self.zero(last * BLOCK_BYTES, end % BLOCK_BYTES, unmap, fua=False)
            end = min(end, first * BLOCK_BYTES)
        while start < end:
            block, within = divmod(start, BLOCK_BYTES)
            piece = min(BLOCK_BYTES - within, end - start)
            if unmap and piece == BLOCK_BYTES:
                self._blocks.pop(block, None)
            elif block in self._blocks:
                self._blocks[block][within : within + piece] = bytes(piece)
            elif not unmap:
                self._blocks[block] = bytearray(BLOCK_BYTES)
            start += piece
        self.flushes += fua

    async def trim(self, start: int, length: int) -> None:
        """See `AsyncExport`; here a trimmed range reads as zeroes."""
        await self.zero(start, length, unmap=True, fua=False)

    async def flush(self) -> None:
        """See `AsyncExport`."""
        self.flushes += 1

    async def block_status(self, start: int, length: int) -> Extents:
        """See `AsyncExport`."""
        end = start + length
        holes = nbd.STATE_HOLE | nbd.STATE_ZERO
        last = (end - 1) // BLOCK_BYTES
        extents: Extents = []
        for block in sorted(b for b in self._blocks if start // BLOCK_BYTES <= b <= last):
            first, next_byte = max(start, block * BLOCK_BYTES), min(end, (block + 1) * BLOCK_BYTES)
            extents += [(first - start, holes), (next_byte - first, 0)]
            start = next_byte
        return [*extents, (end - start, holes)]
