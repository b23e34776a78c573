"""Which journal event holds which byte of the volume, for every point in (applied, head].

The index is a row of *segments*. A sealed segment holds up to `SEGMENT_EVENTS` events in compact arrays (17 bytes an
event) and a table from *bucket* (64 KiB of the volume) to the events that touch it (16 bytes or less an event): it never
changes again, so a section file holds it as it is. The newest segment is open: plain lists.

A lookup walks from the newest segment to the oldest and stops as soon as every byte is found, so a hot block costs the
same whatever the length of the history. Extents wider than `WIDE_BUCKETS` buckets stand in a list of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rephub.core.arrays import Int64s
from rephub.projections.extents import Unclaimed

BUCKET_BITS = 16
"""64 KiB: a region of 16 of them would make cold blocks of a hot region slow, a smaller one costs memory for 1-MiB events."""
SEGMENT_EVENTS = 16_384
"""Events in a segment: sealing takes a few milliseconds, and 10 M events make some 600 segments."""
WIDE_BUCKETS = 32
"""Wider extents (2 MiB; only Zero can be) are searched one by one instead of standing in each bucket."""
LENGTH_MAX = 0xFFFF_FFFF
"""Longer zeroes take several rows: lengths are 32 bits wide."""

DATA = 0
ZERO = 1
RECOVERY = 2
SCRATCH = 3
KEPT = 4
HYDRATED = 5
"""Kinds of `Piece`: where the bytes of a piece are."""

Rows = Iterable[tuple[int, int, int, int]]
"""(journal offset, start, end, kind)."""


class Piece(NamedTuple):
    """Part of a read: `length` bytes from `start` on are to be had from one place.

    DATA: in the event at `journal_offset`, `delta` bytes after the start of its data. ZERO: zeroes. RECOVERY: in the
    recovery volume. SCRATCH: in the scratch of a view. KEPT: in what was kept for a view of the recovery volume.
    HYDRATED: in the view's hydrated file.
    """

    start: int
    length: int
    kind: int
    journal_offset: int = -1
    delta: int = 0


def visible(journal_offset: Any, applied_offset: int, last_offset: int) -> Any:
    """Whether an event counts for the point `last_offset`: it is inside (applied, last]. Works on arrays."""
    return (journal_offset > applied_offset) & (journal_offset <= last_offset)


def newest_first(rows: Sequence[int]) -> Iterable[int]:
    """The order of precedence: the newest event that covers a byte holds it. Rows come in journal order."""
    return reversed(rows)


ARRAYS = {
    "offsets": np.uint32, "starts": np.int64, "lengths": np.uint32, "kinds": np.uint8, "buckets": np.int32,
    "bucket_first": np.uint32, "order": np.uint16, "wide": np.uint16,
}  # fmt: skip
"""What a segment is made of: a row for each event (its offset counted from the segment's base), the buckets that any of
them touches in ascending order, where the rows of each begin in `order`, and the rows that are wide."""


class Segment:
    """Up to SEGMENT_EVENTS events that never change again.

    Args:
        base: journal offset that `offsets` count from.
        arrays: by the names and with the types of ARRAYS; see `check`.

    Raises:
        ValueError: it would be empty.
    """

    __slots__ = ("base", "first_offset", "last_offset", "totals", *ARRAYS)

    offsets: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.uint32]
    kinds: npt.NDArray[np.uint8]
    buckets: npt.NDArray[np.int32]
    bucket_first: npt.NDArray[np.uint32]
    order: npt.NDArray[np.uint16]
    wide: npt.NDArray[np.uint16]

    def __init__(self, base: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.base = base
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        if not len(self.offsets):
            raise ValueError("a segment without events")
        self.first_offset = base + int(self.offsets[0])
        self.last_offset = base + int(self.offsets[-1])
        self.totals = _totals(self.offsets, self.lengths)

    @classmethod
    def sealed(cls, events: _Open) -> Segment:
        """The segment of these events."""
        base = events.offsets[0]
        starts, lengths = np.array(events.starts, np.int64), np.array(events.lengths, np.int64)
        first, last = _buckets(starts, lengths)
        is_wide = last - first >= WIDE_BUCKETS
        narrow = np.nonzero(~is_wide)[0]
        counts = (last - first + 1)[narrow]
        # Each narrow row once for each bucket that it touches.
        rows = np.repeat(narrow, counts)
        touched = np.repeat(first[narrow] - np.cumsum(counts) + counts, counts) + np.arange(len(rows))
        order = np.argsort(touched, kind="stable")
        buckets, bucket_first = np.unique(touched[order], return_index=True)
        columns = {
            "offsets": np.array(events.offsets, np.int64) - base,
            "starts": starts,
            "lengths": lengths,
            "kinds": events.kinds,
            "buckets": buckets,
            "bucket_first": np.append(bucket_first, len(rows)),
            "order": rows[order],
            "wide": np.nonzero(is_wide)[0],
        }
        return cls(base, {name: np.asarray(columns[name]).astype(kind) for name, kind in ARRAYS.items()})

    def __len__(self) -> int:
        return len(self.offsets)

    def check(self) -> None:
        """Raises ValueError: the arrays do not belong together, a lookup in them would fail."""
        rows = len(self.offsets)
        if not rows == len(self.starts) == len(self.lengths) == len(self.kinds):
            raise ValueError("columns differ in length")
        if len(self.bucket_first) != len(self.buckets) + 1 or (np.diff(self.buckets) <= 0).any():
            raise ValueError("buckets are out of order")
        if self.bucket_first[0] or self.bucket_first[-1] != len(self.order):
            raise ValueError("buckets do not cover their rows")
        if (np.diff(self.bucket_first.astype(np.int64)) < 0).any():
            raise ValueError("buckets overlap")
        if any(len(array) and int(array.max()) >= rows for array in (self.order, self.wide)):
            raise ValueError("a bucket names a row that is not there")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What it is made of."""
        return {name: getattr(self, name) for name in ARRAYS}

    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def _candidates(self, start: int, end: int) -> npt.NDArray[np.uint16]:
        # Of the array's own type: numpy would copy the array to compare it with another.
        low = self.buckets.searchsorted(np.int32(start >> BUCKET_BITS))
        high = self.buckets.searchsorted(np.int32((end - 1) >> BUCKET_BITS), side="right")
        rows = self.order[self.bucket_first[low] : self.bucket_first[high]]
        if high - low > 1 or len(self.wide):
            rows = np.unique(np.concatenate((rows, self.wide)))
        return rows

    def rows(self, start: int, end: int, applied_offset: int, last_offset: int) -> Rows:
        """Visible events that touch [start, end), in order of precedence."""
        rows = self._candidates(start, end)
        if not len(rows):
            return
        starts = self.starts[rows]
        offsets = self.offsets[rows].astype(np.int64) + self.base
        touching = (starts < end) & (starts + self.lengths[rows] > start)
        found = rows[touching & visible(offsets, applied_offset, last_offset)].tolist()
        for row in newest_first(found):
            first = int(self.starts[row])
            yield (
                self.base + int(self.offsets[row]),
                first,
                first + int(self.lengths[row]),
                int(self.kinds[row]),
            )

    def extents(self, first_exclusive: int, last_inclusive: int) -> npt.NDArray[np.int64]:
        """(start, end) of the events in (first, last]."""
        chosen = visible(self.offsets.astype(np.int64) + self.base, first_exclusive, last_inclusive)
        starts = self.starts[chosen]
        return np.column_stack((starts, starts + self.lengths[chosen]))

    def count(self, first_exclusive: int, last_inclusive: int) -> tuple[int, int]:
        """Events and bytes in (first, last]."""
        if first_exclusive < self.first_offset and self.last_offset <= last_inclusive:
            return self.totals
        chosen = visible(self.offsets.astype(np.int64) + self.base, first_exclusive, last_inclusive)
        return _totals(self.offsets[chosen], self.lengths[chosen])


def _buckets(starts: Any, lengths: Any) -> tuple[Any, Any]:
    """The first and the last bucket that extents touch. Works on arrays."""
    return starts >> BUCKET_BITS, (starts + lengths - 1) >> BUCKET_BITS


def _totals(offsets: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint32]) -> tuple[int, int]:
    """Events, of which each may have several rows one after the other, and bytes."""
    events = int(np.count_nonzero(np.diff(offsets))) + 1 if len(offsets) else 0
    return events, int(lengths.sum(dtype=np.int64))


