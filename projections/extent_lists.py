"""Lists of byte extents that travel in events: ascending, disjoint, bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EXTENTS_MAX = 4096
"""In one event: some 50 KB, far below what the control log takes."""

Extent = tuple[int, int]
"""(start, length)."""


def joined(extents: Iterable[Sequence[int]]) -> list[Extent]:
    """The same bytes in ascending, disjoint extents; neighbours and overlaps are joined."""
    found: list[Extent] = []
    for start, length in sorted((int(start), int(length)) for start, length in extents):
        if found and start <= found[-1][0] + found[-1][1]:
            first = found[-1][0]
            found[-1] = (first, max(found[-1][1], start + length - first))
        elif length > 0:
            found.append((start, length))
    return found


def bounded(extents: Iterable[Sequence[int]], extents_max: int = EXTENTS_MAX) -> list[Extent]:
    """`joined`, and where that is too many, joined across the narrowest spaces between them: no byte gets lost."""
    found = joined(extents)
    surplus = len(found) - extents_max
    if surplus <= 0:
        return found
    spaces = sorted(
        range(1, len(found)),
        key=lambda number: found[number][0] - found[number - 1][0] - found[number - 1][1],
    )
    closed = set(spaces[:surplus])
    merged: list[Extent] = []
    for number, (start, length) in enumerate(found):
        if number in closed:
            merged[-1] = (merged[-1][0], start + length - merged[-1][0])
        else:
            merged.append((start, length))
    return merged


def total(extents: Iterable[Sequence[int]]) -> int:
    """Bytes of disjoint extents."""
    return sum(int(length) for _, length in extents)
