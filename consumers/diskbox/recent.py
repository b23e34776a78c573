"""Records that were just read and are about to be applied: kept, so that they are fetched once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rephub.consumers.diskbox.applier import Event

RECENT_BYTES_MAX = 64 << 20
"""The follower waits beyond."""


class Recent:
    """A row of events without a hole, the newest at its end."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be added."""
        return self._bytes > RECENT_BYTES_MAX

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not self._events

    def add(self, event: Event, length: int) -> None:
        """Keep an event of so many bytes; what it does not follow is forgotten."""
        if self._events and self._events[-1][0][0] != event[0] - 1:
            self.clear()
        self._events.append((event, length))
        self._bytes += length

    def clear(self) -> None:
        """Forget all."""
        self._events.clear()
        self._bytes = 0

    def drop(self, applied_offset: int) -> None:
        """Forget what is applied."""
        while self._events and self._events[0][0][0] <= applied_offset:
            self._bytes -= self._events.popleft()[1]

    def from_offset(self, first_offset: int, bytes_max: int, wanted: Callable[[int], bool]) -> list[Event]:
        """Events from an offset on, about `bytes_max`, as long as their offset is wanted; none if it is not held."""
        events: list[Event] = []
        if not self._events or self._events[0][0][0] != first_offset:
            return events
        total = 0
        for event, length in self._events:
            if not wanted(event[0]) or total >= bytes_max:
                break
            events.append(event)
            total += length
        return events