class _Open:
    """The newest segment: events are appended to it."""

    __slots__ = ("buckets", "kinds", "lengths", "offsets", "starts", "wide")

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.kinds: list[int] = []
        self.buckets: defaultdict[int, list[int]] = defaultdict(list)
        self.wide: list[int] = []

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, journal_offset: int, start: int, length: int, kind: int) -> None:
        """Append one event's extent."""
        row = len(self.offsets)
        self.offsets.append(journal_offset)
        self.starts.append(start)
        self.lengths.append(length)
        self.kinds.append(kind)
        first, last = _buckets(start, length)
        if last - first >= WIDE_BUCKETS:
            self.wide.append(row)
            return
        for bucket in range(first, last + 1):
            self.buckets[bucket].append(row)

    def add_all(self, first_offset: int, starts: Int64s, lengths: Int64s, kind: int) -> None:
        """Append the extents of consecutive events."""
        first, last = _buckets(starts, lengths)
        if (first != last).any():
            for row, extent in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
                self.add(first_offset + row, *extent, kind)
            return
        row, count = len(self.offsets), len(starts)
        self.offsets.extend(range(first_offset, first_offset + count))
        self.starts.extend(starts.tolist())
        self.lengths.extend(lengths.tolist())
        self.kinds.extend([kind] * count)
        buckets = self.buckets
        for number, bucket in enumerate(first.tolist(), row):
            buckets[bucket].append(number)

    def _candidates(self, start: int, end: int) -> list[int]:
        first, last = start >> BUCKET_BITS, (end - 1) >> BUCKET_BITS
        if first == last and not self.wide:
            return self.buckets.get(first, [])
        if last - first > len(self.buckets):
            chosen = [rows for bucket, rows in self.buckets.items() if first <= bucket <= last]
        else:
            chosen = [self.buckets[bucket] for bucket in range(first, last + 1) if bucket in self.buckets]
        return sorted({row for rows in chosen for row in rows} | set(self.wide))

    def rows(self, start: int, end: int, applied_offset: int, last_offset: int) -> Rows:
        """Visible events that touch [start, end), in order of precedence."""
        for row in newest_first(self._candidates(start, end)):
            first = self.starts[row]
            if first < end and first + self.lengths[row] > start:
                journal_offset = self.offsets[row]
                if visible(journal_offset, applied_offset, last_offset):
                    yield journal_offset, first, first + self.lengths[row], self.kinds[row]

    def extents(self, first_exclusive: int, last_inclusive: int) -> npt.NDArray[np.int64]:
        """(start, end) of the events in (first, last]."""
        chosen = [
            (start, start + length)
            for offset, start, length in zip(self.offsets, self.starts, self.lengths, strict=True)
            if visible(offset, first_exclusive, last_inclusive)
        ]
        return np.array(chosen, np.int64).reshape(-1, 2)

    def count(self, first_exclusive: int, last_inclusive: int) -> tuple[int, int]:
        """Events and bytes in (first, last]."""
        chosen = [
            (offset, length)
            for offset, length in zip(self.offsets, self.lengths, strict=True)
            if visible(offset, first_exclusive, last_inclusive)
        ]
        return len({offset for offset, _ in chosen}), sum(length for _, length in chosen)


