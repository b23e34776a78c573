"""What a view needs of the recovery volume when the projector passes the view's point: copied beside it before it is overwritten.

A view at N reads events up to N from the journal and the rest from the recovery volume. When the history's byte limit forces
events beyond N into that, the blocks that they change are read at N once more and kept. From then on the view's pin stands where
they were kept up to, and what was applied up to there is no matter to it.

The files are of one boot, like a scratch: the next process takes them over if they reach as far as the floor.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.files import storage_errors
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.core.documents import checksum, parse_object
from rephub.core.errors import StorageError
from rephub.core.nbd.export import Buffer
from rephub.projections.view import BLOCK_BYTES, HELD, ZEROED, BlockMap

STEP_BYTES = 1 << 20
"""Read and kept at once."""

Read = Callable[[int, int], Awaitable[Buffer]]


class Kept:
    """Of one view.

    Args:
        projector: of the volume.
        directory: exists.
        name: for the names of the files.
        offset: the view's point.
        bytes_max: that may be kept.
        identity: of the view.
    """

    def __init__(
        self,
        projector: Projector,
        directory: Path,
        name: str,
        offset: int,
        bytes_max: int,
        identity: dict[str, Any],
    ) -> None:
        self.upto = offset
        """The recovery volume may hold events up to here."""
        self._projector = projector
        self._directory, self._name = directory, f"{name}.kept"
        self.size_bytes = projector.timeline.size_at(offset)
        """Of the view."""
        self._bytes_max, self._identity = bytes_max, identity
        self._overlay: Overlay | None = None

    def reopen(self) -> None:
        """Take over what a former process has kept. Raises: as `Overlay.reopen`, and StorageError."""
        upto = kept_upto(self._directory, self._name.removesuffix(".kept"))
        if upto is None:
            return
        self._overlay = Overlay.reopen(
            self._directory, self._name, self._bytes_max, self._identity, durable=False
        )
        # The timeline may have forgotten the point.
        self.upto, self.size_bytes = upto, self._overlay.size_bytes

    @property
    def map(self) -> BlockMap | None:
        """Which blocks are kept."""
        return None if self._overlay is None else self._overlay.map

    @property
    def kept_bytes(self) -> int:
        """That the files hold."""
        return 0 if self._overlay is None else self._overlay.map.held_blocks * BLOCK_BYTES

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """What is kept. Raises StorageError."""
        assert self._overlay is not None
        return await self._overlay.pread(start, length)

    async def keep(self, floor_offset: int, scratch: BlockMap | None, read: Read) -> None:
        """Keep what events in (upto, floor] change.

        Args:
            floor_offset: the floor is about to rise to.
            scratch: blocks that it holds are not read from below any more.
            read: the bytes at the view's point, below its scratch.

        Raises:
            StorageError: no room, or the disk refuses.
            RequestError: what is to be kept cannot be read.
        """
        overlay = self._overlay
        if overlay is None:
            overlay = self._overlay = Overlay.create(
                self._directory,
                self._name,
                self.size_bytes,
                self._bytes_max,
                self._identity,
                durable=False,
            )
        for start, end in self._changed(floor_offset):
            for first in range(start, min(end, self.size_bytes), STEP_BYTES):
                await self._keep_range(overlay, first, min(end, first + STEP_BYTES), scratch, read)
        _save_upto(self._directory, self._name, floor_offset)
        self.upto = floor_offset

    def _changed(self, floor_offset: int) -> list[tuple[int, int]]:
        """(start, end) of whole blocks."""
        changed = self._projector.index.touched(self.upto, floor_offset, BLOCK_BYTES)
        smallest = self._projector.timeline.smallest_size(self.upto, floor_offset)
        if smallest < self.size_bytes:
            changed.append((smallest // BLOCK_BYTES * BLOCK_BYTES, self.size_bytes))
        return changed

    async def _keep_range(
        self, overlay: Overlay, start: int, end: int, scratch: BlockMap | None, read: Read
    ) -> None:
        first, next_ = start // BLOCK_BYTES, -(-min(end, self.size_bytes) // BLOCK_BYTES)
        wanted = [
            block
            for block in range(first, next_)
            if overlay.map.state(block) not in (HELD, ZEROED)
            and (scratch is None or scratch.state(block) not in (HELD, ZEROED))
        ]
        for low, high in _runs(wanted):
            begin, length = low * BLOCK_BYTES, min(high * BLOCK_BYTES, self.size_bytes) - low * BLOCK_BYTES
            data = await read(begin, length)
            if not any(data):
                overlay.zero(low, high)
            elif overlay.has_room(low, high):
                await overlay.write(begin, data)
            else:
                raise StorageError(f"more than {self._bytes_max} bytes would have to be kept")

    def close(self) -> None:
        """Let go of the files, which stay."""
        if self._overlay is not None:
            self._overlay.close()

    def discard(self) -> None:
        """Let go, and delete the files."""
        if self._overlay is not None:
            self._overlay.discard()


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block:
            runs[-1] = (runs[-1][0], block + 1)
        else:
            runs.append((block, block + 1))
    return runs


def kept_upto(directory: Path, name: str) -> int | None:
    """How far a former process has kept what a view needs; None: it has kept nothing, or one cannot tell."""
    try:
        document = parse_object(_upto_path(directory, f"{name}.kept").read_bytes())
        if document.pop("crc32c", None) != checksum(document) or type(document["upto"]) is not int:
            return None
    except (OSError, ValueError, KeyError):
        return None
    upto: int = document["upto"]
    return upto


def _save_upto(directory: Path, name: str, upto: int) -> None:
    path = _upto_path(directory, name)
    temporary = path.with_suffix(".new")
    document = {"upto": upto}
    with storage_errors("write", path):
        # Without fsync: it is to outlive the process, not the host, like the overlay itself.
        temporary.write_text(json.dumps({"crc32c": checksum(document), **document}))
        temporary.replace(path)


def _upto_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.upto"
