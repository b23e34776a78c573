"""The block sampler: numbers on known data, which blocks, what is remembered, and that its work is bounded."""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rephub.agent import sampling
from rephub.agent.queue import FLAG_SYNC, Kind, Queued
from rephub.agent.sampling import BLOCK_BYTES, BlockSampler, entropy_bits, is_chosen, packed_part

MIB = 1 << 20
SIZE = 64 * MIB
CHOSEN = [block for block in range(SIZE // BLOCK_BYTES) if is_chosen(block)]
TEXT = (b"It was the best of times, it was the worst of times, " * 100)[:BLOCK_BYTES]
NOISE = random.Random(1).randbytes(BLOCK_BYTES)
JPEG_LIKE = bytes(int(byte**1.3) % 256 for byte in random.Random(2).randbytes(BLOCK_BYTES))


def write(start: int, data: bytes) -> Queued:
    return Queued(Kind.WRITE, 1, 0, start, len(data), data)


def sync(start: int, data: bytes) -> Queued:
    return Queued(Kind.SYNC_DATA, 1, 0, start, len(data), data)


def zero(start: int, length: int, flags: int = 0) -> Queued:
    return Queued(Kind.ZERO, 1, 0, start, length, None, flags)


def look_at_all(sampler: BlockSampler) -> int:
    looks = 0
    while sampler.look():
        looks += 1
    return looks


def feed(sampler: BlockSampler, *events: Queued, now: float = 1.0) -> dict[str, float]:
    for event in events:
        sampler.note(event, now)
        look_at_all(sampler)
    return sampler.stats()


def at(number: int) -> int:
    """Byte address of the n-th chosen block."""
    return CHOSEN[number] * BLOCK_BYTES


@given(st.binary(min_size=1, max_size=64), st.integers(0, 4096), st.integers(0, 1 << 32))
def test_entropy_is_that_of_the_definition(pattern: bytes, plain: int, seed: int) -> None:
    block = (pattern * BLOCK_BYTES)[:plain] + random.Random(seed).randbytes(BLOCK_BYTES - plain)
    parts = [count / BLOCK_BYTES for count in Counter(block).values()]
    assert math.isclose(entropy_bits(block), -sum(part * math.log2(part) for part in parts), abs_tol=1e-9)


def test_known_entropies() -> None:
    assert entropy_bits(bytes(BLOCK_BYTES)) == 0
    assert entropy_bits(bytes(range(256)) * 16) == 8
    assert math.isclose(entropy_bits(b"ab" * 2048), 1)


def test_what_zlib_leaves() -> None:
    assert packed_part(NOISE) == 1
    # Without the 6 bytes of zlib's own around it.
    assert math.isclose(packed_part(TEXT), (len(zlib.compress(TEXT, 1)) - 6) / BLOCK_BYTES, abs_tol=0.001)
    assert packed_part(TEXT) < 0.05


def test_one_block_in_64_is_chosen_in_each_group() -> None:
    assert [block // 64 for block in CHOSEN] == list(range(SIZE // BLOCK_BYTES // 64))
    assert max(Counter(block % 64 for block in CHOSEN).values()) < 15, "no position is the usual one"


def test_sums_of_known_blocks() -> None:
    sampler = BlockSampler(SIZE)
    stats = feed(sampler, write(at(0), NOISE), write(at(1), TEXT), write(at(2), bytes(BLOCK_BYTES)))
    assert (stats["writes"], stats["bytes"], stats["sampled_blocks"]) == (3, 3 * BLOCK_BYTES, 3)
    assert math.isclose(stats["entropy_sum"], entropy_bits(NOISE) + entropy_bits(TEXT))
    assert math.isclose(
        stats["packed_sum"], packed_part(NOISE) + packed_part(TEXT) + packed_part(bytes(BLOCK_BYTES))
    )
    assert (stats["random_blocks"], stats["turned_blocks"], stats["rewritten_blocks"]) == (1, 0, 0)


def test_readable_blocks_that_become_random_have_turned() -> None:
    sampler = BlockSampler(SIZE)
    feed(
        sampler, write(at(0), TEXT), write(at(1), bytes(BLOCK_BYTES)), write(at(2), NOISE), write(at(3), TEXT)
    )
    stats = feed(sampler, *(write(at(number), NOISE) for number in range(5)))
    assert stats["random_blocks"] == 6
    assert stats["turned_blocks"] == 2, "not what was zero, random or unknown"
    assert stats["rewritten_blocks"] == 3, "not what was zero or unknown"


def test_what_compression_made_does_not_turn() -> None:
    assert sampling.PACKED_BITS < entropy_bits(JPEG_LIKE) < sampling.RANDOM_BITS
    stats = feed(BlockSampler(SIZE), write(at(0), JPEG_LIKE), write(at(0), NOISE))
    assert (stats["random_blocks"], stats["turned_blocks"], stats["rewritten_blocks"]) == (1, 0, 1)


def test_even_bytes_that_zlib_packs_are_not_random() -> None:
    stats = feed(BlockSampler(SIZE), write(at(0), bytes(range(256)) * 16))
    assert (stats["entropy_sum"], stats["random_blocks"]) == (8.0, 0)


def test_sync_teaches_and_does_not_count() -> None:
    sampler = BlockSampler(SIZE)
    stats = feed(sampler, sync(0, TEXT * 256), zero(MIB, MIB, FLAG_SYNC))
    assert stats == dict.fromkeys(stats, 0)
    stats = feed(sampler, *(write(at(number), NOISE) for number in range(8)))
    assert (stats["writes"], stats["sampled_blocks"], stats["turned_blocks"]) == (8, 8, 4)


def test_zeroes_are_remembered_to_the_block() -> None:
    sampler = BlockSampler(SIZE)
    feed(sampler, *(write(at(number), TEXT) for number in range(6)))
    # Of the first and the last block only a part.
    stats = feed(sampler, zero(at(1) + 1, at(4) - at(1)))
    assert stats["writes"] == 7
    stats = feed(sampler, *(write(at(number), NOISE) for number in range(6)))
    assert stats["turned_blocks"] == 4, "of 0, 1, 4, 5"
    assert stats["sampled_blocks"] == 12, "zeroes are not looked into"


@given(st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(1, MIB)), max_size=4))
def test_whole_chosen_blocks_of_any_write_are_looked_into(extents) -> None:
    sampler = BlockSampler(4 * MIB)
    stats = feed(sampler, *(write(start, bytes(length)) for start, length in extents))
    expected = sum(
        start <= block * BLOCK_BYTES and (block + 1) * BLOCK_BYTES <= start + length
        for start, length in extents
        for block in range(4 * MIB // BLOCK_BYTES)
        if is_chosen(block)
    )
    assert stats["sampled_blocks"] == expected
    assert stats["bytes"] == sum(length for _, length in extents)


def test_the_blocks_of_an_unaligned_write_are_cut_where_they_lie() -> None:
    data = b"\1" * 100 + NOISE + b"\2" * 50
    stats = feed(BlockSampler(SIZE), write(at(3) - 100, data))
    assert stats["sampled_blocks"] == 1
    assert math.isclose(stats["entropy_sum"], entropy_bits(NOISE))


def test_work_is_bounded_in_a_second() -> None:
    sampler = BlockSampler(1 << 30)
    data = memoryview(bytes(MIB))
    for number in range(1024):
        sampler.note(Queued(Kind.WRITE, 1, 0, number * MIB, MIB, data), 7 + number / 2048)
        look_at_all(sampler)
    assert sampler.stats()["sampled_blocks"] == sampling.LOOKS_PER_SECOND_MAX
    assert sampler.stats()["writes"] == 1024
    feed(sampler, write(at(0), TEXT), now=8.0)
    assert sampler.stats()["sampled_blocks"] == sampling.LOOKS_PER_SECOND_MAX + 1


def test_what_waits_is_bounded_and_copied() -> None:
    sampler = BlockSampler(1 << 30)
    data = bytearray(TEXT * 256)
    for number in range(100):
        assert sampler.note(Queued(Kind.WRITE, 1, 0, number * MIB, MIB, data), number / 20)
    data[:] = bytes(MIB)
    assert look_at_all(sampler) == sampling.WAITING_MAX - 1
    stats = sampler.stats()
    assert stats["sampled_blocks"] == sampling.WAITING_MAX
    assert math.isclose(stats["entropy_sum"], sampling.WAITING_MAX * entropy_bits(TEXT))


def test_marks_of_sync_and_checkpoints_are_no_writes() -> None:
    stats = feed(BlockSampler(SIZE), *(Queued(kind, 1, 0) for kind in (Kind.CHECKPOINT, Kind.SYNC_STARTED)))
    assert stats == dict.fromkeys(stats, 0)


def test_the_last_block_of_an_odd_volume() -> None:
    size = (CHOSEN[5] + 1) * BLOCK_BYTES + 17
    stats = feed(BlockSampler(size), write(at(5), NOISE), zero(0, size))
    assert stats["sampled_blocks"] == 1
