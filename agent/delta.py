"""What a delta sync has to copy: extents of QEMU's dirty bitmaps, read over NBD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from rephub.agent.extents import Extent
from rephub.core.bitmap.port import REGION_BYTES

EXTENTS_MAX = 1 << 17
"""More are rounded out to whole regions; some 20 MB of memory."""

STATUS_BYTES = 1 << 30
"""Asked of a bitmap at once: its answer has 16,384 extents at most at QEMU's default granularity."""

STATE_DIRTY = 1
"""Flag of qemu:dirty-bitmap (QEMU's docs/interop/nbd.txt)."""


class Source(Protocol):
    """An NBD client."""

    @property
    def contexts(self) -> frozenset[str]:
        """Meta contexts that the server shows."""

    async def block_status(self, start: int, length: int, context: str) -> list[tuple[int, int]]:
        """(length, flags) of consecutive extents."""


def context_of(bitmap: str) -> str:
    """The meta context under which QEMU's NBD server shows a bitmap."""
    return f"qemu:dirty-bitmap:{bitmap}"


async def to_copy(source: Source, record: str, guard: str, size_bytes: int) -> list[Extent] | None:
    """What may differ from what it was at a pause: what the record says is dirty, and what the guard does not have.

    Args:
        source: export of the volume.
        record: name of the bitmap that recorded (see `bitmaps.py`).
        guard: name of the one that has every bit of what was there before.
        size_bytes: of the volume now.

    Returns:
        As `union` gives it; None: the server does not show the bitmaps.

    Raises:
        UnavailableError, ProtocolError, RequestError: they cannot be read.
    """
    if not {context_of(record), context_of(guard)} <= source.contexts:
        return None
    dirty = await in_bitmap(source, record, size_bytes)
    return union(dirty + await in_bitmap(source, guard, size_bytes, state=0), size_bytes)


async def in_bitmap(
    source: Source, bitmap: str, size_bytes: int, *, state: int = STATE_DIRTY
) -> list[Extent]:
    """The extents that are dirty in a bitmap that the source shows, or, with state 0, those that are not.

    Raises:
        UnavailableError, ProtocolError, RequestError: it cannot be read.
    """
    found: list[Extent] = []
    for start in range(0, size_bytes, STATUS_BYTES):
        at, end = start, min(start + STATUS_BYTES, size_bytes)
        for length, flags in await source.block_status(at, end - at, context_of(bitmap)):
            if flags & STATE_DIRTY == state:
                found.append((at, length))
            at += length
        if len(found) > 2 * EXTENTS_MAX:
            found = union(found, size_bytes)
    return union(found, size_bytes)


def union(extents: Iterable[Extent], size_bytes: int, extents_max: int = EXTENTS_MAX) -> list[Extent]:
    """All bytes of the extents that lie in the volume, and if there are too many extents, some more bytes.

    Args:
        extents: in any order; they may overlap, and reach beyond the volume.
        size_bytes: of the volume.
        extents_max: beyond, the extents are rounded out to whole regions.

    Returns:
        Ascending, disjoint, not touching, none empty.
    """
    joined = _join(sorted(extents), size_bytes)
    if len(joined) > extents_max:
        joined = _join((_rounded(*extent) for extent in joined), size_bytes)
    return joined


def _join(ascending: Iterable[Extent], size_bytes: int) -> list[Extent]:
    joined: list[Extent] = []
    for start, length in ascending:
        end = min(start + length, size_bytes)
        if start >= end:
            continue
        if joined and start <= sum(joined[-1]):
            first = joined[-1][0]
            joined[-1] = (first, max(sum(joined[-1]), end) - first)
        else:
            joined.append((start, end - start))
    return joined


def _rounded(start: int, length: int) -> Extent:
    first = start // REGION_BYTES * REGION_BYTES
    return first, -(-(start + length) // REGION_BYTES) * REGION_BYTES - first
