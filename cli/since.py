"""`--since`: a time, or how long ago."""

from __future__ import annotations

import time

from rephub.core.errors import UsageError
from rephub.core.units import parse_duration, parse_time


def parse_since(text: str, now: int | None = None) -> int:
    """Microseconds since the Unix epoch of `2026-11-23T18:30:00Z` or of `90m`: so long before now.

    Args:
        text: what was given.
        now: microseconds since the Unix epoch; None: the clock's.

    Raises:
        UsageError: it is neither, or lies before 1970.
    """
    try:
        seconds = parse_duration(text)
    except UsageError:
        try:
            return parse_time(text)
        except UsageError:
            raise UsageError(
                f"bad time {text!r}", hint="a time with a zone, or how long ago: 2026-11-23T18:30:00Z, 90m"
            ) from None
    at = (time.time_ns() // 1000 if now is None else now) - int(seconds * 1e6)
    if at < 0:
        raise UsageError(f"time {text!r} is before 1970", hint="for example 24h")
    return at
