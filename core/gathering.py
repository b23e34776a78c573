"""How long requests to Kafka gather what they carry, where nobody waits for it. Pure.

A request costs broker and client about the same whatever is in it. So all that make such requests in a process share a
`Gathering`: the more of them have something to carry at a time, the longer each gathers, within limits.
"""

from __future__ import annotations

from collections.abc import Hashable

FLOWING_SECONDS = 1.0
"""Who has not gathered for so long has nothing to carry."""
FREE = 2
"""So many gather for the shortest time."""
FACTOR_MAX = 3.0
"""The longest time, of the shortest: with more, what is gathered would be late for a recovery point below 100 ms."""


class Gathering:
    """Shared by the requests of a process.

    Args:
        seconds: the shortest time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._flowing: dict[Hashable, float] = {}
        self._looked_at = 0.0

    def seconds(self, who: Hashable, now: float) -> float:
        """How long one of them gathers now.

        Args:
            who: the same at each call.
            now: of a monotonic clock.
        """
        self._flowing[who] = now
        if now - self._looked_at > FLOWING_SECONDS:
            self._looked_at = now
            self._flowing = {other: at for other, at in self._flowing.items() if now - at <= FLOWING_SECONDS}
        return self._seconds * min(FACTOR_MAX, max(1.0, len(self._flowing) / FREE))
