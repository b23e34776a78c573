"""When a part that died is started again: a pure rule, without a clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

DELAY_FIRST_SECONDS = 0.1
"""One crash should cost no protection that can be had: start again nearly at once."""

DELAY_SECONDS_MAX = 10.0
"""A part that cannot live burns at most one start in so long."""

FLAPPING_DEATHS = 5
FLAPPING_SECONDS = 60.0
"""So many deaths within so long are called flapping."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What to do about a death."""

    delay_seconds: float
    flapping: bool


class RestartRule:
    """Doubles the delay with each death in the last minute; forgets deaths older than that."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=FLAPPING_DEATHS)

    def on_death(self, now_seconds: float) -> Restart:
        """Note a death.

        Args:
            now_seconds: any clock that does not go back.
        """
        while self._deaths and now_seconds - self._deaths[0] > FLAPPING_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now_seconds)
        count = len(self._deaths)
        flapping = count >= FLAPPING_DEATHS
        delay = DELAY_SECONDS_MAX if flapping else DELAY_FIRST_SECONDS * 4.0 ** (count - 1)
        return Restart(min(delay, DELAY_SECONDS_MAX), flapping)

    def is_calm(self, now_seconds: float) -> bool:
        """Whether the last death is long enough ago to forget the word flapping."""
        return not self._deaths or now_seconds - self._deaths[-1] > FLAPPING_SECONDS
