"""Files: small ones written durably, large ones read and written in threads, and the system's errors as ours."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rephub.core.errors import StorageError

_P = ParamSpec("_P")
_T = TypeVar("_T")

IO_THREADS = 16
"""For all recovery volumes and scratches: enough for a deep queue on one disk, few enough to be cheap."""
_threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="diskbox-io")

READ_NOW_BYTES_MAX = 256 << 10
"""Copied out of the page cache in the loop at most: some 30 µs; a thread takes that long to begin."""

_HINTS = {
    errno.ENOSPC: "free space there; it goes on by itself",
    errno.EDQUOT: "raise the quota; it goes on by itself",
    errno.EIO: "look at the disk and the kernel's log",
    errno.EACCES: "give the daemon's user access",
    errno.ENOENT: "make the directory first",
    errno.EBUSY: "it is mounted, or something else uses it; it goes on by itself",
    errno.EFBIG: "the file system cannot hold a file of that size",
}


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn OSError into StorageError that names the action and the path."""
    try:
        yield
    except OSError as exc:
        number = exc.errno or errno.EIO
        raise StorageError(
            f"cannot {action} {path}: {os.strerror(number)}",
            hint=_HINTS.get(number, ""),
            errno=number,
            path=str(path),
        ) from exc


def is_full(error: StorageError) -> bool:
    """Whether the error goes away when somebody makes room."""
    return error.fields.get("errno") in (errno.ENOSPC, errno.EDQUOT)


def is_away(error: StorageError) -> bool:
    """Whether what holds the data does not answer, and may come back at any moment: an NBD server."""
    return error.fields.get("errno") in (errno.ENOTCONN, errno.ETIMEDOUT)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash it holds the old content or the new one, whole.

    Raises:
        StorageError: nothing changed, or (where the directory's sync failed) the new content may not last.
    """
    temporary = path.with_name(path.name + ".new")
    with storage_errors("write", path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def short_name(name: str) -> str:
    """A name for files and sockets that is as long for any name, and safe: paths of sockets end at 108 bytes."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class ThreadedFile:
    """A file descriptor that threads use; closed for real once the last of them is done.

    Otherwise a number that was closed and given to another file meanwhile would be read or written.

    Args:
        descriptor: owned from here on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()
        self._can_read_now = True

    def read_now(self, start: int, length: int) -> bytearray | None:
        """`length` bytes from the page cache, without a thread; None: not all of them are there (preadv2, RWF_NOWAIT)."""
        if not self._can_read_now or length > READ_NOW_BYTES_MAX or self._closing:
            return None
        data = bytearray(length)
        try:
            count = os.preadv(self._descriptor, [data], start, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError:
            # The file system cannot tell; another error is found again by whoever reads in a thread.
            self._can_read_now = False
            return None
        return data if count == length else None

    async def run(
        self, function: Callable[Concatenate[int, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call `function(descriptor, …)` in a thread. Raises OSError(EBADF) after `close`."""
        with self._lock:
            if self._closing:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        future = _threads.submit(function, self._descriptor, *args, **kwargs)
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def _release(self, _future: Future[Any]) -> None:
        with self._lock:
            self._users -= 1
            if self._closing and not self._users:
                os.close(self._descriptor)

    def close(self) -> None:
        """No further use; may be called twice."""
        with self._lock:
            if not self._closing and not self._users:
                os.close(self._descriptor)
            self._closing = True
