"""A timeline for a screen: of the checkpoints that fall into one column of pixels, one is enough; pure."""

from __future__ import annotations

from typing import Any

COLUMNS_MAX = 10_000
"""Wider than any screen."""


def in_columns(
    checkpoints: list[dict[str, Any]], columns: int, first_at: int | None, last_at: int | None
) -> list[dict[str, Any]]:
    """At most one checkpoint for each column of a span of time: the newest that has a name of its own, else the newest.

    Args:
        checkpoints: ascending, as `Timeline.checkpoints` gives them.
        columns: from 1 to COLUMNS_MAX.
        first_at: beginning of the span, microseconds since the Unix epoch; None: the first checkpoint's.
        last_at: its end, inclusive; None: the last checkpoint's.
    """
    if not checkpoints:
        return []
    first = checkpoints[0]["captured_at"] if first_at is None else first_at
    last = checkpoints[-1]["captured_at"] if last_at is None else last_at
    width = max(1, -(-(last + 1 - first) // columns))
    kept: dict[int, dict[str, Any]] = {}
    for mark in checkpoints:
        if first <= mark["captured_at"] <= last:
            column = (mark["captured_at"] - first) // width
            before = kept.get(column)
            if before is None or before["periodic"] or not mark["periodic"]:
                kept[column] = mark
    return [kept[column] for column in sorted(kept)]
