"""Arithmetic on byte extents: `(start, length)` pairs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rephub.core.bitmap.port import REGION_BYTES

Extent = tuple[int, int]


def overlaps(start: int, length: int, other_start: int, other_length: int) -> bool:
    """Whether two extents share a byte."""
    return start < other_start + other_length and other_start < start + length


def subtract(start: int, length: int, holes: Iterable[Extent]) -> list[Extent]:
    """What is left of an extent when others are cut out of it.

    Args:
        start: first byte.
        length: bytes.
        holes: extents in any order; they may overlap each other and reach beyond the extent.

    Returns:
        Non-empty extents, ascending, disjoint.
    """
    left: list[Extent] = []
    at, end = start, start + length
    for hole_start, hole_length in sorted(holes):
        if hole_start > at:
            left.append((at, min(hole_start, end) - at))
        at = max(at, hole_start + hole_length)
        if at >= end:
            return [extent for extent in left if extent[1] > 0]
    left.append((at, end - at))
    return [extent for extent in left if extent[1] > 0]


def intersect(extents: Iterable[Extent], start: int, length: int) -> list[Extent]:
    """The parts of the extents that lie inside `[start, start + length)`, in the order given."""
    end = start + length
    parts = []
    for other_start, other_length in extents:
        first = max(other_start, start)
        next_ = min(other_start + other_length, end)
        if first < next_:
            parts.append((first, next_ - first))
    return parts


def regions(start: int, length: int) -> range:
    """Numbers of the regions that an extent touches; empty for an empty one."""
    if length <= 0:
        return range(0)
    return range(start // REGION_BYTES, (start + length - 1) // REGION_BYTES + 1)


def split(start: int, length: int, bytes_max: int) -> Iterator[Extent]:
    """The extent in pieces of at most `bytes_max`; cut at multiples of it, so that a piece stays in one region."""
    end = start + length
    while start < end:
        piece = min(end, (start // bytes_max + 1) * bytes_max) - start
        yield start, piece
        start += piece
