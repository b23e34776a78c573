"""What every recovery volume must do; `test_recovery.py` runs it over the adapters.

The targets of devices and exports are larger than the volume, and full of somebody's bytes behind it.
"""

from __future__ import annotations

import random

import pytest

from rephub.consumers.diskbox.recovery import RecoveryVolume
from rephub.core.errors import StorageError
from rephub.projections.coalesce import DeviceWrite

SIZE = (2 << 20) + 512
"""No multiple of a page."""
TARGET_BYTES = 4 << 20
BEHIND = b"\xee"


def data(start: int, *parts: bytes) -> DeviceWrite:
    return DeviceWrite(start, sum(map(len, parts)), [memoryview(part) for part in parts])


def zeroes(start: int, length: int) -> DeviceWrite:
    return DeviceWrite(start, length, None)


class RecoveryCases:
    """Fixtures of a subclass: `volume` (of SIZE bytes) and `content`, which reads the target by other means."""

    larger_target = True

    async def test_reads_as_written(self, volume: RecoveryVolume, content) -> None:
        rng = random.Random(11)
        model = bytearray(SIZE)
        model[:SIZE] = await volume.pread(0, SIZE)
        for _ in range(12):
            batch, position = [], 0
            while position < SIZE:
                start = position + rng.choice((0, 1, 511, 4096, 65536, 300_000))
                length = min(rng.choice((1, 3, 512, 4096, 5000, 70_000, 400_000)), SIZE - start)
                if length <= 0:
                    break
                position = start + length
                if rng.random() < 0.4:
                    batch.append(zeroes(start, length))
                    model[start:position] = bytes(length)
                else:
                    new = rng.randbytes(length)
                    cut = rng.randrange(length + 1)
                    batch.append(data(start, new[:cut], new[cut:]))
                    model[start:position] = new
            rng.shuffle(batch)
            await volume.write(batch)
            for _ in range(5):
                start = rng.randrange(SIZE)
                length = rng.randrange(1, SIZE - start + 1)
                assert await volume.pread(start, length) == model[start : start + length]
        await volume.fdatasync()
        found = content()
        assert found[:SIZE] == model
        if self.larger_target:
            assert found[SIZE:] == BEHIND * (TARGET_BYTES - SIZE)

    async def test_many_buffers_in_one_write(self, volume: RecoveryVolume) -> None:
        parts = [bytes([number % 251]) * 5 for number in range(3000)]
        await volume.write([data(7, *parts)])
        assert await volume.pread(7, 15_000) == b"".join(parts)

    async def test_beyond_the_end_is_zeroes(self, volume: RecoveryVolume) -> None:
        await volume.write([data(SIZE - 3, b"end")])
        assert await volume.pread(SIZE - 3, 9) == b"end" + bytes(6)
        assert await volume.pread(SIZE + 5, 4) == bytes(4)
        assert await volume.size() == SIZE

    async def test_grows_with_zeroes(self, volume: RecoveryVolume) -> None:
        await volume.write([data(SIZE - 700_000, b"x" * 700_000)])
        await volume.resize(SIZE - 600_001)
        await volume.resize(SIZE + 100_003)
        assert await volume.size() == SIZE + 100_003
        expected = b"x" * 99_999 + bytes(700_004)
        assert await volume.pread(SIZE - 700_000, 800_003) == expected
        await volume.write([data(SIZE + 100_000, b"new")])
        await volume.fdatasync()
        assert await volume.pread(SIZE + 99_999, 5) == b"\0new\0"

    async def test_allocation_covers_and_holes_are_zeroes(self, volume: RecoveryVolume) -> None:
        await volume.write([zeroes(0, SIZE), data(700_000, b"d" * 70_000)])
        await volume.fdatasync()
        for start, length in ((0, SIZE), (1, SIZE - 1), (650_001, 100_000), (SIZE - 10, 30), (SIZE + 1, 9)):
            extents = await volume.allocation(start, length)
            assert sum(count for count, _ in extents) == length
            assert all(count > 0 for count, _ in extents)
            position = start
            for count, is_hole in extents:
                if is_hole:
                    assert not any(await volume.pread(position, count))
                position += count
        assert await volume.allocation(700_000, 70_000) == [(70_000, False)]
        await self.check_holes(await volume.allocation(0, 600_000))

    async def check_holes(self, extents: list[tuple[int, bool]]) -> None:
        """Where the medium tells its holes."""
        assert any(is_hole for _, is_hole in extents)

    async def test_reopened_it_holds_what_was_synced(self, volume: RecoveryVolume) -> None:
        await volume.write([data(4097, b"kept")])
        await volume.fdatasync()
        await volume.reopen(SIZE)
        assert await volume.pread(4096, 6) == b"\0kept\0"
        await volume.write([data(4097, b"anew")])
        await volume.fdatasync()
        assert await volume.pread(4097, 4) == b"anew"

    async def test_closed_is_an_error(self, volume: RecoveryVolume) -> None:
        await volume.close()
        await volume.close()
        for use in (volume.pread(0, 1), volume.write([data(0, b"x")]), volume.fdatasync()):
            with pytest.raises(StorageError):
                await use
