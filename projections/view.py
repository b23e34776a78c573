"""The plan of a read at a point: overlay before journal before recovery volume.

`BlockMap` says which blocks a view's overlay holds. Pure: whoever opens the files is in `consumers/diskbox/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from mmap import mmap

import numpy as np

from rephub.projections.index import RECOVERY, SCRATCH, ZERO, Piece

BLOCK_BYTES = 4096
"""Granule of copy-on-write: what guests write in, so that few writes need the rest of their block."""

Lookup = Callable[[int, int], list[Piece]]
"""The journal's answer for (start, length) at the view's point."""


ABSENT = 0
HELD = 1
ZEROED = 2
"""What an overlay says of a block: nothing, its data, or that it is zeroes (which take no space)."""
FOLDED = 3
"""Nothing any more: what it held was moved to where everything else is. It was written since the overlay began."""

_FEW_BLOCKS = 32
"""So many are looked at one by one: quicker than an array."""


class BlockMap:
    """Which blocks an overlay holds: a byte a block, in a buffer that somebody may have mapped from a file.

    Args:
        states: the buffer; it is changed in place.
    """

    def __init__(self, states: bytearray | mmap) -> None:
        self._bytes = states
        self._states = np.frombuffer(states, np.uint8)
        self.held_blocks = int(np.count_nonzero(self._states == HELD))
        """Blocks with data: the space that the overlay takes."""
        self._untouched = not self._states.any()

    def state(self, block: int) -> int:
        """ABSENT, HELD, ZEROED or FOLDED."""
        return self._bytes[block]

    def count(self, state: int, first_block: int, next_block: int) -> int:
        """How many blocks of [first, next) are in the state."""
        return int(np.count_nonzero(self._states[first_block:next_block] == state))

    def set(self, first_block: int, next_block: int, state: int) -> None:
        """[first, next) are in the state from now on."""
        self.held_blocks -= self.count(HELD, first_block, next_block)
        self._states[first_block:next_block] = state
        self.held_blocks += (next_block - first_block) if state == HELD else 0
        self._untouched = False

    def runs(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(start, length, state) over the bytes [start, start + length), ascending; neighbours differ in state."""
        first, next_ = start // BLOCK_BYTES, -(-(start + length) // BLOCK_BYTES)
        if self._untouched or next_ - first == 1:
            yield start, length, self._bytes[first]
            return
        if next_ - first <= _FEW_BLOCKS:
            few = self._bytes[first:next_]
            edges = [number for number in range(1, len(few)) if few[number] != few[number - 1]]
        else:
            edges = (np.flatnonzero(np.diff(self._states[first:next_])) + 1).tolist()
        low = start
        for block in (*edges, next_ - first):
            high = min((first + block) * BLOCK_BYTES, start + length)
            yield low, high - low, self._bytes[low // BLOCK_BYTES]
            low = high

    def next_run(
        self, states: Collection[int], first_block: int, blocks_max: int
    ) -> tuple[int, int, int] | None:
        """The first run of blocks in one of the states, at or after a block.

        Returns:
            (first, next, state), at most `blocks_max` long; None: there is none.
        """
        total = len(self._states)
        wanted = np.zeros(256, np.bool_)
        wanted[list(states)] = True
        while first_block < total:
            part = wanted[self._states[first_block : first_block + _SCAN_BLOCKS]]
            found = int(part.argmax())
            if not part[found]:
                first_block += len(part)
                continue
            first = first_block + found
            run = self._states[first : first + blocks_max]
            other = np.flatnonzero(run != run[0])
            return first, first + (int(other[0]) if len(other) else len(run)), int(run[0])
        return None

    def written(self) -> list[tuple[int, int]]:
        """(first, next) of all runs of blocks that are not ABSENT, ascending."""
        found: list[tuple[int, int]] = []
        block = 0
        while (run := self.next_run((HELD, ZEROED, FOLDED), block, len(self._states))) is not None:
            block = run[1]
            if found and found[-1][1] == run[0]:
                found[-1] = (found[-1][0], block)
            else:
                found.append((run[0], block))
        return found

    def release(self) -> None:
        """Let go of the buffer."""
        self._bytes = bytearray()
        self._states = np.zeros(0, np.uint8)


_SCAN_BLOCKS = 1 << 20
"""Looked at in one go when the next run is sought: 4 GiB of the volume."""


def plan(
    start: int, length: int, overlay: BlockMap | None, lookup: Lookup, kind: int = SCRATCH
) -> list[Piece]:
    """Where each byte of a read is: an overlay wins over what lies below.

    Args:
        start: first byte.
        length: bytes, more than 0.
        overlay: of the view; None: there is none.
        lookup: of what lies below: `Index.lookup` at the view's point, or a plan of its own.
        kind: of pieces that the overlay holds.

    Returns:
        Pieces in ascending order that cover the range.
    """
    if overlay is None:
        return lookup(start, length)
    pieces: list[Piece] = []
    for run_start, run_length, state in overlay.runs(start, length):
        if state == HELD:
            pieces.append(Piece(run_start, run_length, kind))
        elif state == ZEROED:
            pieces.append(Piece(run_start, run_length, ZERO))
        else:
            pieces.extend(lookup(run_start, run_length))
    return pieces


def zero_parts(
    start: int, length: int, size_bytes: int
) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """A range that is to be zeroes: whole blocks need only be noted, edges are written.

    Returns:
        [(start, length)] of the edges; (first, next) of the whole blocks, None if there is none. The volume's last block
        counts as whole although it may be a short one.
    """
    end = start + length
    first, next_ = -(-start // BLOCK_BYTES), end // BLOCK_BYTES
    if end == size_bytes:
        next_ = -(-end // BLOCK_BYTES)
    if first >= next_:
        return [(start, length)], None
    low, high = first * BLOCK_BYTES, min(next_ * BLOCK_BYTES, end)
    edges = [(start, low - start), (high, end - high)]
    return [edge for edge in edges if edge[1]], (first, next_)


def allocation(
    pieces: list[Piece], recovery_holes: Callable[[int, int], list[tuple[int, bool]]], size_bytes: int
) -> list[tuple[int, bool]]:
    """Which parts of a planned read are zeroes, for block status.

    A block counts as zeroes only if all of it is: qemu-img rounds an extent that ends inside a sector up, and would take
    the data behind it for zeroes.

    Args:
        pieces: of `plan`.
        recovery_holes: for (start, length) of the recovery volume: [(length, is_hole)] that cover it.
        size_bytes: of the view; its last block may be a short one.

    Returns:
        [(length, is_zero)], neighbours merged.
    """
    extents: list[list[int]] = []  # [start, end, is_zero]
    for piece in pieces:
        parts = [(piece.length, piece.kind == ZERO)]
        if piece.kind == RECOVERY:
            parts = recovery_holes(piece.start, piece.length)
        position = piece.start
        for length, is_zero in parts:
            if extents and extents[-1][2] == is_zero:
                extents[-1][1] = position + length
            else:
                extents.append([position, position + length, is_zero])
            position += length
    return _whole_blocks(extents, size_bytes)


def _whole_blocks(extents: list[list[int]], size_bytes: int) -> list[tuple[int, bool]]:
    merged: list[tuple[int, bool]] = []

    def add(length: int, *, is_zero: bool) -> None:
        if length and merged and merged[-1][1] == is_zero:
            merged[-1] = (merged[-1][0] + length, is_zero)
        elif length:
            merged.append((length, is_zero))

    for start, end, is_zero in extents:
        first = -(-start // BLOCK_BYTES) * BLOCK_BYTES
        next_ = end if end == size_bytes else end // BLOCK_BYTES * BLOCK_BYTES
        if is_zero and first < next_:
            add(first - start, is_zero=False)
            add(next_ - first, is_zero=True)
            add(end - next_, is_zero=False)
        else:
            add(end - start, is_zero=False)
    return merged
