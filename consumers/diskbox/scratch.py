"""The scratch of a view: a sparse file beside the view, gone with it. Never durable: it is discarded after a restart."""

from __future__ import annotations

import os
from pathlib import Path

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors
from rephub.consumers.diskbox.recovery import read_at, write_at
from rephub.projections.view import BLOCK_BYTES, HELD, ScratchMap


class Scratch:
    """Blocks that a view's user wrote, at the same place as in the volume.

    Args:
        path: of the file to make.
        size_bytes: of the view.
        bytes_max: of data blocks.
    """

    def __init__(self, path: Path, size_bytes: int, bytes_max: int) -> None:
        self.map = ScratchMap()
        self.bytes_max = bytes_max
        self._path = path
        with storage_errors("create", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = ThreadedFile(descriptor)
            try:
                os.ftruncate(descriptor, -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
            except OSError:
                self.discard()
                raise

    def has_room(self, first_block: int, next_block: int) -> bool:
        """Whether data for all of [first, next) would stay within the limit."""
        return (
            self.map.held_blocks + self.map.growth(first_block, next_block)
        ) * BLOCK_BYTES <= self.bytes_max

    async def pread(self, start: int, length: int) -> bytes:
        """What HELD blocks hold. Raises StorageError."""
        with storage_errors("read", self._path):
            return await self._file.run(read_at, start, length)

    async def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole blocks; they are HELD when this returns. Raises StorageError."""
        with storage_errors("write", self._path):
            await self._file.run(write_at, start, [memoryview(data)])
        self.map.set(start // BLOCK_BYTES, -(-(start + len(data)) // BLOCK_BYTES), HELD)

    def discard(self) -> None:
        """Delete it; never raises but for a bug."""
        self._file.close()
        self._path.unlink(missing_ok=True)
