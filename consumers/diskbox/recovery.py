"""The recovery volume port, and its adapter for raw sparse files.

Block devices (`recovery_device.py`) and NBD URIs (`recovery_nbd.py`) are further adapters of the same port;
`recovery_targets.py` chooses. Every method may be called while others run; the order of overlapping calls is the caller's
business. All raise StorageError.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors, sync_directory
from rephub.core.errors import ConflictError
from rephub.projections.coalesce import DeviceWrite

IOV_MAX = 1024
"""Buffers of one pwritev (limits.h)."""
_PUNCH_HOLE, _KEEP_SIZE, _ZERO_RANGE = 0x02, 0x01, 0x10
_ZERO_CHUNK = bytes(1 << 20)


class RecoveryVolume(Protocol):
    """The disk that a journal is applied to."""

    path: str

    async def size(self) -> int:
        """Bytes."""

    async def check_room(self, size_bytes: int) -> None:
        """Raise StorageError, ENOSPC, if the volume could not grow to this size; nothing is changed."""

    async def resize(self, size_bytes: int) -> None:
        """Grow with zeroes, or cut."""

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """Exactly `length` bytes; what lies beyond the end reads as zeroes."""

    async def write(self, writes: Sequence[DeviceWrite]) -> None:
        """Apply disjoint writes; zeroes become holes where the medium can. Not durable before `fdatasync`."""

    async def fdatasync(self) -> None:
        """Make everything written durable.

        Raises:
            StorageError: nobody knows what is on disk; close, open anew and write it all again.
        """

    async def allocation(self, start: int, length: int) -> list[tuple[int, bool]]:
        """[(length, is_hole)] that cover the range; a hole reads as zeroes."""

    async def reopen(self, size_bytes: int) -> None:
        """After a StorageError: open anew. Writes since the last `fdatasync` count as lost; the caller makes them again.

        Args:
            size_bytes: of the volume as it was at the last durable position.
        """

    async def close(self) -> None:
        """Let go; never raises."""


class RawFile:
    """A raw sparse file as a RecoveryVolume.

    Args:
        path: of an existing file.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._path = path
        with storage_errors("open", path):
            self._file = self._open()

    def _open(self) -> ThreadedFile:
        return ThreadedFile(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))

    async def size(self) -> int:
        """See `RecoveryVolume.size`."""
        with storage_errors("look at", self._path):
            return (await self._file.run(os.fstat)).st_size

    async def check_room(self, size_bytes: int) -> None:
        """See `RecoveryVolume.check_room`; a sparse file grows without taking space."""

    async def resize(self, size_bytes: int) -> None:
        """See `RecoveryVolume.resize`."""
        with storage_errors("resize", self._path):
            await self._file.run(os.ftruncate, size_bytes)

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """See `RecoveryVolume.pread`."""
        return await read_file(self._file, self._path, start, length)

    async def write(self, writes: Sequence[DeviceWrite]) -> None:
        """See `RecoveryVolume.write`."""
        with storage_errors("write", self._path):
            await self._file.run(write_all, writes)

    async def fdatasync(self) -> None:
        """See `RecoveryVolume.fdatasync`."""
        with storage_errors("sync", self._path):
            await self._file.run(os.fdatasync)

    async def allocation(self, start: int, length: int) -> list[tuple[int, bool]]:
        """See `RecoveryVolume.allocation`."""
        with storage_errors("look at", self._path):
            return await self._file.run(file_allocation, start, length)

    async def reopen(self, size_bytes: int) -> None:  # noqa: ARG002 - the file knows its size
        """See `RecoveryVolume.reopen`."""
        with storage_errors("open", self._path):
            old, self._file = self._file, self._open()
        old.close()

    async def close(self) -> None:
        """See `RecoveryVolume.close`."""
        self._file.close()


async def read_file(file: ThreadedFile, path: Path, start: int, length: int) -> bytes | bytearray:
    """Exactly `length` bytes from `start` on, zeroes beyond the end. Raises StorageError."""
    data = file.read_now(start, length)
    if data is not None:
        return data
    with storage_errors("read", path):
        return await file.run(read_at, start, length)


