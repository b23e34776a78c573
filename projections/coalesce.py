"""From a batch of events to the fewest device writes with the same effect.

Only the last write of a byte matters within one batch. Neighbours of one kind are merged, so that a device shell can
hand each result to one `pwritev` or one hole punch. Pure: buffers are views into the events, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rephub.core.arrays import Int64s
from rephub.core.codec.runs import Run
from rephub.projections.extents import Unclaimed
from rephub.schemas.journal import SyncData, Write, Zero

Change = Write | SyncData | Zero
"""Events that change bytes of the volume."""

T = TypeVar("T")


Data = memoryview | None
"""None: zeroes."""


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
    table, data = _columns(events)
    rows = _disjoint(table)
    if rows is None:
        return _merge(*_claimed(table, data))
    return _merge(table[rows], [data[row] for row in rows.tolist()])


def _columns(events: Sequence[Change | Run]) -> tuple[Int64s, list[Data]]:
    """Start and end of each event, as rows, and its data."""
    tables: list[Int64s] = [np.empty((0, 2), np.int64)]
    data: list[Data] = []
    single: list[tuple[int, int]] = []
    for event in events:
        if isinstance(event, Run):
            tables += [np.array(single, np.int64).reshape(-1, 2), _rows(event.starts, event.lengths)]
            data += event.data()
            single = []
        else:
            single.append((event.start, event.start + changed_length(event)))
            data.append(None if isinstance(event, Zero) else memoryview(event.data))
    tables.append(np.array(single, np.int64).reshape(-1, 2))
    return np.concatenate(tables), data


def _rows(starts: Int64s, lengths: Int64s) -> Int64s:
    return np.column_stack((starts, starts + lengths))


def _disjoint(table: Int64s) -> Int64s | None:
    """The rows to be written, ascending, where extents are the same or do not overlap, as they mostly do; None: some do."""
    count = len(table)
    rank = np.empty(count, np.int64)
    rank[np.fromiter(last_first(range(count)), np.int64, count)] = np.arange(count)
    order = np.lexsort((rank, table[:, 0]))
    ordered = table[order]
    chosen = np.ones(count, bool)
    chosen[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    ordered = ordered[chosen]
    if (ordered[1:, 0] < ordered[:-1, 1]).any():
        return None
    rows: Int64s = order[chosen]
    return rows


def _claimed(table: Int64s, data: list[Data]) -> tuple[Int64s, list[Data]]:
    """What is to be written, whatever overlaps what: rows, ascending, and their data."""
    unclaimed = Unclaimed(0, int(table[:, 1].max()))
    parts: list[tuple[int, int, Data]] = []
    for (start, end), buffer in last_first(list(zip(table.tolist(), data, strict=True))):
        for first, next_ in unclaimed.claim(start, end):
            parts.append((first, next_, None if buffer is None else buffer[first - start : next_ - start]))
    parts.sort(key=lambda part: part[0])
    return np.array([part[:2] for part in parts], np.int64), [part[2] for part in parts]


def _merge(table: Int64s, data: list[Data]) -> list[DeviceWrite]:
    """Neighbours of one kind become one write."""
    if not data:
        return []
    zero = np.array([buffer is None for buffer in data])
    begins = np.nonzero((table[1:, 0] != table[:-1, 1]) | (zero[1:] != zero[:-1]))[0] + 1
    firsts = np.concatenate(([0], begins))
    lasts = np.concatenate((begins, [len(data)])) - 1
    starts, ends = table[firsts, 0], table[lasts, 1]
    buffers = [
        None if data[first] is None else data[first : last + 1]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]
    # All of a group are data where its first is.
    return list(map(DeviceWrite, starts.tolist(), (ends - starts).tolist(), buffers))  # type: ignore[arg-type]
