"""A disk in memory that loses what was not synced: files and directory entries, below `os` and `Path`.

`installed` puts it under the modules of `consumers/diskbox` that keep files; they know nothing of it. A write goes to the
page cache; only fsync makes it durable, an entry only the fsync of its directory. `power_cut` keeps of the rest what the
seed says: each sector of 512 bytes for itself, so that writes are torn; entries in order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from rephub.consumers.diskbox import files, recovery, recovery_targets, volume

SECTOR_BYTES = 512


class Inode:
    """A file: what programs see, and what a power cut leaves."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []
        """Writes since the last sync; a start of -1: a new size."""

    def write(self, start: int, content: bytes) -> None:
        if len(self.data) < start:
            self.data.extend(bytes(start - len(self.data)))
        self.data[start : start + len(content)] = content
        self.pending.append((start, content))

    def resize(self, size: int) -> None:
        _resize(self.data, size)
        self.pending.append((-1, size.to_bytes(8, "big")))

    def sync(self) -> None:
        if self.pending:
            self.durable = bytearray(self.data)
            self.pending.clear()

    def settled(self, kept: Callable[[], bool]) -> bytearray:
        """What is on the medium if of what is pending these parts got there."""
        found = bytearray(self.durable)
        for start, content in self.pending:
            if start < 0:
                if kept():
                    _resize(found, int.from_bytes(content, "big"))
                continue
            for at in range(0, len(content), SECTOR_BYTES):
                if kept():
                    piece = content[at : at + SECTOR_BYTES]
                    if len(found) < start + at:
                        found.extend(bytes(start + at - len(found)))
                    found[start + at : start + at + len(piece)] = piece
        return found

    def settle(self, kept: Callable[[], bool]) -> None:
        """Make that so; the rest is forgotten."""
        self.durable = self.settled(kept)
        self.pending.clear()
        self.data = bytearray(self.durable)


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


