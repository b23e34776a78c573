"""The timeline of a volume: which points are good, and what marks them.

Fed beside the fold by the same records. Holds gaps, epochs, checkpoints, sizes and the two curves for (floor, head];
what lies below the floor is dropped, so memory is bounded by the window: 24 h of checkpoints every 5 s are 17,280.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

from rephub.core.arrays import Int64s
from rephub.core.codec.runs import Run
from rephub.core.errors import IntegrityError
from rephub.projections.envelope import ByteCurve, Envelope
from rephub.projections.journal_fold import FoldState, Verdict
from rephub.schemas.journal import Checkpoint, EpochStarted, Record

CHECKPOINTS_MAX = 100_000
"""Beyond it older periodic ones thin out, then older named ones go; some 20 MB."""


@dataclass(slots=True)
class Gap:
    """Points in [first, next) are not crash-consistent; next None: it is open."""

    first_offset: int
    next_offset: int | None
    from_at: int
    to_at: int
    reason: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A checkpoint outside a gap."""

    offset: int
    checkpoint: str
    captured_at: int
    kind: str
    periodic: bool
    group: str = ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Where an epoch began."""

    epoch: int
    first_offset: int
    at: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a stretch of records adds to a timeline, but for the curves."""

    bytes: int
    """Of their values in the journal."""
    gaps: list[Gap]
    """Those that end in it, or go on after it."""
    marks: list[Mark]
    epochs: list[Epoch]
    sizes: list[tuple[int, int]]


CURVES = ("growth_offsets", "growth_at", "sample_offsets", "sample_bytes")
"""The two curves over a stretch, as int64 arrays; its bytes are counted from its beginning."""


