"""How far the floor of a volume may rise: the policy of the history window.

* Inside a gap there is nothing to keep: the floor rises at once, to its end or, while it is open, to the head.
* Otherwise the floor trails the head by the asked time and bytes, whichever is shorter, and never passes the newest
  consistent point: a good point is never given up before a newer one is there.
* A later gap is crossed in one go, once it is closed. Time alone does not put the floor into a gap; the byte limit does
  put it beyond, at the price of the points before: history shrinks before the limit is broken.
* Pins hold it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rephub.projections.timeline import Timeline


@dataclass(frozen=True, slots=True)
class History:
    """How much history is asked for; whichever is shorter counts."""

    seconds: int
    bytes: int


CUT_SHARE = 0.9
"""A window is called cut below this share of what was asked, and whole again at all of it: no flapping in between."""


_FOR_EVER = 1 << 40
"""Seconds."""


def floor_target(timeline: Timeline, history: History, pins: Collection[int]) -> int:
    """The offset up to which events may be applied now; the present floor where they may not.

    Args:
        timeline: of the volume.
        history: what is asked for.
        pins: points that views or plans hold.
    """
    floor = timeline.floor_offset
    gap = timeline.gap_at(floor)
    if gap is not None:
        wanted = timeline.head_offset if gap.next_offset is None else gap.next_offset
    else:
        wanted = _trailing(timeline, history)
    wanted = min([wanted, *pins])
    return max(floor, _outside_gap(timeline, wanted, floor))


def forced_floor(timeline: Timeline, history: History, pins: Collection[int]) -> int:
    """Where the byte limit alone puts the floor, whatever time was asked for.

    Args:
        timeline: of the volume.
        history: what is asked for.
        pins: points that must not be passed all the same.
    """
    return floor_target(timeline, History(_FOR_EVER, history.bytes), pins)


def is_cut(timeline: Timeline, history: History, target: int) -> bool:
    """Whether raising the floor to the target gives up points that are younger than was asked: the byte limit's doing.

    A pin that holds more than was asked is no matter; what lies in a gap was no point.

    Args:
        timeline: of the volume, before the floor rises.
        history: what is asked for.
        target: from `floor_target`.
    """
    if target <= timeline.floor_offset or timeline.gap_at(timeline.floor_offset) is not None:
        return False
    # Up to the head, as time lets the floor rise: that the end is an open gap is another matter.
    left = (timeline.captured_at(timeline.head_offset) or 0) - (timeline.captured_at(target) or 0)
    return left < history.seconds * 1_000_000 * CUT_SHARE


def _trailing(timeline: Timeline, history: History) -> int:
    latest = timeline.latest_offset()
    if latest is None:
        return timeline.floor_offset
    head_at = timeline.captured_at(timeline.head_offset) or 0
    wanted = timeline.last_at_most(head_at - history.seconds * 1_000_000)
    by_bytes = timeline.bytes.first_within(history.bytes)
    if by_bytes is not None and by_bytes > wanted:
        gap = timeline.gap_at(by_bytes)
        wanted = by_bytes if gap is None or gap.next_offset is None else gap.next_offset
    return min(wanted, latest)


def _outside_gap(timeline: Timeline, wanted: int, floor: int) -> int:
    gap = timeline.gap_at(wanted)
    if gap is None or gap.first_offset <= floor:
        return wanted
    return gap.first_offset - 1


def window_seconds(timeline: Timeline) -> float:
    """Time between the earliest and the latest point, by captured_at."""
    earliest, latest = timeline.earliest_offset(), timeline.latest_offset()
    if earliest is None or latest is None:
        return 0.0
    return max(0, (timeline.captured_at(latest) or 0) - (timeline.captured_at(earliest) or 0)) / 1e6
