"""Sizes, durations and times as people write and read them; pure.

Sizes are binary (`KiB`, `MiB`, …; `K` and `k` mean KiB) unless they end in `B` with a decimal prefix (`MB`).
Times are microseconds since the Unix epoch, UTC, and RFC 3339 with a zone in text.
"""

from __future__ import annotations

import datetime as dt
import re

from rephub.core.errors import UsageError

_BINARY = ("", "K", "M", "G", "T", "P")
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[KMGTP]?)(?P<kind>iB|B|)\Z", re.IGNORECASE)
_DURATION = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>s|m|min|h|d|w)\Z")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}

SIZE_MAX = 1 << 60
"""An exbibyte: larger is a typing error."""

DURATION_SECONDS_MAX = 100 * 365 * 86_400
"""A hundred years: larger is a typing error."""

HISTORY_SECONDS_DEFAULT = 24 * 3600
HISTORY_BYTES_DEFAULT = 20 << 30

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def parse_size(text: str) -> int:
    """Bytes of `20GiB`, `512M`, `1.5 TiB`, `100MB`, `4096`.

    Raises:
        UsageError: it is something else, or beyond SIZE_MAX.
    """
    found = _SIZE.match(text.strip())
    if not found:
        raise UsageError(f"bad size {text!r}", hint="for example 20GiB")
    base = 1000 if found["kind"].lower() == "b" and found["unit"] else 1024
    size = int(float(found["number"]) * base ** _BINARY.index(found["unit"].upper()))
    if size > SIZE_MAX:
        raise UsageError(f"size {text!r} is too large", hint="at most 1 EiB")
    return size


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `15m`, `24h`, `7d`, `2w`.

    Raises:
        UsageError: it is something else, or beyond DURATION_SECONDS_MAX.
    """
    found = _DURATION.match(text.strip())
    if not found:
        raise UsageError(f"bad duration {text!r}", hint="for example 24h or 90s")
    seconds = float(found["number"]) * _SECONDS[found["unit"]]
    if seconds > DURATION_SECONDS_MAX:
        raise UsageError(f"duration {text!r} is too long", hint="at most 100 years")
    return seconds


def parse_history(text: str) -> tuple[int, int]:
    """Seconds and bytes of `24h,20GiB`, `24h` or `20GiB`: whichever is reached first ends the window.

    The one that is not named gets its default.

    Raises:
        UsageError: neither, both of a kind, or zero.
    """
    seconds, size = parse_history_change(text)
    return seconds or HISTORY_SECONDS_DEFAULT, size or HISTORY_BYTES_DEFAULT


def parse_history_change(text: str) -> tuple[int | None, int | None]:
    """As `parse_history`; the one that is not named is None.

    Raises:
        UsageError: neither, both of a kind, or zero.
    """
    seconds: int | None = None
    size: int | None = None
    for part in text.split(","):
        if _DURATION.match(part.strip()) and seconds is None:
            seconds = int(parse_duration(part))
        elif _SIZE.match(part.strip()) and size is None:
            size = parse_size(part)
        else:
            raise UsageError(f"bad history {text!r}", hint="a time, a size, or both: 24h,20GiB")
    if seconds == 0 or size == 0:
        raise UsageError(f"history {text!r} keeps no point", hint="give more than zero: 24h,20GiB")
    return seconds, size


def parse_time(text: str) -> int:
    """Microseconds since the Unix epoch of an RFC 3339 time with a zone.

    Raises:
        UsageError: it is something else, has no zone, or lies before 1970.
    """
    try:
        at = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"bad time {text!r}", hint="for example 2026-11-23T18:30:00+01:00") from None
    if at.tzinfo is None:
        raise UsageError(f"time {text!r} has no zone", hint=f"for example {text.strip()}Z or …+01:00")
    micros = (at - _EPOCH) // dt.timedelta(microseconds=1)
    if micros < 0:
        raise UsageError(f"time {text!r} is before 1970", hint="check the year")
    return micros


def rfc3339(at: int) -> str:
    """A time in UTC, with as many digits as it needs.

    Args:
        at: microseconds since the Unix epoch.
    """
    moment = _EPOCH + dt.timedelta(microseconds=at)
    return moment.isoformat().replace("+00:00", "Z")


def format_bytes(size: float) -> str:
    """`1.5 GiB`: three digits are enough to read."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def format_duration(seconds: float) -> str:
    """`0.3 s`, `45 s`, `12 min`, `3.5 h`, `2.1 d`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            number = seconds / divisor
            return f"{number:.1f} h" if unit == "h" else f"{number:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"
