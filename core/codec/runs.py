"""Consecutive writes of one attachment, decoded together: as columns, which is a tenth of the work of one by one.

Nearly all of a journal is such *runs*. Everything else, and whatever is not as it should be, is decoded record by record
(`journal.py`), which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from rephub.core.arrays import Int64s
from rephub.core.codec.journal import decode_journal
from rephub.core.codec.registry import PREFIX_BYTES, REGISTRY
from rephub.core.codec.varint import decode_longs
from rephub.core.errors import IntegrityError
from rephub.core.journal.port import StoredRecord, StoredRecords
from rephub.schemas import journal

RUN_MIN: Final = 8
"""Shorter runs are decoded one by one: numpy costs some 100 µs a run, however short."""

_BODY = PREFIX_BYTES + 4
_ATTACHMENT_BYTES = 16
_SHORTEST = _BODY + _ATTACHMENT_BYTES + 6
_HOT = tuple(REGISTRY.by_record(record) for record in (journal.Write, journal.SyncData))

Event = tuple[int, journal.Record | IntegrityError]
"""(journal offset, decoded record or why it could not be)."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Writes or SyncData of one attachment with contiguous offsets and sequence numbers; crcs are checked."""

    records: StoredRecords
    """As stored."""
    epoch: int
    attachment_id: bytes
    seq: int
    """Of the first."""
    captured_at: Int64s
    starts: Int64s
    """First byte of each in the volume."""
    data_starts: Int64s
    """Where the data of each begin in the records' buffer; they end where the record does."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def first_offset(self) -> int:
        """Of the first."""
        return self.records.first_offset

    @property
    def last_offset(self) -> int:
        """Of the last."""
        return self.records.last_offset

    @property
    def lengths(self) -> Int64s:
        """Bytes of data of each."""
        return self.records.ends - self.data_starts

    @property
    def value_bytes(self) -> Int64s:
        """Length of each in the journal."""
        return self.records.ends - self.records.starts

    @property
    def last_crc(self) -> bytes:
        """Of the last, as it stands in the journal."""
        start = int(self.records.starts[-1]) + PREFIX_BYTES
        return bytes(self.records.buffer[start : start + 4])

    def part(self, first: int, next_: int) -> Run:
        """The events numbered [first, next), counted from 0."""
        return Run(
            self.records[first:next_], self.epoch, self.attachment_id, self.seq + first,
            self.captured_at[first:next_], self.starts[first:next_], self.data_starts[first:next_],
        )  # fmt: skip

    def data(self) -> list[memoryview]:
        """Of each."""
        buffer = self.records.buffer
        return [
            buffer[start:end]
            for start, end in zip(self.data_starts.tolist(), self.records.ends.tolist(), strict=True)
        ]

    def events(self) -> Iterator[Event]:
        """One by one."""
        return map(decode, self.records)


Item = Event | Run
"""What a stretch of a journal is made of."""


def decode(record: StoredRecord) -> Event:
    """A stored record, decoded, or the reason why it cannot be."""
    try:
        return record.journal_offset, decode_journal(record.value)
    except IntegrityError as exc:
        return record.journal_offset, exc


def decode_all(records: StoredRecords) -> list[Item]:
    """All records, in order; runs of RUN_MIN and more as such."""
    if len(records) < RUN_MIN:
        return [decode(record) for record in records]
    items: list[Item] = []
    done = 0
    for first, run in _runs(records):
        items += map(decode, records[done:first])
        items.append(run)
        done = first + len(run)
    items += map(decode, records[done:])
    return items


def first_offset(item: Item) -> int:
    """Of the item."""
    return item.first_offset if isinstance(item, Run) else item[0]


def last_offset(item: Item) -> int:
    """Of the item."""
    return item.last_offset if isinstance(item, Run) else item[0]


def between(items: Sequence[Item], first: int, last: int) -> list[Item]:
    """Of the items, what lies at offsets [first, last]."""
    found: list[Item] = []
    for item in items:
        if first_offset(item) > last:
            break
        if isinstance(item, Run):
            low, next_ = max(0, first - item.first_offset), min(len(item), last - item.first_offset + 1)
            if low < next_:
                found.append(item if next_ - low == len(item) else item.part(low, next_))
        elif item[0] >= first:
            found.append(item)
    return found


def data_bytes(item: Item) -> int:
    """Of an item's payload."""
    return int(item.lengths.sum()) if isinstance(item, Run) else len(getattr(item[1], "data", b""))


def _runs(records: StoredRecords) -> Iterator[tuple[int, Run]]:
    """Runs of RUN_MIN and more, each with the number of its first record."""
    buffer = np.frombuffer(records.buffer, np.uint8)
    hot = _good(buffer, records)
    rows = np.nonzero(hot)[0]
    if len(rows) < RUN_MIN:
        return
    starts = records.starts[rows]
    try:
        epoch, at = decode_longs(buffer, starts + _BODY)
        attachment = _bytes_at(buffer, at, _ATTACHMENT_BYTES)
        seq, at = decode_longs(buffer, at + _ATTACHMENT_BYTES)
        captured_at, at = decode_longs(buffer, at)
        start, at = decode_longs(buffer, at)
        _flags, at = decode_longs(buffer, at)
        length, at = decode_longs(buffer, at)
    except (IndexError, IntegrityError):
        return  # one by one it is found out which is broken
    # A negative length could lead back to the end from beyond it.
    whole = (length >= 0) & (at + length == records.ends[rows])
    follows = (
        (np.diff(rows) == 1) & (np.diff(seq) == 1) & (np.diff(epoch) == 0) & whole[1:] & whole[:-1]
        & (attachment[1:] == attachment[:-1]).all(axis=1)
    )  # fmt: skip
    breaks = [0, *(np.nonzero(~follows)[0] + 1).tolist(), len(rows)]
    for first, next_ in pairwise(breaks):
        if next_ - first >= RUN_MIN and whole[first]:
            number = int(rows[first])
            yield number, Run(
                records[number : number + next_ - first], int(epoch[first]), attachment[first].tobytes(),
                int(seq[first]), captured_at[first:next_], start[first:next_], at[first:next_],
            )  # fmt: skip


def _good(buffer: npt.NDArray[np.uint8], records: StoredRecords) -> npt.NDArray[np.bool_]:
    """Which records are writes of today's schemas with a right crc."""
    good = records.ends - records.starts >= _SHORTEST
    rows = np.nonzero(good)[0]
    prefixes = _bytes_at(buffer, records.starts[rows], _BODY)
    view = records.buffer
    for entry in _HOT:
        match = (prefixes[:, :PREFIX_BYTES] == np.frombuffer(entry.prefix, np.uint8)).all(axis=1)
        chosen = rows[match]
        kept = prefixes[match, PREFIX_BYTES:].copy().view(">u4")[:, 0]
        crc = entry.prefix_crc
        bodies = (records.starts[chosen] + _BODY).tolist()
        made = [
            crc32c(view[start:end], crc)
            for start, end in zip(bodies, records.ends[chosen].tolist(), strict=True)
        ]
        good[rows[match]] = kept == np.array(made, np.uint32)
        good[rows[~match]] &= entry is not _HOT[-1]
        rows, prefixes = rows[~match], prefixes[~match]
    return good


def _bytes_at(buffer: npt.NDArray[np.uint8], at: Int64s, count: int) -> npt.NDArray[np.uint8]:
    """So many bytes from each index on, as rows."""
    found: npt.NDArray[np.uint8] = buffer[at[:, None] + np.arange(count)]
    return found
