"""Sizes, durations and times, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core import units
from rephub.core.errors import UsageError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("20GiB", 20 * GIB),
        ("512M", 512 << 20),
        ("1.5 TiB", 3 << 39),
        ("100MB", 100_000_000),
        ("4096", 4096),
        ("1k", 1024),
    ],
)
def test_sizes(text: str, want: int) -> None:
    assert units.parse_size(text) == want


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XiB", "1e9", "2EiB", "9999999P", "1,5G", "٣GiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_size(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "want"), [("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800), ("0.5h", 1800)]
)
def test_durations(text: str, want: float) -> None:
    assert units.parse_duration(text) == want


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1y", "99999999d"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("24h,20GiB", (86400, 20 * GIB)),
        ("20GiB,24h", (86400, 20 * GIB)),
        ("1h", (3600, units.HISTORY_BYTES_DEFAULT)),
        ("1GiB", (units.HISTORY_SECONDS_DEFAULT, GIB)),
    ],
)
def test_history(text: str, want: tuple[int, int]) -> None:
    assert units.parse_history(text) == want


@pytest.mark.parametrize(
    "text", ["", "1h,2h", "1G,2G", "0h", "0s,1G", "1h,0G", "1h,1G,1G", "forever", "0.1s"]
)
def test_bad_history(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_history(text)


@given(at=st.integers(0, 4_000_000_000_000_000))
def test_times_round_trip(at: int) -> None:
    assert units.parse_time(units.rfc3339(at)) == at


def test_zones() -> None:
    assert units.parse_time("1970-01-01T01:00:01+01:00") == 1_000_000
    assert units.rfc3339(1_500_000) == "1970-01-01T00:00:01.500000Z"


@pytest.mark.parametrize(
    "text", ["", "noon", "2026-11-23T18:30:00", "2026-13-01T00:00:00Z", "1969-12-31T00:00:00Z"]
)
def test_bad_times(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_time(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("size", "want"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 * GIB, "20.0 GiB"), (1 << 60, "1024.0 PiB")],
)
def test_format_bytes(size: int, want: str) -> None:
    assert units.format_bytes(size) == want


@pytest.mark.parametrize(
    ("seconds", "want"), [(0, "0.0 s"), (45, "45 s"), (150, "2 min"), (9000, "2.5 h"), (200_000, "2.3 d")]
)
def test_format_duration(seconds: float, want: str) -> None:
    assert units.format_duration(seconds) == want
