"""`protect --seed FILE`: a raw copy of the disk that was carried over becomes the recovery volume. Blocking.

FILE is only read: it is cloned (FICLONE) where the file system can, else copied without its holes. If it is the recovery path itself, it is
taken over as it is; then it changes with the volume from the first event on, and is never deleted by us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from pathlib import Path

from rephub.consumers.diskbox.files import storage_errors, sync_directory
from rephub.consumers.diskbox.recovery import file_allocation
from rephub.core.errors import ConflictError, NotFoundError, UsageError

FICLONE = 0x40049409
"""linux/fs.h, _IOW(0x94, 9, int): share all extents of another file."""

QEMU_WRITE_LOCK = 101
"""The byte of an image that QEMU locks while somebody of it writes (block/file-posix.c: RAW_LOCK_PERM_BASE + BLK_PERM_WRITE)."""

COPY_BYTES = 16 << 20
"""One copy_file_range: short enough to be stopped between two."""

IMAGES = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"conectix": "vpc",
    b"vhdxfile": "vhdx",
    b"QED\0": "qed",
}
"""How images begin that are not raw: their content is not the disk's."""


def check_seed(seed: Path, size_bytes: int) -> None:
    """Whether a file can be a copy of a disk of this size.

    Raises:
        UsageError: its path is not absolute.
        NotFoundError: there is no such file.
        ConflictError: no plain file, no raw image, or of another size.
        StorageError: it cannot be read.
    """
    if not seed.is_absolute():
        raise UsageError(
            f"the seed path {seed} is not absolute", hint="diskboxes have their own working directory"
        )
    if not seed.exists():
        raise NotFoundError(
            f"seed {seed} is not there", hint="name a file on the diskbox's host", path=str(seed)
        )
    with storage_errors("read", seed):
        if not stat.S_ISREG(seed.stat().st_mode):
            raise ConflictError(
                f"seed {seed} is no plain file", hint="copy the disk into a raw file", path=str(seed)
            )
        with seed.open("rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
    for magic, kind in IMAGES.items():
        if head.startswith(magic):
            raise ConflictError(
                f"seed {seed} is a {kind} image, not a raw one",
                hint=f"qemu-img convert -O raw {seed} NEW-FILE",
                path=str(seed),
            )
    if size != size_bytes:
        raise ConflictError(
            f"seed {seed} has {size} bytes, the disk {size_bytes}",
            hint="name a raw copy of this disk, not cut and not padded",
            path=str(seed),
            seed_bytes=size,
            disk_bytes=size_bytes,
        )


def check_not_written(path: Path) -> None:
    """Raise ConflictError if a QEMU has the image open for writing, as far as its locks say so."""
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, QEMU_WRITE_LOCK, 1, 0)
    with storage_errors("look at", path), path.open("rb") as file:
        found = struct.unpack("hhqqi4x", fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, lock))
    if found[0] != fcntl.F_UNLCK:
        raise ConflictError(
            f"{path} is in use: a QEMU writes to it",
            hint="power the VM of before off, then try again",
            path=str(path),
        )


def is_same(seed: Path, target: Path) -> bool:
    """Whether the seed is the recovery path itself."""
    return target.exists() and seed.exists() and seed.samefile(target)


def copy_seed(seed: Path, target: Path, stopped: threading.Event) -> None:
    """Make the target a durable copy of the seed; what was in it before is gone.

    Args:
        seed: as `check_seed` found it.
        target: where the copy goes.
        stopped: set to end a copy that takes long.

    Raises:
        StorageError: half a copy may be there.
    """
    with storage_errors(f"copy {seed} to", target):
        source = os.open(seed, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            copy = os.open(target, flags, 0o600)
            try:
                if not _clone(source, copy):
                    _copy_data(source, copy, stopped)
                os.fsync(copy)
            finally:
                os.close(copy)
        finally:
            os.close(source)
        sync_directory(target.parent)


def _clone(source: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, FICLONE, source)
    except OSError as exc:
        if exc.errno in (
            errno.EOPNOTSUPP,
            errno.ENOTTY,
            errno.EXDEV,
            errno.EINVAL,
            errno.ENOSYS,
            errno.EPERM,
        ):
            return False
        raise
    return True


def _copy_data(source: int, copy: int, stopped: threading.Event) -> None:
    """Without the holes."""
    size = os.fstat(source).st_size
    os.ftruncate(copy, size)
    start = 0
    for length, is_hole in file_allocation(source, 0, size):
        end = start + length
        while not is_hole and start < end:
            if stopped.is_set():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            start += _copy_some(source, copy, start, min(COPY_BYTES, end - start))
        start = end


def _copy_some(source: int, copy: int, start: int, length: int) -> int:
    try:
        done = os.copy_file_range(source, copy, length, start, start)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        done = os.pwrite(copy, os.pread(source, min(length, 1 << 20), start), start)
    if not done:
        raise OSError(errno.EIO, "the seed became shorter")
    return done
