"""Two curves over the journal offset: the running maximum of `captured_at`, and the bytes journaled so far.

The first answers `--time` exactly and costs 8 bytes an event at most; the second says how far back a byte limit reaches
and is sampled. Both only grow at the end and are cut at the beginning.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

import numpy as np

from rephub.core.arrays import Int64s

CHUNK_ENTRIES = 16_384
DELTA_MAX = 0xFFFF_FFFF
"""Deltas are 32 bits: 71 minutes in a chunk, then a new one begins."""
SAMPLE_BYTES = 256 << 10
"""Distance of samples of the byte curve: 20 GiB of history take 80,000."""


class _Chunk:
    __slots__ = ("at", "base_at", "base_offset", "offsets")

    def __init__(self, offset: int, at: int) -> None:
        self.base_offset, self.base_at = offset, at
        self.offsets = array("I", [0])
        self.at = array("I", [0])


class Envelope:
    """Running maximum of captured_at: only the offsets at which it grows are kept."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._last_at = -1

    def note(self, journal_offset: int, captured_at_max: int) -> None:
        """The running maximum at an offset, in ascending order of offsets."""
        if captured_at_max <= self._last_at:
            return
        self._last_at = captured_at_max
        if self._chunks:
            chunk = self._chunks[-1]
            offset_delta, at_delta = journal_offset - chunk.base_offset, captured_at_max - chunk.base_at
            if len(chunk.at) < CHUNK_ENTRIES and max(offset_delta, at_delta) <= DELTA_MAX:
                chunk.offsets.append(offset_delta)
                chunk.at.append(at_delta)
                return
        self._chunks.append(_Chunk(journal_offset, captured_at_max))

    def note_all(self, first_offset: int, captured_at: Int64s) -> None:
        """The times of consecutive events from an offset on."""
        maxima = np.maximum.accumulate(np.concatenate(([self._last_at], captured_at)))
        grows = np.nonzero(maxima[1:] > maxima[:-1])[0]
        offsets, at = grows + first_offset, maxima[1:][grows]
        if not len(at):
            return
        if self._chunks:
            chunk = self._chunks[-1]
            room = max(0, CHUNK_ENTRIES - len(chunk.at))
            room = min(room, int(np.searchsorted(at - chunk.base_at, DELTA_MAX, side="right")))
            room = min(room, int(np.searchsorted(offsets - chunk.base_offset, DELTA_MAX, side="right")))
            chunk.offsets.frombytes((offsets[:room] - chunk.base_offset).astype(np.uint32).tobytes())
            chunk.at.frombytes((at[:room] - chunk.base_at).astype(np.uint32).tobytes())
            self._last_at = int(at[room - 1]) if room else self._last_at
            offsets, at = offsets[room:], at[room:]
        self.extend(offsets, at)

    def after(self, journal_offset: int) -> tuple[Int64s, Int64s]:
        """Where it grows after an offset, and to what."""
        first = max(0, bisect_right(self._chunks, journal_offset, key=lambda chunk: chunk.base_offset) - 1)
        chunks = self._chunks[first:]
        offsets = [np.frombuffer(chunk.offsets, np.uint32) + np.int64(chunk.base_offset) for chunk in chunks]
        at = [np.frombuffer(chunk.at, np.uint32) + np.int64(chunk.base_at) for chunk in chunks]
        all_offsets, all_at = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in (offsets, at))
        new = all_offsets > journal_offset
        return all_offsets[new], all_at[new]

    def extend(self, offsets: Int64s, at: Int64s) -> None:
        """Take in what `after` gave, both ascending and beyond all that is held."""
        for first in range(0, len(offsets), CHUNK_ENTRIES):
            some_offsets, some_at = offsets[first : first + CHUNK_ENTRIES], at[first : first + CHUNK_ENTRIES]
            chunk = _Chunk(int(some_offsets[0]), int(some_at[0]))
            offset_deltas, at_deltas = some_offsets - chunk.base_offset, some_at - chunk.base_at
            if max(offset_deltas[-1], at_deltas[-1]) > DELTA_MAX:
                for journal_offset, captured_at in zip(some_offsets.tolist(), some_at.tolist(), strict=True):
                    self.note(journal_offset, captured_at)
                continue
            chunk.offsets = array("I", offset_deltas.astype(np.uint32).tobytes())
            chunk.at = array("I", at_deltas.astype(np.uint32).tobytes())
            self._chunks.append(chunk)
            self._last_at = int(some_at[-1])

    def next_growth(self, captured_at: int) -> int | None:
        """The first offset at which the running maximum exceeds `captured_at`; None: nowhere yet."""
        index = bisect_right(self._chunks, captured_at, key=lambda chunk: chunk.base_at) - 1
        if index < 0:
            return self._chunks[0].base_offset if self._chunks else None
        chunk = self._chunks[index]
        entry = bisect_right(chunk.at, captured_at - chunk.base_at)
        if entry < len(chunk.at):
            return chunk.base_offset + chunk.offsets[entry]
        return self._chunks[index + 1].base_offset if index + 1 < len(self._chunks) else None

    def at(self, journal_offset: int) -> int | None:
        """The running maximum at an offset; None: it lies before what is kept."""
        index = bisect_right(self._chunks, journal_offset, key=lambda chunk: chunk.base_offset) - 1
        if index < 0:
            return None
        chunk = self._chunks[index]
        entry = bisect_right(chunk.offsets, journal_offset - chunk.base_offset) - 1
        return chunk.base_at + chunk.at[entry]

    def drop(self, floor_offset: int) -> None:
        """Forget what only concerns offsets below the floor."""
        index = bisect_right(self._chunks, floor_offset, key=lambda chunk: chunk.base_offset) - 1
        if index > 0:
            del self._chunks[:index]

    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(8 * len(chunk.at) for chunk in self._chunks)


