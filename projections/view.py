"""The plan of a read at a point: scratch before journal before recovery volume.

`ScratchMap` says which blocks a view's scratch holds. Pure: whoever opens the files is in `consumers/diskbox/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rephub.projections.index import RECOVERY, SCRATCH, ZERO, Piece

BLOCK_BYTES = 4096
"""Granule of copy-on-write: what guests write in, so that few writes need the rest of their block."""
_CHUNK_BLOCKS = 1024

Lookup = Callable[[int, int], list[Piece]]
"""The journal's answer for (start, length) at the view's point."""


ABSENT = 0
HELD = 1
ZEROED = 2
"""What a scratch says of a block: nothing, its data, or that it is zeroes (which take no space)."""


class ScratchMap:
    """Which blocks a scratch holds; a byte a block, kept for parts of 4 MiB that were written."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self.held_blocks = 0
        """Blocks with data: the space that the scratch takes."""

    def state(self, block: int) -> int:
        """ABSENT, HELD or ZEROED."""
        chunk = self._chunks.get(block // _CHUNK_BLOCKS)
        return ABSENT if chunk is None else chunk[block % _CHUNK_BLOCKS]

    def growth(self, first_block: int, next_block: int) -> int:
        """How many blocks of [first, next) hold no data yet."""
        total = next_block - first_block
        for number, first, next_ in _chunked(first_block, next_block):
            chunk = self._chunks.get(number)
            total -= 0 if chunk is None else chunk.count(HELD, first, next_)
        return total

    def set(self, first_block: int, next_block: int, state: int) -> None:
        """[first, next) are HELD or ZEROED from now on."""
        for number, first, next_ in _chunked(first_block, next_block):
            chunk = self._chunks.setdefault(number, bytearray(_CHUNK_BLOCKS))
            self.held_blocks -= chunk.count(HELD, first, next_)
            chunk[first:next_] = bytes((state,)) * (next_ - first)
            self.held_blocks += (next_ - first) if state == HELD else 0

    def runs(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(start, length, state) over [start, start + length), ascending; neighbours differ in state."""
        end = start + length
        if not self._chunks:
            yield start, length, ABSENT
            return
        run_start, state = start, self.state(start // BLOCK_BYTES)
        position = (start // BLOCK_BYTES + 1) * BLOCK_BYTES
        while position < end:
            now = self.state(position // BLOCK_BYTES)
            if now != state:
                yield run_start, position - run_start, state
                run_start, state = position, now
            position += BLOCK_BYTES
        yield run_start, end - run_start, state


def _chunked(first_block: int, next_block: int) -> Iterator[tuple[int, int, int]]:
    """(chunk, first, next) for the parts of [first, next) that lie in one chunk each."""
    while first_block < next_block:
        number, first = divmod(first_block, _CHUNK_BLOCKS)
        next_ = min(_CHUNK_BLOCKS, first + next_block - first_block)
        yield number, first, next_
        first_block += next_ - first


def plan(start: int, length: int, scratch: ScratchMap | None, lookup: Lookup) -> list[Piece]:
    """Where each byte of a read is: the scratch wins over the journal, the journal over the recovery volume.

    Args:
        start: first byte.
        length: bytes, more than 0.
        scratch: of the view; None where it is read-only.
        lookup: `Index.lookup` at the view's point.

    Returns:
        Pieces in ascending order that cover the range.
    """
    if scratch is None:
        return lookup(start, length)
    pieces: list[Piece] = []
    for run_start, run_length, state in scratch.runs(start, length):
        if state == HELD:
            pieces.append(Piece(run_start, run_length, SCRATCH))
        elif state == ZEROED:
            pieces.append(Piece(run_start, run_length, ZERO))
        else:
            pieces.extend(lookup(run_start, run_length))
    return pieces


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
