"""What the guest's writes look like: some of their blocks, looked into after the guest has its answer.

One block of 4 KiB in 64 is chosen, by its address alone, so the same blocks are seen again: a byte for each remembers what
was there. Here: the choice, what a block looks like, sums. Not here: what the sums mean (`projections/attack.py`), the
event loop (`publisher.py` calls `look`), a clock.

Invariants: payloads are not copied but for the blocks that will be looked into; the work of a second is bounded, whatever
the guest writes, and so is that of a turn of the loop.
"""

from __future__ import annotations

import zlib
from collections import deque

import numpy as np

from rephub.agent.queue import Buffer, Kind, Queued

BLOCK_BYTES = 4096
"""As file systems and databases write; a block that is written in parts is not looked into."""

GROUP_BLOCKS = 64
"""One block of so many neighbours is chosen."""

LOOKS_PER_SECOND_MAX = 50
"""Guest's blocks of a volume that are looked into, by tumbling second: 13 MB/s at one in 64, some 3 ms of CPU. What is above is left out of
all counts but `writes` and `bytes`. With 200, writes of 1 MiB cost a starved data path a quarter more."""

SYNC_LOOKS_PER_SECOND_MAX = 200
"""The same of what sync reads, which costs a quarter: it is only remembered."""

WAITING_MAX = 64
"""Blocks that wait to be looked into: 256 KiB, and what a burst brings."""

RANDOM_BITS = 7.94
"""Random bytes have 7.955 ± 0.004 bits a byte in a block of this size (8 - 255 / (2 · 4096 · ln 2))."""

PACKED_BITS = 7.0
"""Text, programs and databases are below, nearly all that is compressed is above."""

LITTLE_LEFT = 0.99
"""What zlib leaves of a block that it cannot pack."""

UNKNOWN, ZERO, PLAIN, PACKED, RANDOM = range(5)
"""What a block was when it was seen last."""


def _picks() -> bytes:
    """Position of the chosen block in each group, for 4,096 groups in turn (1 GiB): no stride of a guest's hits or misses all."""
    state, picked = 0x9E3779B97F4A7C15, bytearray()
    for _ in range(4096):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        picked.append(state >> 58)
    return bytes(picked)


_PICKS = _picks()
_PICKED = len(_PICKS)
_COUNT_BITS = np.array([0.0, *(count * np.log2(count) for count in range(1, BLOCK_BYTES + 1))])
"""Of a byte value that occurs so often in a block."""