class Disk:
    """One disk with one directory tree; descriptors are its own.

    Args:
        seed: what a power cut leaves.
        fault: asked before each operation by name; an errno fails it.
    """

    def __init__(self, seed: random.Random, fault: Callable[[str], int] = lambda _operation: 0) -> None:
        self._random = seed
        self.fault = fault
        self.entries: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self._renames: list[Callable[[dict[str, Inode]], None]] = []
        self._descriptors: dict[int, Inode | None] = {}
        self._next = 100
        self.fuse: tuple[int, Callable[[], None]] | None = None
        """After so many further operations something happens, once."""
        self.unsynced = 0
        """Power cuts that met something not synced."""

    def power_cut(self) -> bool:
        """Everything not synced is lost, torn or kept; says whether there was something."""
        inodes = {id(inode): inode for inode in [*self.entries.values(), *self.durable.values()]}
        found = bool(self._renames) or any(inode.pending for inode in inodes.values())
        for rename in self._renames[: self._random.randint(0, len(self._renames))]:
            rename(self.durable)
        self._renames.clear()
        share = self._random.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        for inode in inodes.values():
            inode.settle(lambda: self._random.random() < share)
        self.entries = dict(self.durable)
        self._descriptors.clear()
        self.unsynced += found
        return found

    def after_cut(self, share: float) -> dict[str, bytes]:
        """What a power cut would leave now that keeps so much of what is not synced; nothing changes."""
        entries = dict(self.durable)
        for rename in self._renames[: round(len(self._renames) * share)]:
            rename(entries)
        return {
            name: bytes(inode.settled(lambda: self._random.random() < share))
            for name, inode in entries.items()
        }

    def load(self, contents: dict[str, bytes]) -> None:
        """Hold these files, durably, and nothing else."""
        self.entries = {}
        for name, content in contents.items():
            inode = self.entries[name] = Inode()
            inode.data, inode.durable = bytearray(content), bytearray(content)
        self.durable = dict(self.entries)
        self._renames.clear()
        self._descriptors.clear()

    def rmtree(self, path: Any, **_: Any) -> None:
        """As shutil's."""
        for name in [name for name in self.entries if name.startswith(f"{path}/")]:
            SimPath(name).unlink()

    def read_durable(self, path: str) -> bytes:
        """What a power cut that loses all that is not synced would leave."""
        return bytes(self.durable[path].durable)

    def _count(self) -> None:
        if self.fuse is not None:
            left, then = self.fuse
            self.fuse = (left - 1, then) if left else None
            if not left:
                then()

    def _check(self, operation: str) -> None:
        self._count()
        if number := self.fault(operation):
            raise OSError(number, os.strerror(number))

    def _entry(self, change: Callable[[dict[str, Inode]], None]) -> None:
        change(self.entries)
        self._renames.append(change)

    # What `os` has.

    def open(self, path: Any, flags: int, _mode: int = 0) -> int:
        name = str(path)
        inode: Inode | None = None
        if not flags & os.O_DIRECTORY:
            if name not in self.entries:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
                self._check("create")
                made = Inode()
                self._entry(lambda entries: entries.__setitem__(name, made))
            inode = self.entries[name]
            if flags & os.O_TRUNC and inode.data:
                inode.resize(0)
        self._next += 1
        self._descriptors[self._next] = inode
        return self._next

    def close(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)

    def _inode(self, descriptor: int) -> Inode:
        inode = self._descriptors.get(descriptor)
        if inode is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return inode

    def write(self, descriptor: int, content: memoryview) -> int:
        self._check("write")
        inode = self._inode(descriptor)
        # A short write now and then: whoever writes has to go on.
        part = bytes(content[: max(1, len(content) // 2)] if self._random.random() < 0.1 else content)
        inode.write(len(inode.data), part)
        return len(part)

    def pwrite(self, descriptor: int, content: memoryview, start: int) -> int:
        return self.pwritev(descriptor, [content], start)

    def pwritev(self, descriptor: int, buffers: Sequence[memoryview], start: int) -> int:
        self._check("write")
        content = b"".join(buffers)
        if len(content) > 1 and self._random.random() < 0.1:
            content = content[: len(content) // 2]
        self._inode(descriptor).write(start, content)
        return len(content)

    def fallocate(self, descriptor: int, _mode: int, start: int, length: int) -> int:
        self._check("punch")
        inode = self._inode(descriptor)
        end = min(start + length, len(inode.data))
        if end > start:
            inode.write(start, bytes(end - start))
        return 0

    def pread(self, descriptor: int, length: int, start: int) -> bytes:
        self._check("read")
        return bytes(self._inode(descriptor).data[start : start + length])

    def preadv(self, descriptor: int, buffers: Sequence[bytearray], start: int, _flags: int) -> int:
        """Only RWF_NOWAIT is asked for: now and then not all is in the page cache."""
        if self._random.random() < 0.5:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        (buffer,) = buffers
        content = self._inode(descriptor).data[start : start + len(buffer)]
        buffer[: len(content)] = content
        return len(content)

    def fsync(self, descriptor: int) -> None:
        inode = self._descriptors[descriptor]
        self._count()
        number = self.fault("sync")
        if inode is None:
            if number:
                raise OSError(number, os.strerror(number))
            for rename in self._renames:
                rename(self.durable)
            self._renames.clear()
        elif number:
            # As Linux: the pages may be dropped, and count as clean from here on.
            if self._random.random() < 0.5:
                inode.settle(lambda: self._random.random() < 0.5)
            raise OSError(number, os.strerror(number))
        else:
            inode.sync()

    fdatasync = fsync

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._inode(descriptor).resize(size)

    def truncate(self, path: Any, size: int) -> None:
        self.entries[str(path)].resize(size)

    def fstat(self, descriptor: int) -> Any:
        return SimpleNamespace(st_size=len(self._inode(descriptor).data))


class SimPath(PurePosixPath):
    """A path on the installed disk."""

    disk: Disk
    __slots__ = ()

    def exists(self) -> bool:
        return str(self) in self.disk.entries

    def is_file(self) -> bool:
        return self.exists()

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> Any:
        return SimpleNamespace(st_size=len(self.disk.entries[str(self)].data))

    def mkdir(self, **_: Any) -> None:
        """Directories are everywhere."""

    def read_bytes(self) -> bytes:
        self.disk._check("read")
        return bytes(self.disk.entries[str(self)].data)

    def write_bytes(self, content: bytes) -> int:
        descriptor = self.disk.open(self, os.O_CREAT | os.O_TRUNC)
        self.disk._check("write")
        self.disk._inode(descriptor).write(0, content)
        self.disk.close(descriptor)
        return len(content)

    def iterdir(self) -> Iterator[SimPath]:
        for name in list(self.disk.entries):
            if name.rpartition("/")[0] == str(self):
                yield SimPath(name)

    def replace(self, target: Any) -> None:  # type: ignore[override]
        source, name = str(self), str(target)
        inode = self.disk.entries[source]

        def rename(entries: dict[str, Inode]) -> None:
            entries.pop(source, None)
            entries[name] = inode

        self.disk._entry(rename)

    def unlink(self, missing_ok: bool = False) -> None:
        if self.exists():
            name = str(self)
            self.disk._entry(lambda entries: entries.pop(name, None))
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))


class _Os:
    """`os`, with the disk's calls in front."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk if hasattr(Disk, name) else os, name)


class Threads:
    """A thread pool of the event loop: jobs run after a while, in the process that asked."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        self._loop.call_later(self._loop.latency(), run)
        return future


@contextlib.contextmanager
def installed(disk: Disk, loop: Any) -> Iterator[None]:
    """The diskbox keeps its files on this disk."""
    SimPath.disk = disk
    facade = _Os(disk)
    with contextlib.ExitStack() as stack:
        for module in (files, recovery, volume):
            stack.enter_context(patch.object(module, "os", facade))
        for module in (recovery_targets, volume):
            stack.enter_context(patch.object(module, "Path", SimPath))
        stack.enter_context(patch.object(volume, "shutil", SimpleNamespace(rmtree=disk.rmtree)))
        stack.enter_context(patch.object(recovery, "_fallocate", disk.fallocate))
        stack.enter_context(patch.object(files, "_threads", Threads(loop)))
        yield
