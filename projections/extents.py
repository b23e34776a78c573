"""Byte extents: which part of a range nobody has claimed yet.

Both merging (newest event first) and coalescing (last write of a byte wins) walk events from the newest to the oldest
and let each claim what is left of its extent. Invariant: holes are disjoint, ascending and never empty.
"""

from __future__ import annotations

from bisect import bisect_right


class Unclaimed:
    """What is left of [start, end).

    Args:
        start: first byte.
        end: one after the last byte.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, start: int, end: int) -> None:
        self._starts = [start] if end > start else []
        self._ends = [end] if end > start else []

    def __bool__(self) -> bool:
        """True while something is left."""
        return bool(self._starts)

    def holes(self) -> list[tuple[int, int]]:
        """What is left: (start, end) pairs, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def claim(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take what is left of [start, end).

        Returns:
            The parts that were still there, ascending. Cost: O(log holes + parts).
        """
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)
        taken: list[tuple[int, int]] = []
        after = first
        while after < len(starts) and starts[after] < end:
            taken.append((max(start, starts[after]), min(end, ends[after])))
            after += 1
        if not taken:
            return taken
        left, right = starts[first], ends[after - 1]
        rest_starts: list[int] = []
        rest_ends: list[int] = []
        if left < start:
            rest_starts.append(left)
            rest_ends.append(start)
        if right > end:
            rest_starts.append(end)
            rest_ends.append(right)
        starts[first:after] = rest_starts
        ends[first:after] = rest_ends
        return taken