def is_chosen(block: int) -> bool:
    """Whether the block of this number is one of those that are looked into."""
    return _PICKS[block // GROUP_BLOCKS % _PICKED] == block % GROUP_BLOCKS


def entropy_bits(block: Buffer) -> float:
    """Shannon entropy of the bytes of a block of BLOCK_BYTES, bits a byte (0 to 8)."""
    counts = np.bincount(np.frombuffer(block, np.uint8), minlength=256)
    return max(0.0, 12.0 - float(_COUNT_BITS[counts].sum()) / BLOCK_BYTES)


def packed_part(block: Buffer) -> float:
    """What zlib's fastest level leaves of a block, as a part of 1, at most 1."""
    # Tables for a window of one block: the usual ones are for 32 KiB, and to clear them takes as long as all the rest.
    packer = zlib.compressobj(1, zlib.DEFLATED, -12, 7)
    return min(1.0, (len(packer.compress(block)) + len(packer.flush())) / BLOCK_BYTES)


class BlockSampler:
    """Of one attachment.

    Args:
        size_bytes: of the volume; a byte is kept for each 256 KiB of it.
        looking: whether blocks are looked into; writes and bytes are counted in any case.
    """

    def __init__(self, size_bytes: int, *, looking: bool = True) -> None:
        self._looking = looking
        self._last = bytearray(size_bytes // (GROUP_BLOCKS * BLOCK_BYTES) + 1)
        self._waiting: deque[tuple[int, bytes, bool]] = deque()
        """(group, content of its chosen block, whether sync read it)"""
        self._second = 0
        self._guest_looks = self._sync_looks = 0
        self._writes = self._bytes = 0
        self._sampled = self._random = self._turned = self._rewritten = 0
        self._entropy = self._packed = 0.0

    def stats(self) -> dict[str, float]:
        """Sums since the attach, as the fields of `CaptureSample` count them."""
        return {
            "writes": self._writes,
            "bytes": self._bytes,
            "sampled_blocks": self._sampled,
            "entropy_sum": self._entropy,
            "packed_sum": self._packed,
            "random_blocks": self._random,
            "turned_blocks": self._turned,
            "rewritten_blocks": self._rewritten,
        }

    def note(self, event: Queued, now: float) -> bool:
        """Take an event's figures, and those of its blocks that are chosen; in journal order.

        Args:
            event: with its data.
            now: seconds, of any clock that does not go back.

        Returns:
            Whether blocks wait for `look`.
        """
        kind, start, length = event.kind, event.start, event.length
        if kind is Kind.WRITE:
            self._writes += 1
            self._bytes += length
        elif kind is Kind.ZERO:
            self._writes += not event.is_sync
            self._zeroed(start, length)
            return bool(self._waiting)
        elif kind is not Kind.SYNC_DATA:
            return False
        first, end = -(-start // BLOCK_BYTES), (start + length) // BLOCK_BYTES
        group = first // GROUP_BLOCKS
        block = group * GROUP_BLOCKS + _PICKS[group % _PICKED]
        while block < end:
            if block >= first and self._may(now, from_sync=kind is Kind.SYNC_DATA):
                assert event.data is not None
                at = block * BLOCK_BYTES - start
                found = bytes(memoryview(event.data)[at : at + BLOCK_BYTES])
                self._waiting.append((group, found, kind is Kind.SYNC_DATA))
            group += 1
            block = group * GROUP_BLOCKS + _PICKS[group % _PICKED]
        return bool(self._waiting)

    def look(self) -> bool:
        """Look into the block that has waited longest: some 60 µs.

        Returns:
            Whether more wait.
        """
        if not self._waiting:
            return False
        group, block, from_sync = self._waiting.popleft()
        before, bits = self._last[group], entropy_bits(block)
        packed = 1.0 if from_sync else packed_part(block)
        if bits == 0 and block[0] == 0:
            found = ZERO
        elif bits > RANDOM_BITS and packed >= LITTLE_LEFT:
            found = RANDOM
        else:
            found = PACKED if bits > PACKED_BITS else PLAIN
        self._last[group] = found
        if not from_sync:
            self._sampled += 1
            self._entropy += bits
            self._packed += packed
            self._random += found == RANDOM
            self._turned += found == RANDOM and before == PLAIN
            self._rewritten += before > ZERO
        return bool(self._waiting)

    def _may(self, now: float, *, from_sync: bool) -> bool:
        """Whether one more may be looked into in this second."""
        if not self._looking:
            return False
        if int(now) != self._second:
            self._second, self._guest_looks, self._sync_looks = int(now), 0, 0
        if len(self._waiting) >= WAITING_MAX:
            return False
        if from_sync:
            self._sync_looks += 1
            return self._sync_looks <= SYNC_LOOKS_PER_SECOND_MAX
        self._guest_looks += 1
        return self._guest_looks <= LOOKS_PER_SECOND_MAX

    def _zeroed(self, start: int, length: int) -> None:
        """Zeroes are remembered, and not looked into. A block that waits still counts as younger: that is milliseconds."""
        first, last = -(-start // BLOCK_BYTES), (start + length) // BLOCK_BYTES - 1
        if last < first:
            return
        for group in {first // GROUP_BLOCKS, last // GROUP_BLOCKS}:
            if first <= group * GROUP_BLOCKS + _PICKS[group % _PICKED] <= last:
                self._last[group] = ZERO
        inner, outer = first // GROUP_BLOCKS + 1, last // GROUP_BLOCKS
        if inner < outer:
            self._last[inner:outer] = bytes([ZERO]) * (outer - inner)