class ByteCurve:
    """Bytes journaled up to an offset, sampled."""

    def __init__(self) -> None:
        self._offsets = array("q")
        self._totals = array("q")
        self._head = 0
        self._base = 0

    @property
    def total(self) -> int:
        """Bytes in (floor, head], at most one sample too many."""
        return self._head - self._base

    def note(self, journal_offset: int, length: int) -> None:
        """A record of `length` bytes, in ascending order of offsets."""
        self._head += length
        if self._head - (self._totals[-1] if self._totals else self._base) >= SAMPLE_BYTES:
            self._offsets.append(journal_offset)
            self._totals.append(self._head)

    def note_all(self, first_offset: int, lengths: Int64s) -> None:
        """As `note`, of consecutive records from an offset on."""
        heads = np.cumsum(lengths) + self._head
        last, row = self._totals[-1] if self._totals else self._base, 0
        while (row := row + int(heads[row:].searchsorted(last + SAMPLE_BYTES))) < len(heads):
            last = int(heads[row])
            self._offsets.append(first_offset + row)
            self._totals.append(last)
        self._head = int(heads[-1])

    @property
    def head(self) -> int:
        """Bytes counted since the beginning, whatever was dropped."""
        return self._head

    def after(self, journal_offset: int, head_there: int) -> tuple[Int64s, Int64s]:
        """Samples after an offset, with the bytes from there to each.

        Args:
            journal_offset: the offset.
            head_there: `head` as it was at the offset.
        """
        first = bisect_right(self._offsets, journal_offset)
        return np.array(self._offsets[first:], np.int64), np.array(
            self._totals[first:], np.int64
        ) - head_there

    def extend(self, offsets: Int64s, lengths: Int64s, length: int) -> None:
        """Take in what `after` gave, and the bytes from there to the end."""
        self._offsets.extend(offsets.tolist())
        self._totals.extend((lengths + self._head).tolist())
        self._head += length

    def held_after(self, journal_offset: int) -> int:
        """Bytes in (offset, head], at most one sample too many."""
        index = bisect_right(self._offsets, journal_offset) - 1
        return self._head - (self._totals[index] if index >= 0 else self._base)

    def first_within(self, bytes_max: int) -> int | None:
        """The lowest sampled offset with at most `bytes_max` in (offset, head]; None: all that is kept fits."""
        if self.total <= bytes_max or not self._offsets:
            return None
        index = bisect_left(self._totals, self._head - bytes_max)
        return self._offsets[min(index, len(self._offsets) - 1)]

    def drop(self, floor_offset: int) -> None:
        """Forget samples up to the floor; what they counted counts no more."""
        keep = bisect_right(self._offsets, floor_offset)
        if keep:
            self._base = self._totals[keep - 1]
            del self._offsets[:keep]
            del self._totals[:keep]