def check_free(path: Path) -> None:
    """Raise ConflictError if something that is not empty, or no plain file, is at the path."""
    with storage_errors("look at", path):
        taken = path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size > 0))
    if taken:
        raise ConflictError(
            f"{path} exists and is not empty", hint="name a path that does not exist yet", path=str(path)
        )


def create_raw_file(path: Path, size_bytes: int) -> None:
    """Make an empty sparse file durably; blocking.

    Raises:
        ConflictError: something that is not empty is there.
        StorageError: it cannot be made; nothing is left of it.
    """
    check_free(path)
    existed = path.exists()
    with storage_errors("create", path):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(descriptor, size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(path.parent)
        except OSError:
            remove_raw_file(path, existed=existed)
            raise


def remove_raw_file(path: Path, *, existed: bool) -> None:
    """Undo `create_raw_file`: nothing, or the empty file of before, is left. Never raises."""
    with contextlib.suppress(OSError):
        if existed:
            os.truncate(path, 0)
        else:
            path.unlink(missing_ok=True)


def read_at(descriptor: int, start: int, length: int) -> bytes:
    """Exactly `length` bytes from `start` on, zeroes beyond the end."""
    data = os.pread(descriptor, length, start)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            return data + bytes(length - len(data))
        data += more
    return data


def write_all(descriptor: int, writes: Sequence[DeviceWrite]) -> None:
    """Apply device writes to a file."""
    for write in writes:
        if write.buffers is None:
            zero_range(descriptor, write.start, write.length)
        else:
            write_at(descriptor, write.start, write.buffers)


def write_at(descriptor: int, start: int, buffers: Sequence[memoryview]) -> None:
    """Write all buffers one after the other from `start` on."""
    if len(buffers) == 1:  # most are, and pwritev takes a third longer
        written = os.pwrite(descriptor, buffers[0], start)
        if written == len(buffers[0]):
            return
        start, buffers = start + written, [buffers[0][written:]]
    pending = list(buffers)
    first = 0
    while first < len(pending):
        batch = pending[first : first + IOV_MAX]
        written = os.pwritev(descriptor, batch, start)
        start += written
        while first < len(pending) and written >= len(pending[first]):
            written -= len(pending[first])
            first += 1
        if written:
            pending[first] = pending[first][written:]


def _load_fallocate() -> Callable[[int, int, int, int], int]:
    libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    function = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", function)


_fallocate = _load_fallocate()


def zero_range(descriptor: int, start: int, length: int) -> None:
    """Make a range of a file read as zeroes, as a hole where the file system can."""
    if _allocate(descriptor, _PUNCH_HOLE, start, length):
        return
    write_zeroes(descriptor, start, length)


def punch_or_zero(descriptor: int, start: int, length: int) -> None:
    """As `zero_range` for a block device: by discarding (BLKDEV_ZERO_NOFALLBACK), by its WRITE ZEROES, else written."""
    if not _allocate(descriptor, _PUNCH_HOLE, start, length) and not _allocate(
        descriptor, _ZERO_RANGE, start, length
    ):
        write_zeroes(descriptor, start, length)


def _allocate(descriptor: int, mode: int, start: int, length: int) -> bool:
    """fallocate(2) without a change of size; whether that is possible here. Raises OSError."""
    if _fallocate(descriptor, mode | _KEEP_SIZE, start, length) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
    return False


def write_zeroes(descriptor: int, start: int, length: int) -> None:
    """Write zeroes as data."""
    end = start + length
    while start < end:
        step = min(end - start, len(_ZERO_CHUNK))
        write_at(descriptor, start, [memoryview(_ZERO_CHUNK)[:step]])
        start += step


def file_allocation(descriptor: int, start: int, length: int) -> list[tuple[int, bool]]:
    """[(length, is_hole)] that cover a range of a file, by SEEK_DATA and SEEK_HOLE; beyond the end is a hole."""
    extents: list[tuple[int, bool]] = []
    position, end = start, start + length
    while position < end:
        try:
            data = min(os.lseek(descriptor, position, os.SEEK_DATA), end)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            data = end
        if data > position:
            extents.append((data - position, True))
        if data < end:
            hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
            extents.append((hole - data, False))
            data = hole
        position = data
    return extents
