"""Records that were just read and are about to be applied: kept, so that they are fetched once."""

from __future__ import annotations

from collections import deque

from rephub.core.codec.runs import Item, between, first_offset, last_offset

RECENT_BYTES_MAX = 64 << 20
"""The follower waits beyond."""


class Recent:
    """A row of events and runs without a hole, the newest at its end."""

    def __init__(self) -> None:
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be added."""
        return self._bytes > RECENT_BYTES_MAX

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not self._items

    def add(self, item: Item, length: int) -> None:
        """Keep an item of so many bytes; what it does not follow is forgotten."""
        if self._items and last_offset(self._items[-1][0]) != first_offset(item) - 1:
            self.clear()
        self._items.append((item, length))
        self._bytes += length

    def clear(self) -> None:
        """Forget all."""
        self._items.clear()
        self._bytes = 0

    def drop(self, applied_offset: int) -> None:
        """Forget what is applied; a run that is applied in part stays."""
        while self._items and last_offset(self._items[0][0]) <= applied_offset:
            self._bytes -= self._items.popleft()[1]

    def between(self, first: int, last: int, bytes_max: int) -> list[Item]:
        """What lies at offsets [first, last], about `bytes_max`; nothing if the first is not held."""
        if not self._items or not first_offset(self._items[0][0]) <= first:
            return []
        items: list[Item] = []
        total = 0
        for item, length in self._items:
            if total >= bytes_max or first_offset(item) > last:
                break
            items.append(item)
            total += length
        return between(items, first, last)
