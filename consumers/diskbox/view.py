"""A view: the volume at one point, as an NBD export.

A read is planned in one loop turn (scratch > journal > recovery volume), then its pieces are fetched. Meanwhile the
projector may apply events, but only ones ≤ the view's point, as its pin holds the floor; should the floor have passed the
point all the same, the read fails with EIO. An event that was applied and deleted between plan and fetch is found by
planning again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator

from rephub.consumers.diskbox.files import is_full
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.core.errors import IntegrityError, NotFoundError, RequestError, StorageError, UnavailableError
from rephub.core.nbd.export import Buffer, ExportInfo, Extents
from rephub.projections.index import DATA, RECOVERY, SCRATCH, Piece
from rephub.projections.view import BLOCK_BYTES, allocation, plan, zero_parts

PLANS_MAX = 5
"""Times a read is planned anew because the projector applied what it was about to fetch."""
STATUS_BYTES_MAX = 64 << 20
"""A block status answer looks at so much at most; the client asks on."""
HOLE_AND_ZERO = 3
"""base:allocation: NBD_STATE_HOLE | NBD_STATE_ZERO."""


@contextlib.contextmanager
def request_errors() -> Iterator[None]:
    """Turn a StorageError into the errno that whoever uses the view is to see."""
    try:
        yield
    except StorageError as exc:
        raise RequestError(exc.message, errno=errno.ENOSPC if is_full(exc) else errno.EIO) from exc


class View:
    """An `AsyncExport` of the volume at a point.

    Args:
        projector: of the volume; the caller holds a pin at the point.
        offset: the point.
        scratch: takes writes; None: read-only.
    """

    def __init__(self, projector: Projector, offset: int, scratch: Overlay | None) -> None:
        self.projector = projector
        self.offset = offset
        self.scratch = scratch
        self.size_bytes = projector.timeline.size_at(offset)
        self._write_lock = asyncio.Lock()

    @property
    def info(self) -> ExportInfo:
        """What clients are told."""
        return ExportInfo(
            name=self.projector.volume,
            size_bytes=self.size_bytes,
            read_only=self.scratch is None,
            description=f"{self.projector.volume} at journal offset {self.offset}",
            block_status=True,
            multi_conn=True,
        )

    async def read(self, start: int, length: int) -> bytearray:
        """The bytes at the point. Raises RequestError(EIO)."""
        for _ in range(PLANS_MAX):
            self._check_floor()
            pieces = self._plan(start, length)
            try:
                data = await self._gather(pieces, start, length)
            except IntegrityError as exc:
                applied = self.projector.applier.applied_offset
                if any(piece.kind == DATA and piece.journal_offset <= applied for piece in pieces):
                    continue
                raise RequestError(exc.message, errno=errno.EIO) from exc
            except (StorageError, UnavailableError, NotFoundError) as exc:
                raise RequestError(exc.message, errno=errno.EIO) from exc
            self._check_floor()
            return data
        raise RequestError("the journal is applied faster than it can be read", errno=errno.EIO)

    def _plan(self, start: int, length: int) -> list[Piece]:
        index, offset = self.projector.index, self.offset
        scratch_map = self.scratch.map if self.scratch else None
        return plan(start, length, scratch_map, lambda first, count: index.lookup(first, count, offset))

    def _check_floor(self) -> None:
        floor = self.projector.floor_offset
        if floor > self.offset:
            raise RequestError(f"the floor {floor} passed the view's point {self.offset}", errno=errno.EIO)
        if self.projector.timeline.is_spoiled(self.offset):
            raise RequestError(
                f"an event below the view's point {self.offset} cannot be read any more", errno=errno.EIO
            )

    async def _gather(self, pieces: list[Piece], start: int, length: int) -> bytearray:
        out = bytearray(length)
        for piece in pieces:
            at = piece.start - start
            if piece.kind == DATA:
                data = await self.projector.source.data(piece.journal_offset)
                out[at : at + piece.length] = data[piece.delta : piece.delta + piece.length]
            elif piece.kind == RECOVERY:
                out[at : at + piece.length] = await self.projector.applier.recovery.pread(
                    piece.start, piece.length
                )
            elif piece.kind == SCRATCH and self.scratch is not None:
                out[at : at + piece.length] = await self.scratch.pread(piece.start, piece.length)
        return out

    async def write(self, start: int, data: Buffer, fua: bool) -> None:  # noqa: ARG002
        """Write into the scratch; `fua` means nothing, as the scratch does not outlive the daemon."""
        scratch = self._writable()
        end = start + len(data)
        first_block, next_block = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        async with self._write_lock:
            if not scratch.has_room(first_block, next_block):
                raise RequestError(
                    f"the scratch limit of {scratch.bytes_max} bytes is reached", errno=errno.ENOSPC
                )
            low, high = first_block * BLOCK_BYTES, next_block * BLOCK_BYTES
            head = await self.read(low, start - low) if start > low else b""
            tail_end = min(high, self.size_bytes)
            tail = await self.read(end, tail_end - end) if end < tail_end else b""
            content = data if not head and not tail else b"".join((head, data, tail))
            with request_errors():
                await scratch.write(low, content)

    def _writable(self) -> Overlay:
        if self.scratch is None:
            raise RequestError("the view is read-only", errno=errno.EPERM)
        return self.scratch

    async def zero(self, start: int, length: int, unmap: bool, fua: bool) -> None:  # noqa: ARG002
        """Whole blocks are only noted; the edges are written."""
        scratch = self._writable()
        edges, whole = zero_parts(start, length, self.size_bytes)
        for first, count in edges:
            await self.write(first, bytes(count), fua)
        if whole is not None:
            async with self._write_lock:
                scratch.zero(*whole)

    async def trim(self, start: int, length: int) -> None:
        """A hint; the content stays."""

    async def flush(self) -> None:
        """Nothing to do: the scratch does not outlive the daemon, and all views share it."""

    async def block_status(self, start: int, length: int) -> Extents:
        """base:allocation by scratch, journal and the holes of the recovery volume. Raises RequestError(EIO)."""
        length = min(length, STATUS_BYTES_MAX)
        self._check_floor()
        pieces = self._plan(start, length)
        recovery = self.projector.applier.recovery
        with request_errors():
            holes = {
                piece.start: await recovery.allocation(piece.start, piece.length)
                for piece in pieces
                if piece.kind == RECOVERY
            }
        self._check_floor()
        extents = allocation(pieces, lambda first, _length: holes[first], self.size_bytes)
        return [(count, HOLE_AND_ZERO if is_zero else 0) for count, is_zero in extents]
