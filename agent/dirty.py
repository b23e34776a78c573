"""Which regions of a volume may hold writes that the journal does not have. Pure: no Redis, no clock.

A region is *pending* while an event that touches it is not acked, *marked* while the store is known to hold its bit,
*unsynced* until sync has enqueued all of it in this epoch. Rules:

* A write may be answered once all its regions are marked (`touch` names those that are not yet).
* A mark is cleared lazily: only when the region is neither pending nor unsynced, and only once it has been quiet, or
  more than `hot_max` quiet regions keep their marks: a hot region costs one mark, not one per write.
* Before a clear is sent the region counts as unmarked, so that a write meanwhile asks for a new mark, which the one
  store connection puts after the clear.
* After a failed round trip nothing is known of the store: every region counts as unmarked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from rephub.agent.extents import regions
from rephub.core.bitmap.port import REGION_BYTES

HOT_REGIONS_MAX = 4096
"""Quiet regions that keep their mark: 4 GiB of working set (DRBD's activity log has 5); after a crash so much is resynced
at most in vain. A write outside it waits for a round trip to Redis and its fsync."""

QUIET_SECONDS = 10.0
"""A region that has been acked for so long loses its mark. At 2 s a guest that writes 1,000 times a second all over 1 GiB
asks for every third of its marks anew."""

CLEAR_MAX = 4096
"""Regions cleared in one round trip."""


def may_clear(*, pending: bool, unsynced: bool) -> bool:
    """Rule: only what Kafka holds completely may lose its mark."""
    return not pending and not unsynced


class DirtyRegions:
    """The regions of one volume in one epoch.

    Args:
        size_bytes: of the volume.
        hot_max: quiet regions that keep their marks.
    """

    def __init__(self, size_bytes: int, hot_max: int = HOT_REGIONS_MAX) -> None:
        self._size_bytes = size_bytes
        self.count = (size_bytes + REGION_BYTES - 1) // REGION_BYTES
        self._hot_max = hot_max
        self._pending: dict[int, int] = {}
        self._marked: set[int] = set()
        self._quiet: OrderedDict[int, float] = OrderedDict()
        """Marked regions without pending events → when the last one was acked, oldest first."""
        # One byte a region: 1 MB per TiB, and no hashing on the hot path.
        self._unsynced = bytearray(b"\1") * self.count
        self._unsynced_count = self.count

    @property
    def dirty_bytes(self) -> int:
        """Regions that are marked, pending or unsynced, in bytes."""
        others = self._marked | self._pending.keys()
        both = sum(1 for region in others if region < self.count and self._unsynced[region])
        return (self._unsynced_count + len(others) - both) * REGION_BYTES

    @property
    def marked(self) -> frozenset[int]:
        """Regions whose bit the store is known to hold."""
        return frozenset(self._marked)

    def touch(self, start: int, length: int) -> list[int]:
        """An event that covers the extent was enqueued.

        Returns:
            Its regions that are not marked; the write must not be answered before they are.
        """
        fresh: list[int] = []
        for region in regions(start, length):
            self._pending[region] = self._pending.get(region, 0) + 1
            if region in self._marked:
                self._quiet.pop(region, None)
            else:
                fresh.append(region)
        return fresh

    def hold(self, start: int, length: int) -> None:
        """A sync event that covers the extent was enqueued: pending, but no mark is asked for."""
        for region in regions(start, length):
            self._pending[region] = self._pending.get(region, 0) + 1
            self._quiet.pop(region, None)

    def acked(self, start: int, length: int, now: float) -> None:
        """An event that covers the extent was acked.

        Args:
            start: as given to `touch` or `hold`.
            length: same.
            now: seconds of a monotonic clock.
        """
        for region in regions(start, length):
            left = self._pending[region] - 1
            if left:
                self._pending[region] = left
                continue
            del self._pending[region]
            if region in self._marked:
                self._quiet[region] = now
                self._quiet.move_to_end(region)

    def limit_unsynced(self, extents: Iterable[tuple[int, int]]) -> None:
        """Sync is to enqueue these extents and nothing else: the journal has all other regions as they are."""
        wanted = bytearray(self.count)
        for start, length in extents:
            touched = regions(start, length)
            wanted[touched.start : touched.stop] = b"\1" * len(touched)
        self._unsynced = wanted
        self._unsynced_count = wanted.count(1)

    def synced(self, start: int, length: int) -> None:
        """Sync has enqueued everything of the extent; whole regions inside it are no longer unsynced."""
        first = (start + REGION_BYTES - 1) // REGION_BYTES
        end = start + length
        # The last region may be a partial one.
        next_ = self.count if end >= self._size_bytes else end // REGION_BYTES
        if first < next_:
            self._unsynced_count -= self._unsynced.count(1, first, next_)
            self._unsynced[first:next_] = bytes(next_ - first)

    def marks_stored(self, stored: Iterable[int], now: float) -> None:
        """The store holds these bits."""
        for region in stored:
            self._marked.add(region)
            if region not in self._pending:
                self._quiet[region] = now
                self._quiet.move_to_end(region)

    def marks_unknown(self) -> None:
        """A round trip failed: no mark is known to be held."""
        self._marked.clear()
        self._quiet.clear()

    def unmarked_pending(self) -> set[int]:
        """Regions that need a mark and have none: what is sent again once the store is back."""
        return self._pending.keys() - self._marked

    def take_clearable(self, now: float) -> list[int]:
        """Regions whose marks may be cleared now; they count as unmarked from here on.

        Args:
            now: seconds of the clock that `acked` was given.

        Returns:
            At most CLEAR_MAX regions.
        """
        cleared: list[int] = []
        kept: list[tuple[int, float]] = []
        while self._quiet and len(cleared) + len(kept) < CLEAR_MAX:
            region, since = next(iter(self._quiet.items()))
            if now - since < QUIET_SECONDS and len(self._quiet) + len(kept) <= self._hot_max:
                break
            del self._quiet[region]
            unsynced = region < self.count and bool(self._unsynced[region])
            if may_clear(pending=region in self._pending, unsynced=unsynced):
                self._marked.discard(region)
                cleared.append(region)
            else:
                kept.append((region, now))
        self._quiet.update(kept)
        return cleared
