"""From a batch of events to the fewest device writes with the same effect.

Only the last write of a byte matters within one batch. Neighbours of one kind are merged, so that a device shell can
hand each result to one `pwritev` or one hole punch. Pure: buffers are views into the events, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rephub.projections.extents import Unclaimed
from rephub.schemas.journal import SyncData, Write, Zero

Change = Write | SyncData | Zero
"""Events that change bytes of the volume."""


class DeviceWrite(NamedTuple):
    """One write to a device: data, or zeroes where `buffers` is None."""

    start: int
    length: int
    buffers: list[memoryview] | None


def changed_length(event: Change) -> int:
    """How many bytes the event changes."""
    return event.length if isinstance(event, Zero) else len(event.data)


def last_first(events: Sequence[Change]) -> Iterable[Change]:
    """The order of precedence: the last event of a batch wins."""
    return reversed(events)


def coalesce(events: Sequence[Change]) -> list[DeviceWrite]:
    """The fewest writes that leave a device as if all events had been applied in order.

    Args:
        events: in journal order.

    Returns:
        Disjoint writes in ascending order; neighbours are never of one kind.
    """
    end = max((event.start + changed_length(event) for event in events), default=0)
    unclaimed = Unclaimed(0, end)
    parts: list[tuple[int, int, memoryview | None]] = []
    for event in last_first(events):
        start = event.start
        data = None if isinstance(event, Zero) else memoryview(event.data)
        for first, next_ in unclaimed.claim(start, start + changed_length(event)):
            parts.append((first, next_, None if data is None else data[first - start : next_ - start]))
    parts.sort(key=lambda part: part[0])
    return _merge(parts)


def _merge(parts: list[tuple[int, int, memoryview | None]]) -> list[DeviceWrite]:
    merged: list[DeviceWrite] = []
    for first, next_, data in parts:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.start + last.length == first
            and (last.buffers is None) == (data is None)
        ):
            if last.buffers is not None and data is not None:
                last.buffers.append(data)
            merged[-1] = last._replace(length=next_ - last.start)
        else:
            merged.append(DeviceWrite(first, next_ - first, None if data is None else [data]))
    return merged
