"""What happens when the guest writes faster than the journal takes it. Pure.

`throttle` delays answers the more, the fuller the buffer is, each by at most `delay_max_ms`, so that a guest slows
down before the buffer is full; `gap` delays nothing. A full buffer ends capture under both: the guest's write never
fails and no event is skipped in silence.
"""

from __future__ import annotations

from enum import StrEnum

THROTTLE_FROM = 0.125
"""Fill of the buffer above which answers are delayed: bursts up to an eighth of it cost nothing."""

THROTTLE_FULL = 0.5
"""Fill from which on the delay is `delay_max_ms`; the other half is for what is under way meanwhile."""


class Policy(StrEnum):
    """What `--overload` may say."""

    THROTTLE = "throttle"
    GAP = "gap"


def answer_delay_seconds(policy: Policy, unacked_bytes: int, buffer_bytes: int, delay_max_ms: int) -> float:
    """By how much an answer is delayed at this fill: 0 below THROTTLE_FROM, then rising, never above the limit."""
    if policy is not Policy.THROTTLE:
        return 0.0
    fill = unacked_bytes / buffer_bytes
    if fill <= THROTTLE_FROM:
        return 0.0
    rise = min(1.0, (fill - THROTTLE_FROM) / (THROTTLE_FULL - THROTTLE_FROM))
    # Quadratic: gentle at first, since most bursts end by themselves.
    return delay_max_ms / 1000 * rise * rise


def is_full(unacked_bytes: int, buffer_bytes: int) -> bool:
    """Rule: beyond this capture is lost."""
    return unacked_bytes > buffer_bytes
