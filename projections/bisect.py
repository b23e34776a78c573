"""The search for the last good point between a good and a bad one; pure.

Checkpoints are tried first: they are few, and mean something to people. Then single offsets between the two neighbours.
A point that cannot be tested is skipped, and the nearest one takes its place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["good", "bad", "skip"]


class Search:
    """One search. Ask `next`, test it, `tell`, until `next` is None.

    Args:
        good: an offset that is good.
        bad: one that is bad, above it.
        checkpoints: offsets, in any order.
        ranges: (first, last) of offsets that can be opened, ascending, inclusive.
    """

    def __init__(
        self, good: int, bad: int, checkpoints: Sequence[int], ranges: Sequence[tuple[int, int]]
    ) -> None:
        self.good, self.bad = good, bad
        self.skipped: set[int] = set()
        """Points that could not be tested."""
        self._ranges = list(ranges)
        self._checkpoints = sorted({offset for offset in checkpoints if self._is_open(offset)})

    def _is_open(self, offset: int) -> bool:
        index = bisect_right(self._ranges, offset, key=lambda item: item[0]) - 1
        return index >= 0 and offset <= self._ranges[index][1]

    def next(self) -> int | None:
        """The point to test; None: there is none left between the good and the bad one."""
        marks = [
            offset
            for offset in self._checkpoints
            if self.good < offset < self.bad and offset not in self.skipped
        ]
        if marks:
            return marks[len(marks) // 2]
        inside = [
            (max(first, self.good + 1), min(last, self.bad - 1))
            for first, last in self._ranges
            if first < self.bad and last > self.good
        ]
        inside = [item for item in inside if item[0] <= item[1]]
        total = sum(last - first + 1 for first, last in inside)
        return self._nearest(inside, total)

    def _nearest(self, inside: list[tuple[int, int]], total: int) -> int | None:
        """From the middle outwards, the first that was not skipped."""
        middle = total // 2
        for distance in range(total + 1):
            for place in (middle - distance, middle + distance):
                if 0 <= place < total and (offset := _at(inside, place)) not in self.skipped:
                    return offset
        return None

    def tell(self, offset: int, verdict: Verdict) -> None:
        """What a test of the point has found."""
        if verdict == "skip":
            self.skipped.add(offset)
        elif verdict == "good":
            self.good = max(self.good, offset)
        else:
            self.bad = min(self.bad, offset)

    @property
    def between(self) -> list[int]:
        """Points between the two that could not be tested: any of them may be the first bad one."""
        return sorted(offset for offset in self.skipped if self.good < offset < self.bad)


def _at(ranges: list[tuple[int, int]], place: int) -> int:
    """The offset at a place of all ranges together."""
    for first, last in ranges:
        if place <= last - first:
            return first + place
        place -= last - first + 1
    raise IndexError(place)
