"""From a batch of events to the fewest device writes with the same effect.

Only the last write of a byte matters within one batch. Neighbours of one kind are merged, so that a device shell can
hand each result to one `pwritev` or one hole punch. Pure: buffers are views into the events, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rephub.core.codec.runs import Run
from rephub.projections.extents import Unclaimed
from rephub.schemas.journal import SyncData, Write, Zero

Change = Write | SyncData | Zero
"""Events that change bytes of the volume."""

T = TypeVar("T")


_Part = tuple[int, int, memoryview | None]
"""Start, end and data; None: zeroes."""


class DeviceWrite(NamedTuple):
    """One write to a device: data, or zeroes where `buffers` is None."""

    start: int
    length: int
    buffers: list[memoryview] | None


def changed_length(event: Change) -> int:
    """How many bytes the event changes."""
    return event.length if isinstance(event, Zero) else len(event.data)


def last_first(events: Sequence[T]) -> Iterable[T]:
    """The order of precedence: the last event of a batch wins."""
    return reversed(events)


def coalesce(events: Sequence[Change | Run]) -> list[DeviceWrite]:
    """The fewest writes that leave a device as if all events had been applied in order.

    Args:
        events: in journal order; a run stands for its events.

    Returns:
        Disjoint writes in ascending order; neighbours are never of one kind.
    """
    extents = [extent for event in events for extent in _extents(event)]
    return _merge(_disjoint(extents) or _claimed(extents))


def _extents(event: Change | Run) -> Iterable[_Part]:
    if isinstance(event, Run):
        starts = event.starts
        return zip(starts.tolist(), (starts + event.lengths).tolist(), event.data(), strict=True)
    data = None if isinstance(event, Zero) else memoryview(event.data)
    return [(event.start, event.start + changed_length(event), data)]


def _disjoint(extents: list[_Part]) -> list[_Part]:
    """What is to be written where extents are the same or do not overlap, as they mostly do; nothing where some do."""
    count = len(extents)
    table = np.array([extent[:2] for extent in extents], np.int64).reshape(-1, 2)
    rank = np.empty(count, np.int64)
    rank[np.fromiter(last_first(range(count)), np.int64, count)] = np.arange(count)
    order = np.lexsort((rank, table[:, 0]))
    table = table[order]
    chosen = np.ones(count, bool)
    chosen[1:] = (table[1:] != table[:-1]).any(axis=1)
    table = table[chosen]
    if (table[1:, 0] < table[:-1, 1]).any():
        return []
    return [extents[row] for row in order[chosen].tolist()]


def _claimed(extents: list[_Part]) -> list[_Part]:
    """What is to be written, whatever overlaps what."""
    unclaimed = Unclaimed(0, max((end for _, end, _ in extents), default=0))
    parts: list[_Part] = []
    for start, end, data in last_first(extents):
        for first, next_ in unclaimed.claim(start, end):
            parts.append((first, next_, None if data is None else data[first - start : next_ - start]))
    parts.sort(key=lambda part: part[0])
    return parts


def _merge(parts: list[_Part]) -> list[DeviceWrite]:
    merged: list[DeviceWrite] = []
    start, end, buffers = 0, -1, None
    for first, next_, data in parts:
        if first == end and (buffers is None) == (data is None):
            if buffers is not None and data is not None:
                buffers.append(data)
        else:
            if end >= 0:
                merged.append(DeviceWrite(start, end - start, buffers))
            start, buffers = first, None if data is None else [data]
        end = next_
    if end >= 0:
        merged.append(DeviceWrite(start, end - start, buffers))
    return merged
