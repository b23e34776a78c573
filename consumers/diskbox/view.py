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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rephub.consumers.diskbox.files import is_full
from rephub.consumers.diskbox.hydrator import GoneError, Hydrator
from rephub.consumers.diskbox.kept import Kept
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.core.errors import IntegrityError, NotFoundError, RequestError, StorageError, UnavailableError
from rephub.core.nbd.export import Buffer, ExportInfo, Extents
from rephub.projections.index import DATA, HYDRATED, KEPT, RECOVERY, SCRATCH, Piece
from rephub.projections.view import BLOCK_BYTES, Lookup, allocation, plan, zero_parts

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


class Place(Protocol):
    """A file, or what is like one, that has the bytes of a part."""

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """Exactly `length` bytes. Raises StorageError."""


Part = tuple[int, int, Place | memoryview | None]


class View:
    """An `AsyncExport` of the volume at a point.

    Args:
        projector: of the volume; the caller holds a pin at the point.
        offset: the point.
        scratch: takes writes; None: read-only.
        kept: what was kept when the projector passed the point; None: it must not pass.
    """

    def __init__(
        self, projector: Projector, offset: int, scratch: Overlay | None, kept: Kept | None = None
    ) -> None:
        self.projector = projector
        self.offset = offset
        self.scratch = scratch
        self.hydrator: Hydrator | None = None
        self.kept = kept
        self.on_full: Callable[[], None] = lambda: None
        """Called when a write is refused because the scratch is at its limit."""
        self.size_bytes = projector.timeline.size_at(offset) if kept is None else kept.size_bytes
        self._write_lock = asyncio.Lock()
        self._keep_lock = asyncio.Lock()

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

    async def read(self, start: int, length: int) -> Buffer:
        """The bytes at the point. Raises RequestError(EIO)."""
        return await self._read(start, length, self._plan)

    async def _read_below(self, start: int, length: int) -> Buffer:
        """As `read`, whatever was written to the scratch."""
        return await self._read(start, length, self._plan_below)

    async def _read(self, start: int, length: int, plan_of: Lookup) -> Buffer:
        for _ in range(PLANS_MAX):
            self._check_floor()
            floor = self.projector.floor_offset
            pieces = plan_of(start, length)
            try:
                data = await self._gather(pieces, start, length)
            except GoneError:
                continue
            except IntegrityError as exc:
                applied = self.projector.applier.applied_offset
                if any(piece.kind == DATA and piece.journal_offset <= applied for piece in pieces):
                    continue
                raise RequestError(exc.message, errno=errno.EIO) from exc
            except (StorageError, UnavailableError, NotFoundError) as exc:
                raise RequestError(exc.message, errno=errno.EIO) from exc
            self._check_floor()
            if self.projector.floor_offset > max(floor, self.offset):
                # It passed the point meanwhile: what was in the recovery volume may be kept elsewhere now.
                continue
            return data
        raise self._too_fast()

    def _too_fast(self) -> RequestError:
        return RequestError("the journal is applied faster than it can be read", errno=errno.EIO)

    def _plan(self, start: int, length: int) -> list[Piece]:
        return plan(start, length, self.scratch.map if self.scratch else None, self._plan_below)

    def _plan_below(self, start: int, length: int) -> list[Piece]:
        return plan(start, length, self.kept.map if self.kept else None, self._plan_journal, KEPT)

    def _plan_journal(self, start: int, length: int) -> list[Piece]:
        if self.hydrator is None:
            return self._lookup(start, length)
        return self.hydrator.plan(start, length, self._lookup)

    def _lookup(self, start: int, length: int) -> list[Piece]:
        return self.projector.index.lookup(start, length, self.offset)

    def _check_floor(self) -> None:
        floor = self.projector.floor_offset
        if floor > (self.offset if self.kept is None else self.kept.upto):
            raise RequestError(f"the floor {floor} passed the view's point {self.offset}", errno=errno.EIO)
        if self.projector.timeline.is_spoiled(self.offset):
            raise RequestError(
                f"an event below the view's point {self.offset} cannot be read any more", errno=errno.EIO
            )

    async def _gather(self, pieces: list[Piece], start: int, length: int) -> Buffer:
        hydrator = self.hydrator
        cold = [
            piece.journal_offset
            for piece in pieces
            if piece.kind == DATA and not (hydrator is not None and hydrator.holds(piece.journal_offset))
        ]
        events = await self.projector.source.data_of(cold) if cold else {}
        parts = list(self._parts(pieces, events))
        if len(parts) == 1:
            return await self._read_part(*parts[0])
        out = bytearray(length)
        for first, count, place in parts:
            if place is not None:
                out[first - start : first - start + count] = await self._read_part(first, count, place)
        return out

    def _parts(self, pieces: list[Piece], events: Mapping[int, memoryview]) -> Iterator[Part]:
        """(start, length, place) of what is read at once; a place of None has zeroes."""
        first, count, place = 0, 0, None
        for piece in pieces:
            here = self._place(piece, events)
            if count and here is place and not isinstance(here, memoryview):
                count += piece.length
                continue
            if count:
                yield first, count, place
            first, count, place = piece.start, piece.length, here
        yield first, count, place

    def _place(self, piece: Piece, events: Mapping[int, memoryview]) -> Place | memoryview | None:
        if piece.kind == DATA:
            data = events.get(piece.journal_offset)
            if data is None and self.hydrator is None:
                raise GoneError
            return self.hydrator if data is None else data[piece.delta : piece.delta + piece.length]
        if piece.kind == RECOVERY:
            return self.projector.applier.recovery
        return {SCRATCH: self.scratch, KEPT: self.kept, HYDRATED: self.hydrator}.get(piece.kind)

    async def _read_part(self, start: int, length: int, place: Place | memoryview | None) -> Buffer:
        if place is None:
            return bytes(length)
        return place if isinstance(place, memoryview) else await place.pread(start, length)

    async def write(self, start: int, data: Buffer, fua: bool) -> None:  # noqa: ARG002
        """Write into the scratch; `fua` means nothing, as the scratch does not outlive the daemon."""
        scratch = self._writable()
        end = start + len(data)
        first_block, next_block = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        async with self._write_lock:
            if not scratch.has_room(first_block, next_block):
                self.on_full()
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

    async def keep_upto(self, floor_offset: int) -> None:
        """The floor is about to rise beyond the point: keep what that overwrites.

        Raises:
            StorageError, RequestError: it cannot be kept; the view must end before the floor rises.
        """
        assert self.kept is not None
        async with self._keep_lock:
            await self.kept.keep(floor_offset, self.scratch.map if self.scratch else None, self._read_below)

    def status(self) -> dict[str, Any]:
        """What it costs, and how far it is hydrated."""
        hydrator = self.hydrator
        return {
            "scratch_bytes": 0 if self.scratch is None else self.scratch.map.held_blocks * BLOCK_BYTES,
            "scratch_limit_bytes": None if self.scratch is None else self.scratch.bytes_max,
            "kept_bytes": 0 if self.kept is None else self.kept.kept_bytes,
            "hydration": None if hydrator is None else hydrator.status(),
        }

    async def close(self, *, discard: bool) -> None:
        """Let go of all files; `discard`: and delete them."""
        if self.hydrator is not None:
            await self.hydrator.close()
        async with self._keep_lock:
            for files in (self.scratch, self.kept):
                if files is not None and discard:
                    files.discard()
                elif files is not None:
                    files.close()

    async def trim(self, start: int, length: int) -> None:
        """A hint; the content stays."""

    async def flush(self) -> None:
        """Nothing to do: the scratch does not outlive the daemon, and all views share it."""

    async def block_status(self, start: int, length: int) -> Extents:
        """base:allocation by scratch, journal and the holes of the recovery volume. Raises RequestError(EIO)."""
        length = min(length, STATUS_BYTES_MAX)
        for _ in range(PLANS_MAX):
            self._check_floor()
            floor = self.projector.floor_offset
            pieces = self._plan(start, length)
            recovery = self.projector.applier.recovery
            with request_errors():
                holes = {
                    piece.start: await recovery.allocation(piece.start, piece.length)
                    for piece in pieces
                    if piece.kind == RECOVERY
                }
            self._check_floor()
            if self.projector.floor_offset <= max(floor, self.offset):
                extents = allocation(pieces, lambda first, _count, found=holes: found[first], self.size_bytes)  # type: ignore[misc]
                return [(count, HOLE_AND_ZERO if is_zero else 0) for count, is_zero in extents]
        raise self._too_fast()