class Index:
    """Extents of the events in (applied, head].

    Args:
        applied_offset: events up to here are in the recovery volume and are never named.
    """

    def __init__(self, applied_offset: int = -1) -> None:
        self.applied_offset = applied_offset
        self._sealed: list[Segment] = []
        self._open = _Open()

    def __len__(self) -> int:
        """Rows held; some may be applied already."""
        return sum(map(len, self._sealed)) + len(self._open)

    def nbytes(self) -> int:
        """Memory of the sealed part."""
        return sum(segment.nbytes() for segment in self._sealed)

    def add(self, journal_offset: int, start: int, length: int, kind: int) -> None:
        """Take in an event that changes bytes.

        Args:
            journal_offset: higher than that of the event before.
            start: first byte.
            length: bytes, more than 0.
            kind: DATA or ZERO.
        """
        if self.is_full:
            self.seal()
        end = start + length
        while start < end:
            step = min(end - start, LENGTH_MAX)
            self._open.add(journal_offset, start, step, kind)
            start += step

    def add_all(self, first_offset: int, starts: Int64s, lengths: Int64s, kind: int) -> None:
        """As `add`, of consecutive events from an offset on, each shorter than LENGTH_MAX."""
        first = 0
        while first < len(starts):
            if self.is_full:
                self.seal()
            next_ = first + self.room
            self._open.add_all(first_offset + first, starts[first:next_], lengths[first:next_], kind)
            first = next_

    @property
    def room(self) -> int:
        """Rows that the open segment can still take."""
        return max(0, SEGMENT_EVENTS - len(self._open))

    @property
    def is_full(self) -> bool:
        """Whether the next event begins a new segment."""
        return not self.room

    def seal(self) -> Segment | None:
        """Close the open segment; it, if it holds anything."""
        if not len(self._open):
            return None
        segment = Segment.sealed(self._open)
        self._sealed.append(segment)
        self._open = _Open()
        return segment

    def adopt(self, segment: Segment) -> None:
        """Take in a segment whose events come after all that are held."""
        self.seal()
        if segment.last_offset > self.applied_offset:
            self._sealed.append(segment)

    def drop(self, applied_offset: int) -> None:
        """Forget events up to `applied_offset` (inclusive); memory is freed by whole segments."""
        self.applied_offset = max(self.applied_offset, applied_offset)
        self._sealed = [segment for segment in self._sealed if segment.last_offset > self.applied_offset]
        if len(self._open) and self._open.offsets[-1] <= self.applied_offset:
            self._open = _Open()

    def _newest_first(self) -> list[_Open | Segment]:
        segments: list[_Open | Segment] = [self._open]
        segments.extend(reversed(self._sealed))
        return segments

    def lookup(self, start: int, length: int, last_offset: int) -> list[Piece]:
        """Where the bytes [start, start + length) of the point `last_offset` are.

        Args:
            start: first byte.
            length: bytes, more than 0.
            last_offset: the point, at or above applied.

        Returns:
            Pieces in ascending order that cover the range: DATA, ZERO or RECOVERY.
        """
        unclaimed = Unclaimed(start, start + length)
        pieces: list[Piece] = []
        for segment in self._newest_first():
            for journal_offset, first, next_, kind in segment.rows(
                start, start + length, self.applied_offset, last_offset
            ):
                for low, high in unclaimed.claim(first, next_):
                    delta = low - first if kind == DATA else 0
                    pieces.append(Piece(low, high - low, kind, journal_offset, delta))
                if not unclaimed:
                    break
            if not unclaimed:
                break
        pieces.extend(Piece(low, high - low, RECOVERY) for low, high in unclaimed.holes())
        pieces.sort()
        return pieces

    def touched(self, first_exclusive: int, last_inclusive: int, granule_bytes: int) -> list[tuple[int, int]]:
        """Which parts of the volume the events in (first, last] change, both above applied.

        Returns:
            (start, end) of runs of whole granules, ascending, with something between them.
        """
        parts = [segment.extents(first_exclusive, last_inclusive) for segment in self._newest_first()]
        extents = np.concatenate([np.empty((0, 2), np.int64), *parts])
        if not len(extents):
            return []
        extents = extents[np.argsort(extents[:, 0], kind="stable")]
        starts = extents[:, 0] // granule_bytes * granule_bytes
        reach = np.maximum.accumulate(-(-extents[:, 1] // granule_bytes) * granule_bytes)
        begins = np.concatenate(([True], starts[1:] > reach[:-1]))
        ends = np.concatenate((begins[1:], [True]))
        return list(zip(starts[begins].tolist(), reach[ends].tolist(), strict=True))

    def count(self, first_exclusive: int, last_inclusive: int) -> tuple[int, int]:
        """How many events, and how many bytes they change, lie in (first, last]; both above applied."""
        totals = [segment.count(first_exclusive, last_inclusive) for segment in self._newest_first()]
        return sum(events for events, _ in totals), sum(length for _, length in totals)
