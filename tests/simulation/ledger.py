"""The judge's own reading of the journal: which events count, what the volume is at each offset, which points are good.

Written a second time on purpose, from the promises and not from `projections/`: short, slow and plain. It sees each record
as it landed, before anything damaged it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rephub.core.codec import decode_journal as decode
from rephub.schemas import journal as j

FLAG_SYNC = 2


@dataclass(slots=True)
class Point:
    """The volume at one offset."""

    image: bytes
    good: bool
    """Outside of gaps."""
    counts: bool
    """The event at the offset is of the current attachment."""
    record: j.Record


class Ledger:
    """What landed. Args: size: of the volume."""

    def __init__(self, size: int) -> None:
        self.image = bytearray(size)
        self.points: list[Point] = []
        self.epoch = 0
        self.attachment = b""
        self.seq = 0
        self.good = False
        self.poisoned = False
        self.answering = False
        self.based = False
        self.establishing = False
        self.rotten: set[int] = set()
        """Offsets that were damaged in the journal afterwards."""
        self.fenced = 0
        self.poisons = 0
        self.offset_of: dict[tuple[int, Any], list[int]] = {}
        """(epoch, what) of each guest's event that counts, to its offsets."""

    @property
    def next_offset(self) -> int:
        return len(self.points)

    def take(self, values: list[bytes]) -> None:
        """Read what landed."""
        for value in values:
            record = decode(value)
            counts = self._feed(record)
            self.points.append(Point(bytes(self.image), self.good, counts, record))

    def _feed(self, record: j.Record) -> bool:
        if isinstance(record, j.EpochStarted):
            if record.epoch != self.epoch + 1 or record.prev_epoch != self.epoch:
                self.fenced += 1
                return False
            self.epoch, self.attachment, self.seq = record.epoch, record.attachment_id, 1
            self.good = self.establishing = False
            self.answering = True
            return True
        if (record.epoch, record.attachment_id) != (self.epoch, self.attachment):
            self.fenced += 1
            return False
        if record.seq != self.seq:
            self._poison()
            return False
        self.seq += 1
        if isinstance(record, j.SyncStarted):
            self.establishing = record.mode == "full"
            if self.establishing and self.answering:
                self.poisoned = False
            elif not self.establishing and not self.based:
                self._poison()
        self._note(record)
        if self.poisoned:
            return False
        self._apply(record)
        return True

    def _poison(self) -> None:
        self.poisons += not self.poisoned
        self.poisoned, self.good, self.based, self.answering = True, False, False, False

    def _apply(self, record: j.Record) -> None:
        if isinstance(record, j.SyncCompleted):
            self.good = True
            self.based = self.based or self.establishing
        elif isinstance(record, j.Write | j.SyncData):
            self.image[record.start : record.start + len(record.data)] = record.data
        elif isinstance(record, j.Zero):
            self.image[record.start : record.start + record.length] = bytes(record.length)

    def _note(self, record: j.Record) -> None:
        """Remember the guest's events by what they say."""
        if isinstance(record, j.Write):
            what: Any = (record.start, bytes(record.data))
        elif isinstance(record, j.Zero) and not record.flags & FLAG_SYNC:
            what = (record.start, record.length)
        else:
            return
        self.offset_of.setdefault((self.epoch, what), []).append(len(self.points))