def thinned(marks: list[Mark]) -> list[Mark]:
    """About half of the markers, or fewer: all names stay, periodic ones lie the farther apart the older they are.

    The newest eighth stays whole; twice as old, half as many. Which ones go follows from their time alone, so that the
    volumes of a group keep the same ones.
    """
    newest, eighth = marks[-1].captured_at, marks[-(CHECKPOINTS_MAX // 8)].captured_at
    whole = max(1, newest - eighth)
    kept = [
        mark
        for mark in marks
        if not mark.periodic or _rank(mark) >= ((newest - mark.captured_at) // whole).bit_length()
    ]
    excess = len(kept) - CHECKPOINTS_MAX * 3 // 4
    for periodic in (True, False):
        goes = [mark.offset for mark in kept if mark.periodic is periodic][: max(0, excess)]
        excess -= len(goes)
        gone = set(goes)
        kept = [mark for mark in kept if mark.offset not in gone]
    return kept


def _rank(mark: Mark) -> int:
    """Half of all have at least 1, a quarter at least 2, and so on."""
    bits = crc32(str(mark.captured_at).encode())
    return (bits & -bits).bit_length() - 1 if bits else 32


class Timeline:
    """What is known of (floor, head].

    Args:
        state: of the fold at the floor; it is read, not kept.
    """

    def __init__(self, state: FoldState) -> None:
        self.floor_offset = state.last_offset
        self.head_offset = state.last_offset
        self.envelope = Envelope()
        self.bytes = ByteCurve()
        self._gaps: list[Gap] = []
        self._marks: list[Mark] = []
        self._named: dict[str, int] = {}
        self._epochs: list[Epoch] = []
        self._spoiled: list[tuple[int, int | None]] = []
        self._sizes: list[tuple[int, int]] = [(state.last_offset, state.size_bytes)]
        self._cut = (state.last_offset, 0)
        """Where the last stretch ended, and the bytes counted up to there."""
        if state.captured_at_max:
            self.envelope.note(state.last_offset, state.captured_at_max)
        if state.gap_first_offset is not None:
            self._gaps.append(Gap(state.gap_first_offset, None, state.gap_from_at, 0, state.gap_reason))
        if state.epoch:
            self._epochs.append(Epoch(state.epoch, state.last_offset, state.captured_at_max, ""))
        if state.checkpoint:
            self._add_mark(
                Mark(state.last_offset, state.checkpoint, state.captured_at_max, "crash", periodic=False)
            )

    def feed(
        self, state: FoldState, record: Record | IntegrityError, verdict: Verdict, record_bytes: int
    ) -> None:
        """Take in a record that the fold has just judged.

        Args:
            state: of the fold after the record.
            record: the record.
            verdict: of the fold.
            record_bytes: length of its value in the journal.
        """
        offset = self.head_offset = state.last_offset
        self.envelope.note(offset, state.captured_at_max)
        self.bytes.note(offset, record_bytes)
        if verdict is Verdict.APPLY or verdict is Verdict.FENCED:
            return
        self._follow_gap(state)
        if isinstance(record, EpochStarted) and record.epoch == state.epoch:
            self._epochs.append(Epoch(record.epoch, offset, record.captured_at, record.reason))
        if state.size_bytes != self._sizes[-1][1]:
            self._sizes.append((offset, state.size_bytes))
        if state.checkpoint and isinstance(record, Checkpoint):
            self._add_mark(
                Mark(
                    offset, record.checkpoint, record.captured_at, record.kind, record.periodic, record.group
                )
            )

    def feed_run(self, run: Run) -> None:
        """Take in a run of which every event is to be applied."""
        self.head_offset = run.last_offset
        self.envelope.note_all(run.first_offset, run.captured_at)
        self.bytes.note_all(run.first_offset, run.value_bytes)

    def cut(self) -> tuple[Stretch, dict[str, Int64s]]:
        """What came since the cut before, or since the beginning: the stretch and its curves, see CURVES."""
        first, bytes_there = self._cut
        curves = (*self.envelope.after(first), *self.bytes.after(first, bytes_there))
        stretch = Stretch(
            self.bytes.head - bytes_there,
            [replace(gap) for gap in self._gaps if gap.next_offset is None or gap.next_offset > first],
            self._marks[bisect_right(self._marks, first, key=lambda mark: mark.offset) :],
            self._epochs[bisect_right(self._epochs, first, key=lambda epoch: epoch.first_offset) :],
            self._sizes[bisect_right(self._sizes, first, key=lambda size: size[0]) :],
        )
        self._cut = (self.head_offset, self.bytes.head)
        return stretch, dict(zip(CURVES, curves, strict=True))

    def adopt(self, head_offset: int, stretch: Stretch, curves: Mapping[str, Int64s]) -> None:
        """Take in what `cut` gave for the records that come next, up to `head_offset`."""
        self.head_offset = head_offset
        self.envelope.extend(curves["growth_offsets"], curves["growth_at"])
        self.bytes.extend(curves["sample_offsets"], curves["sample_bytes"], stretch.bytes)
        ended = [gap for gap in self._gaps if gap.next_offset is not None]
        self._gaps = ended + [replace(gap) for gap in stretch.gaps]
        for mark in stretch.marks:
            self._add_mark(mark)
        self._epochs += stretch.epochs
        self._sizes += stretch.sizes
        self._cut = (head_offset, self.bytes.head)

    def _follow_gap(self, state: FoldState) -> None:
        current = self._gaps[-1] if self._gaps and self._gaps[-1].next_offset is None else None
        if state.gap_first_offset is None:
            if current is not None:
                current.next_offset, current.to_at = state.last_offset, state.captured_at_max
                self._spoiled = [
                    (first, state.last_offset if next_ is None else next_) for first, next_ in self._spoiled
                ]
        elif current is None:
            self._gaps.append(Gap(state.gap_first_offset, None, state.gap_from_at, 0, state.gap_reason))
        elif not current.from_at:
            current.from_at = state.gap_from_at

    def _add_mark(self, mark: Mark) -> None:
        self._marks.append(mark)
        self._named[mark.checkpoint] = mark.offset
        if len(self._marks) > CHECKPOINTS_MAX:
            self._set_marks(thinned(self._marks))

    def _set_marks(self, marks: list[Mark]) -> None:
        self._marks = marks
        self._named = {mark.checkpoint: mark.offset for mark in marks}

    def drop(self, floor_offset: int) -> None:
        """The floor rose: forget what lies below."""
        if floor_offset <= self.floor_offset:
            return
        self.floor_offset = floor_offset
        self.envelope.drop(floor_offset)
        self.bytes.drop(floor_offset)
        self._gaps = [gap for gap in self._gaps if gap.next_offset is None or gap.next_offset > floor_offset]
        self._spoiled = [item for item in self._spoiled if item[1] is None or item[1] > floor_offset]
        if self._marks and self._marks[0].offset < floor_offset:
            self._set_marks(
                self._marks[bisect_left(self._marks, floor_offset, key=lambda mark: mark.offset) :]
            )
        keep = max(0, bisect_right(self._epochs, floor_offset, key=lambda epoch: epoch.first_offset) - 1)
        del self._epochs[:keep]
        keep = max(0, bisect_right(self._sizes, floor_offset, key=lambda size: size[0]) - 1)
        del self._sizes[:keep]

    def spoil(self, first_offset: int, next_offset: int | None, reason: str) -> None:
        """Points that were good are not: an event that they depend on cannot be read any more.

        Args:
            first_offset: of the event.
            next_offset: the first point that does not depend on it; None: there is none yet.
            reason: of the gap.
        """
        self._spoiled.append((first_offset, next_offset))
        before, merged, later = [], [], []
        for gap in self._gaps:
            if gap.next_offset is not None and gap.next_offset < first_offset:
                before.append(gap)
            elif next_offset is not None and gap.first_offset >= next_offset:
                later.append(gap)
            else:
                merged.append(gap)
        start = min([first_offset, *(gap.first_offset for gap in merged)])
        at = self.captured_at(start) or 0
        end_at = 0 if next_offset is None else self.captured_at(next_offset) or 0
        self._gaps = [*before, Gap(start, next_offset, at, end_at, reason), *later]
        self._set_marks(
            [
                mark
                for mark in self._marks
                if mark.offset < start or (next_offset is not None and mark.offset >= next_offset)
            ]
        )

    def is_spoiled(self, journal_offset: int) -> bool:
        """Whether `spoil` took the point."""
        return any(
            first <= journal_offset and (next_ is None or journal_offset < next_)
            for first, next_ in self._spoiled
        )

    def gap_at(self, journal_offset: int) -> Gap | None:
        """The gap that the point lies in."""
        index = bisect_right(self._gaps, journal_offset, key=lambda gap: gap.first_offset) - 1
        if index < 0:
            return None
        gap = self._gaps[index]
        return gap if gap.next_offset is None or journal_offset < gap.next_offset else None

    def earliest_offset(self) -> int | None:
        """The first point that can be opened; None: there is none."""
        gap = self.gap_at(self.floor_offset)
        if gap is not None:
            return gap.next_offset
        return self.floor_offset

    def latest_offset(self) -> int | None:
        """The newest consistent point; None: there is none."""
        gap = self.gap_at(self.head_offset)
        latest = self.head_offset if gap is None else gap.first_offset - 1
        earliest = self.earliest_offset()
        return latest if earliest is not None and latest >= earliest else None

    def last_at_most(self, captured_at: int) -> int:
        """The last offset at which the running maximum of captured_at is at most this."""
        growth = self.envelope.next_growth(captured_at)
        return self.head_offset if growth is None else growth - 1

    def captured_at(self, journal_offset: int) -> int | None:
        """The running maximum at a point."""
        return self.envelope.at(journal_offset)

    def size_at(self, journal_offset: int) -> int:
        """Size of the volume at a point, bytes."""
        index = bisect_right(self._sizes, journal_offset, key=lambda size: size[0]) - 1
        return self._sizes[max(index, 0)][1]

    def smallest_size(self, first_offset: int, last_offset: int) -> int:
        """The least that the volume was at any point of [first, last], bytes."""
        between = [size for offset, size in self._sizes if first_offset < offset <= last_offset]
        return min([self.size_at(first_offset), *between])

    def checkpoint_offset(self, name: str) -> int | None:
        """Where the checkpoint is; None: not in the window."""
        return self._named.get(name)

    def mark(self, name: str) -> Mark | None:
        """The newest marker of the name; None: not in the window."""
        offset = self._named.get(name)
        return None if offset is None else self.mark_at(offset)

    def checkpoint_at(self, journal_offset: int) -> str | None:
        """The name of the checkpoint that is this very point."""
        mark = self.mark_at(journal_offset)
        return mark.checkpoint if mark else None

    def mark_at(self, journal_offset: int) -> Mark | None:
        """The marker that is this very point."""
        index = bisect_left(self._marks, journal_offset, key=lambda mark: mark.offset)
        if index < len(self._marks) and self._marks[index].offset == journal_offset:
            return self._marks[index]
        return None

    def marks_newest_first(self) -> Iterator[Mark]:
        """All checkpoints, the newest first."""
        return reversed(self._marks)

    def last_checkpoint(self, journal_offset: int) -> str | None:
        """The newest checkpoint at or before a point."""
        index = bisect_right(self._marks, journal_offset, key=lambda mark: mark.offset) - 1
        return self._marks[index].checkpoint if index >= 0 else None

    def ranges(self) -> list[dict[str, Any]]:
        """Restorable ranges and gaps from the floor to the head, ascending; offsets inclusive, times in microseconds."""
        found: list[dict[str, Any]] = []
        position = max(self.floor_offset, 0)
        for gap in self._gaps:
            if gap.first_offset > position:
                found.append(self._range(position, gap.first_offset - 1, "restorable", ""))
                position = gap.first_offset
            last = self.head_offset if gap.next_offset is None else gap.next_offset - 1
            if last >= position:
                found.append(self._range(position, last, "gap", gap.reason))
                position = last + 1
        if position <= self.head_offset:
            found.append(self._range(position, self.head_offset, "restorable", ""))
        return found

    def _range(self, first: int, last: int, kind: str, reason: str) -> dict[str, Any]:
        return {
            "first_offset": first, "last_offset": last, "from_at": self.captured_at(first), "to_at": self.captured_at(last),
            "kind": kind, "reason": reason,
        }  # fmt: skip

    def checkpoints(self, listed: Callable[[Mark], bool] = lambda _mark: True) -> list[dict[str, Any]]:
        """Checkpoints in the window, ascending; those that `listed` says are none left out."""
        return [
            {"checkpoint": mark.checkpoint, "offset": mark.offset, "captured_at": mark.captured_at, "kind": mark.kind,
             "periodic": mark.periodic}
            for mark in self._marks
            if listed(mark)
        ]  # fmt: skip

    def epochs(self) -> list[dict[str, Any]]:
        """Epochs that touch the window, ascending."""
        return [
            {"epoch": epoch.epoch, "first_offset": epoch.first_offset, "at": epoch.at, "reason": epoch.reason}
            for epoch in self._epochs
        ]
