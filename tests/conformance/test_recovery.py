"""Recovery volumes against `recovery_cases`: raw file, NBD exports of three strangers, and a loop device.

The loop device needs root and a kernel that has loop devices; without them its tests are skipped and say so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from conformance.recovery_cases import BEHIND, SIZE, TARGET_BYTES, RecoveryCases, data, zeroes
from recovery_servers import NbdProcess, attach_loop, detach_loop, nbdkit, qemu_nbd, storage_daemon
from rephub.consumers.diskbox.recovery import RawFile, create_raw_file
from rephub.consumers.diskbox.recovery_device import BlockDevice, check_device, device_identity, open_device
from rephub.consumers.diskbox.recovery_nbd import NbdVolume
from rephub.core.errors import ConflictError, NotFoundError, StorageError
from services import cannot


@pytest.fixture
def disk(short_dir: Path) -> Path:
    """A target: the volume's part is zeroes, behind it somebody's bytes."""
    path = short_dir / "target.raw"
    path.write_bytes(bytes(SIZE) + BEHIND * (TARGET_BYTES - SIZE))
    return path


@pytest.fixture
def content(disk: Path) -> Callable[[], bytes]:
    return disk.read_bytes


class TestRawFile(RecoveryCases):
    larger_target = False

    @pytest.fixture
    async def volume(self, disk: Path) -> AsyncIterator[RawFile]:
        disk.unlink()
        create_raw_file(disk, SIZE)
        volume = RawFile(disk)
        yield volume
        await volume.close()


class NbdCases(RecoveryCases):
    @pytest.fixture
    async def volume(self, server: NbdProcess) -> AsyncIterator[NbdVolume]:
        volume = await NbdVolume.open(server.uri, SIZE)
        yield volume
        await volume.close()
        server.kill()


@pytest.mark.qemu
class TestQemuNbd(NbdCases):
    @pytest.fixture
    def server(self, short_dir: Path, disk: Path) -> NbdProcess:
        return qemu_nbd(short_dir, disk)


@pytest.mark.qemu
class TestStorageDaemon(NbdCases):
    @pytest.fixture
    def server(self, short_dir: Path, disk: Path) -> NbdProcess:
        return storage_daemon(short_dir, disk)


class TestNbdkitOfWholeSectors(NbdCases):
    """A server that refuses what is not a multiple of 512, as one with O_DIRECT does."""

    @pytest.fixture
    def server(self, short_dir: Path, disk: Path) -> NbdProcess:
        policy = ("blocksize-minimum=512", "blocksize-error-policy=error")
        return nbdkit(short_dir, disk, "--filter=blocksize-policy", settings=policy)


class TestNbdkitWithout(NbdCases):
    """A server without write zeroes and without block status."""

    @pytest.fixture
    def server(self, short_dir: Path, disk: Path) -> NbdProcess:
        return nbdkit(short_dir, disk, "--filter=nozero", "--filter=noextents")

    async def check_holes(self, extents: list[tuple[int, bool]]) -> None:
        assert extents == [(600_000, False)]


@pytest.fixture
def device(disk: Path) -> Iterator[Path]:
    found = attach_loop(disk)
    if found is None:
        cannot("losetup gives no loop device here")
    yield found
    detach_loop(found)


class TestLoopDevice(RecoveryCases):
    @pytest.fixture
    async def volume(self, device: Path) -> AsyncIterator[BlockDevice]:
        volume = BlockDevice(device, SIZE)
        yield volume
        await volume.close()

    async def check_holes(self, extents: list[tuple[int, bool]]) -> None:
        assert extents == [(600_000, False)]

    async def test_zeroes_are_discarded(self, volume: BlockDevice, disk: Path) -> None:
        await volume.write([data(0, b"d" * SIZE)])
        await volume.fdatasync()
        before = disk.stat().st_blocks
        await volume.write([zeroes(1, 1 << 20)])
        await volume.fdatasync()
        assert await volume.pread(0, (1 << 20) + 2) == b"d" + bytes(1 << 20) + b"d"
        assert disk.stat().st_blocks < before - 1500

    async def test_opened_twice_is_refused(self, volume: BlockDevice, device: Path) -> None:
        with pytest.raises(StorageError) as refused:
            BlockDevice(device, SIZE)
        assert refused.value.fields["errno"] == errno.EBUSY
        with pytest.raises(ConflictError, match="in use"):
            check_device(device, SIZE, ours=True)

    async def test_too_small(self, volume: BlockDevice) -> None:
        with pytest.raises(StorageError) as refused:
            await volume.resize(TARGET_BYTES + 1)
        assert refused.value.fields["errno"] == errno.ENOSPC
        assert await volume.size() == SIZE

    def test_somebodys_data(self, device: Path, disk: Path) -> None:
        with pytest.raises(ConflictError, match="not empty") as refused:
            check_device(device, SIZE, ours=False)
        assert "blkdiscard" in refused.value.hint
        check_device(device, SIZE, ours=True)
        descriptor = os.open(device, os.O_RDWR)
        os.pwrite(descriptor, bytes(TARGET_BYTES - SIZE), SIZE)
        check_device(device, SIZE, ours=False)
        os.pwrite(descriptor, b"\1", 1080)
        os.close(descriptor)
        with pytest.raises(ConflictError, match="not empty"):
            check_device(device, SIZE, ours=False)
        with pytest.raises(ConflictError, match=f"{TARGET_BYTES} bytes"):
            check_device(device, TARGET_BYTES + 1, ours=True)

    def test_another_device_under_the_name(self, device: Path) -> None:
        descriptor = open_device(device)
        identity = device_identity(descriptor)
        os.close(descriptor)
        assert identity.endswith("target.raw")
        with pytest.raises(StorageError, match="another device"):
            BlockDevice(device, SIZE, "wwn-of-another")


def test_what_is_no_block_device() -> None:
    with pytest.raises(NotFoundError, match="no device"):
        check_device(Path("/dev/rephub-nothing"), SIZE, ours=False)
    with pytest.raises(ConflictError, match="no block device"):
        check_device(Path("/dev/null"), SIZE, ours=False)
    with pytest.raises(StorageError):
        BlockDevice(Path("/dev/null"), SIZE)
