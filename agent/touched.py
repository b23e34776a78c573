"""What the guest wrote while a record of QEMU's bitmap recorded: whatever else the record has, somebody else wrote. Pure.

A *turn* goes with each rotation (`bitmaps.py`), a little later: what is captured in between counts for the record before, and
may be in the one after. So a record is compared with its own turn and the one before.
"""

from __future__ import annotations

from collections.abc import Iterable

from rephub.agent.bitmaps import GRANULARITY_BYTES
from rephub.agent.extents import Extent

GRANULES_MAX = 1 << 17
"""Of one turn, some 10 MB; what a guest writes beyond is not watched."""


class Touched:
    """Granules that were captured, of this turn and the last two."""

    def __init__(self) -> None:
        self._now: set[int] | None = set()
        self._last: set[int] | None = set()
        self._before: set[int] | None = set()

    def add(self, start: int, length: int) -> None:
        """The guest wrote to an extent."""
        now = self._now
        if now is None:
            return
        first, last = start // GRANULARITY_BYTES, (start + length - 1) // GRANULARITY_BYTES
        if first == last:
            now.add(first)
        else:
            now.update(range(first, last + 1))
        if len(now) > GRANULES_MAX:
            self._now = None

    def turn(self) -> int | None:
        """Begin a new turn; bytes of the granules of the one that ends, None: too many."""
        self._before, self._last, self._now = self._last, self._now, set()
        return None if self._last is None else len(self._last) * GRANULARITY_BYTES

    def foreign(self, extents: Iterable[Extent]) -> list[Extent]:
        """What of a record, the one of the turn that ended last, no guest's write explains; empty also if that is not known.

        Args:
            extents: dirty in the record, whole granules.
        """
        last, before = self._last, self._before
        if last is None or before is None:
            return []
        return [
            (granule * GRANULARITY_BYTES, GRANULARITY_BYTES)
            for start, length in extents
            for granule in range(start // GRANULARITY_BYTES, -(-(start + length) // GRANULARITY_BYTES))
            if granule not in last and granule not in before
        ]
