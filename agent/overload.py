"""What happens when the guest writes faster than the journal takes it. Pure.

`throttle` delays answers the more, the fuller the buffer is, each by at most `delay_max_ms`, so that a guest slows
down before the buffer is full; `gap` delays nothing. A full buffer ends capture under both: the guest's write never
fails and no event is skipped in silence.
"""

from __future__ import annotations

from enum import StrEnum

THROTTLE_FROM = 0.5
"""Fill of the buffer above which answers are delayed: bursts up to half of it cost nothing."""

THROTTLE_FULL = 0.75
"""Fill from which on the delay is `delay_max_ms`; the last quarter is for what is under way meanwhile: 16 requests of 4 MiB
are that much of the default buffer."""

RETRY_SECONDS, RETRY_SECONDS_MAX = 0.2, 3.0
"""Between two attempts, and after a short life: a VM that comes back, or a Kafka that does, is found within the longest."""

OUTRUN_SECONDS, OUTRUN_SECONDS_MAX = 2.5, 30.0
"""Rest after the guest outran the journal."""


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


def rest_seconds(short_lives: int, *, outran: bool) -> float:
    """How long a volume rests in its gap before it is attached again; QEMU's bitmap records meanwhile.

    Args:
        short_lives: attachments in a row that ended soon after they began.
        outran: the last one ended because the guest outran the journal, which it will again: each attach costs the guest a
            drain and the journal a resync.
    """
    if not short_lives and not outran:
        return 0.0
    first, most = (OUTRUN_SECONDS, OUTRUN_SECONDS_MAX) if outran else (RETRY_SECONDS, RETRY_SECONDS_MAX)
    return min(first * 2.0 ** min(short_lives, 10), most)


def is_full(unacked_bytes: int, buffer_bytes: int) -> bool:
    """Rule: beyond this capture is lost."""
    return unacked_bytes > buffer_bytes
