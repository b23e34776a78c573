"""A block device as a recovery volume.

It is opened with O_EXCL, so that one that is mounted, part of a RAID, LVM or another diskbox volume is refused, and
nobody can mount it while it is ours. It may be larger than the volume: what lies behind the volume is never touched, and
reads as zeroes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors
from rephub.consumers.diskbox.recovery import RawFile, punch_or_zero, read_at, write_at
from rephub.core.errors import ConflictError, NotFoundError, StorageError
from rephub.projections.coalesce import DeviceWrite

ZERO_BYTES = 4096
"""Zeroes within such blocks are written, whole blocks are discarded: no logical block is larger, nor a page of the cache."""
EDGE_BYTES = 1 << 20
"""Looked at, at both ends, for somebody's data: where partition tables, file systems, LVM, RAID and LUKS have their marks."""
_IDENTITIES = ("wwid", "device/wwid", "device/serial", "serial", "dm/uuid", "loop/backing_file")
"""Files of /sys/dev/block/MAJOR:MINOR that tell one device from another; the first that is there counts."""


class BlockDevice(RawFile):
    """A block device as a RecoveryVolume.

    Args:
        path: of the device; better one of /dev/disk/by-id than a name that the next start may give away.
        size_bytes: of the volume.
        identity: what `device_identity` said when it became ours; empty: unknown.

    Raises:
        StorageError: missing, in use, too small, or another device than it was.
    """

    def __init__(self, path: Path, size_bytes: int, identity: str = "") -> None:
        self._size_bytes = size_bytes
        self._identity = identity
        super().__init__(path)

    def _open(self) -> ThreadedFile:
        descriptor = open_device(self._path)
        try:
            self._check_identity(device_identity(descriptor))
            _check_capacity(self.path, os.lseek(descriptor, 0, os.SEEK_END), self._size_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return ThreadedFile(descriptor)

    def _check_identity(self, found: str) -> None:
        if self._identity and found != self._identity:
            raise StorageError(
                f"{self._path} is another device ({found or 'unknown'}) than before ({self._identity})",
                hint="connect the device of before under that name", errno=errno.ENODEV, path=self.path,
            )  # fmt: skip

    async def size(self) -> int:
        """See `RecoveryVolume.size`."""
        return self._size_bytes

    async def check_room(self, size_bytes: int) -> None:
        """See `RecoveryVolume.check_room`."""
        with storage_errors("look at", self._path):
            _check_capacity(self.path, await self._file.run(os.lseek, 0, os.SEEK_END), size_bytes)

    async def resize(self, size_bytes: int) -> None:
        """See `RecoveryVolume.resize`; a device that is too small is StorageError ENOSPC."""
        with storage_errors("resize", self._path):
            _check_capacity(self.path, await self._file.run(os.lseek, 0, os.SEEK_END), size_bytes)
            if size_bytes > self._size_bytes:
                await self._file.run(zero_device, self._size_bytes, size_bytes - self._size_bytes)
        self._size_bytes = size_bytes

    async def pread(self, start: int, length: int) -> bytes:
        """See `RecoveryVolume.pread`."""
        inside = max(0, min(length, self._size_bytes - start))
        with storage_errors("read", self._path):
            data = await self._file.run(read_at, start, inside) if inside else b""
        return data + bytes(length - inside)

    async def write(self, writes: Sequence[DeviceWrite]) -> None:
        """See `RecoveryVolume.write`."""
        with storage_errors("write", self._path):
            await self._file.run(_write_all, writes)

    async def allocation(self, start: int, length: int) -> list[tuple[int, bool]]:
        """See `RecoveryVolume.allocation`; a device does not tell its holes, so all of the volume is data."""
        inside = max(0, min(length, self._size_bytes - start))
        return [part for part in ((inside, False), (length - inside, True)) if part[0]]

    async def reopen(self, size_bytes: int) -> None:
        """See `RecoveryVolume.reopen`; closes first, as two exclusive openers exclude each other."""
        self._file.close()
        self._size_bytes = size_bytes
        with storage_errors("open", self._path):
            self._file = self._open()


def open_device(path: Path) -> int:
    """A descriptor of a block device that nobody else uses. Raises OSError; ENOTBLK: something else is there."""
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK  # a terminal line would make the open wait
    descriptor = os.open(path, flags)
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
    return descriptor


def check_device(path: Path, size_bytes: int, *, ours: bool) -> str:
    """Whether a device may become a recovery volume; nothing is changed.

    Args:
        path: of the device.
        size_bytes: of the volume.
        ours: a position names it; otherwise both its ends have to be zeroes.

    Returns:
        Its identity.

    Raises:
        NotFoundError: there is none.
        ConflictError: no block device, in use, too small, or with somebody's data on it.
        StorageError: it cannot be read.
    """
    try:
        descriptor = open_device(path)
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no device {path}", hint="files do not belong into /dev") from exc
    except OSError as exc:
        why = {errno.EBUSY: "is in use", errno.ENOTBLK: "is no block device"}.get(exc.errno or 0)
        if why is None:
            with storage_errors("open", path):
                raise
        raise ConflictError(f"{path} {why}", hint="name a device that nobody uses", path=str(path)) from exc
    try:
        with storage_errors("read", path):
            capacity = os.lseek(descriptor, 0, os.SEEK_END)
            edges = () if ours else (0, max(0, capacity - EDGE_BYTES))
            blank = all(not any(read_at(descriptor, at, min(EDGE_BYTES, capacity))) for at in edges)
    finally:
        identity = device_identity(descriptor)
        os.close(descriptor)
    if capacity < size_bytes:
        raise ConflictError(
            f"{path} has {capacity} bytes, the volume {size_bytes}",
            hint="name a larger device",
            path=str(path),
        )
    if not blank:
        raise foreign(str(path), f"blkdiscard --zeroout {path}")
    return identity


def foreign(target: str, how: str) -> ConflictError:
    """The refusal of a target that holds somebody's data."""
    return ConflictError(
        f"{target} is not empty", hint=f"name another one, or give up what is on it: {how}", path=target
    )


def device_identity(descriptor: int) -> str:
    """What tells the device from another one; empty where the kernel knows nothing."""
    number = os.fstat(descriptor).st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    with contextlib.suppress(OSError):
        partition = (node / "partition").read_text().strip() if (node / "partition").exists() else ""
        disk = node.resolve().parent if partition else node
        for name in _IDENTITIES:
            if (disk / name).exists() and (found := (disk / name).read_text().strip()):
                return f"{found}-part{partition}" if partition else found
    return ""


def _check_capacity(path: str, capacity: int, size_bytes: int) -> None:
    if capacity < size_bytes:
        raise StorageError(
            f"{path} has {capacity} bytes, the volume {size_bytes}",
            hint="make it larger; it goes on by itself", errno=errno.ENOSPC, path=path,
        )  # fmt: skip


def _write_all(descriptor: int, writes: Sequence[DeviceWrite]) -> None:
    for write in writes:
        if write.buffers is None:
            zero_device(descriptor, write.start, write.length)
        else:
            write_at(descriptor, write.start, write.buffers)


def zero_device(descriptor: int, start: int, length: int) -> None:
    """Make a range of a device read as zeroes: whole blocks by the device itself where it can, edges written."""
    end = start + length
    low, high = min(end, -(-start // ZERO_BYTES) * ZERO_BYTES), end // ZERO_BYTES * ZERO_BYTES
    if low >= high:
        write_at(descriptor, start, [memoryview(bytes(length))])
        return
    write_at(descriptor, start, [memoryview(bytes(low - start))])
    punch_or_zero(descriptor, low, high - low)
    write_at(descriptor, high, [memoryview(bytes(end - high))])
