"""An overlay: the blocks that a view's user wrote, in a sparse file beside the view, and the map that says which.

Two things may die, and the map has a file for each:

* **the process**: `live` is mapped into memory and changed after the data are written and before the write is answered. Both
  are then in the kernel, so the next process of the same boot finds every write that was answered.
* **the host**: the kernel may have written a part of `live` before the data it speaks of, so after another boot it is worth
  nothing. A *durable* overlay has `flushed`, too, which is written by `flush` alone: data first, then (where the overlay is
  being folded) the recovery volume, then the map. After a crash of the host a block that was flushed is there, and any
  other one holds what it held before or what was written to it; never zeroes that nobody wrote.

`overlay.json` says what the files are of: another point, volume or boot is refused, never shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors, sync_directory, write_durably
from rephub.consumers.diskbox.recovery import read_at, read_file, write_at, zero_range
from rephub.core.documents import checksum, parse_object
from rephub.core.errors import ConflictError, NotFoundError, StorageError
from rephub.projections.view import BLOCK_BYTES, FOLDED, HELD, ZEROED, BlockMap

FORMAT = 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAP_CHUNK_BYTES = 4096
"""Of the map, written as one: 16 MiB of the volume."""

Barrier = Callable[[], Awaitable[None]]
"""Makes durable what the map is about to speak of."""


class Overlay:
    """The files of one view.

    Made by `create` or `reopen`.

    Args:
        directory: holds them.
        name: of the view, for their names.
        size_bytes: of the view.
        bytes_max: of data blocks; None: as much as the disk holds.
        durable: survives the host.
    """

    def __init__(
        self, directory: Path, name: str, size_bytes: int, bytes_max: int | None, *, durable: bool
    ) -> None:
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max
        self.durable = durable
        self._directory, self._name = directory, name
        self._data_path = _path(directory, name, "data")
        self._blocks = -(-size_bytes // BLOCK_BYTES)
        self._changed: set[int] = set()
        """Chunks of the map that `flushed` does not have."""
        self._data: ThreadedFile
        self._live: mmap.mmap
        self._flushed = -1
        self._flush_lock = asyncio.Lock()
        self._failed: StorageError | None = None
        """A flush that failed is not made again."""
        self.map: BlockMap

    @classmethod
    def create(
        cls,
        directory: Path,
        name: str,
        size_bytes: int,
        bytes_max: int | None,
        identity: dict[str, Any],
        *,
        durable: bool,
    ) -> Overlay:
        """Make an empty one; what was there of the name is gone.

        Args:
            directory: exists.
            name: of the view.
            size_bytes: of the view.
            bytes_max: see the class.
            identity: of what it lies above; `reopen` compares it as far as it is given there.
            durable: survives the host.

        Raises:
            StorageError: it cannot be made; nothing is left.
        """
        overlay = cls(directory, name, size_bytes, bytes_max, durable=durable)
        remove(directory, name)
        try:
            overlay._open(os.O_CREAT | os.O_EXCL)
            # Last: files without it are not an overlay.
            write_durably(_path(directory, name, "json"), _document(size_bytes, identity, durable=durable))
        except StorageError:
            overlay.discard()
            raise
        return overlay

    @classmethod
    def reopen(
        cls, directory: Path, name: str, bytes_max: int | None, identity: dict[str, Any], *, durable: bool
    ) -> Overlay:
        """The one that another process has left.

        Raises:
            NotFoundError: there is none.
            ConflictError: it lies above something else, or the host has crashed or was started anew and it
                was not to survive that.
            StorageError: it cannot be read, or is damaged.
        """
        path = _path(directory, name, "json")
        document = _load(path)
        other = any(document["identity"].get(key) != value for key, value in identity.items())
        if other or document["durable"] != durable:
            raise ConflictError(f"the overlay {path} lies above something else")
        same_boot = document["boot"] == _boot_id()
        if not same_boot and not durable:
            raise ConflictError(f"the host was started anew since the overlay {path} was made")
        overlay = cls(directory, name, document["size_bytes"], bytes_max, durable=durable)
        overlay._open(0)
        try:
            if not same_boot:
                overlay._recall()
                write_durably(path, _document(overlay.size_bytes, document["identity"], durable=durable))
            elif durable:
                overlay._note_changed()
        except StorageError:
            overlay.close()
            raise
        return overlay

    def _open(self, flags: int) -> None:
        flags |= os.O_RDWR | os.O_CLOEXEC
        sizes = {"data": self._blocks * BLOCK_BYTES, "live": self._blocks, "flushed": self._blocks}
        opened: dict[str, int] = {}
        with storage_errors("open", self._data_path):
            try:
                for kind in ("data", "live", "flushed") if self.durable else ("data", "live"):
                    opened[kind] = os.open(_path(self._directory, self._name, kind), flags, 0o600)
                    if flags & os.O_CREAT:
                        os.ftruncate(opened[kind], sizes[kind])
                    else:
                        _check_size(opened[kind], sizes[kind], _path(self._directory, self._name, kind))
                if flags & os.O_CREAT:
                    sync_directory(self._directory)
                self._live = mmap.mmap(opened["live"], self._blocks)
            except BaseException:
                for descriptor in opened.values():
                    os.close(descriptor)
                raise
        os.close(opened["live"])
        self._data = ThreadedFile(opened["data"])
        self._flushed = opened.get("flushed", -1)
        self.map = BlockMap(self._live)

    def _recall(self) -> None:
        """After a crash of the host: the map is what the last flush made it."""
        with storage_errors("read", _path(self._directory, self._name, "flushed")):
            self._live[:] = read_at(self._flushed, 0, self._blocks)
        self.map = BlockMap(self._live)

    def _note_changed(self) -> None:
        """After a kill of the process: what it had not flushed is still to be flushed."""
        with storage_errors("read", _path(self._directory, self._name, "flushed")):
            for start in range(0, self._blocks, MAP_CHUNK_BYTES):
                live = self._live[start : start + MAP_CHUNK_BYTES]
                if live != read_at(self._flushed, start, len(live)):
                    self._changed.add(start // MAP_CHUNK_BYTES)

    def has_room(self, first_block: int, next_block: int) -> bool:
        """Whether data for all of [first, next) would stay within the limit."""
        if self.bytes_max is None:
            return True
        blocks = (
            self.map.held_blocks + (next_block - first_block) - self.map.count(HELD, first_block, next_block)
        )
        return blocks * BLOCK_BYTES <= self.bytes_max

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """What HELD blocks hold. Raises StorageError."""
        return await read_file(self._data, self._data_path, start, length)

    async def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole blocks; they are HELD when this returns. Raises StorageError."""
        with storage_errors("write", self._data_path):
            await self._data.run(write_at, start, [memoryview(data)])
        self._set(start // BLOCK_BYTES, -(-(start + len(data)) // BLOCK_BYTES), HELD)

    def zero(self, first_block: int, next_block: int) -> None:
        """Blocks that take no space and read as zeroes."""
        self._set(first_block, next_block, ZEROED)

    def mark_folded(self, first_block: int, next_block: int) -> None:
        """Blocks that are to be had from below again, and were written since the overlay began."""
        self._set(first_block, next_block, FOLDED)

    def _set(self, first_block: int, next_block: int, state: int) -> None:
        self.map.set(first_block, next_block, state)
        if self.durable:
            self._changed.update(
                range(first_block // MAP_CHUNK_BYTES, (next_block - 1) // MAP_CHUNK_BYTES + 1)
            )

    async def flush(self, barrier: Barrier | None = None) -> None:
        """Make what was written before the call survive the host; nothing to do unless durable.

        Args:
            barrier: makes the recovery volume durable, into which blocks are folded.

        Raises:
            StorageError: nobody knows what is on disk: the kernel may have dropped the pages, so no later flush succeeds.
        """
        if not self.durable:
            return
        # One after the other: a second one finds the chunks of the first taken, and must not be answered before they are
        # on disk; nor may the first write an older state of a chunk over that of the second.
        async with self._flush_lock:
            if self._failed is not None:
                raise self._failed
            await self._flush(barrier)

    async def _flush(self, barrier: Barrier | None) -> None:
        # As the map is now: what is written meanwhile belongs to the next flush.
        changed, self._changed = self._changed, set()
        chunks = [
            (
                chunk * MAP_CHUNK_BYTES,
                bytes(self._live[chunk * MAP_CHUNK_BYTES : (chunk + 1) * MAP_CHUNK_BYTES]),
            )
            for chunk in sorted(changed)
        ]
        try:
            with storage_errors("sync", self._data_path):
                await self._data.run(os.fdatasync)
            if barrier is not None:
                await barrier()
            if chunks:
                with storage_errors("sync", _path(self._directory, self._name, "flushed")):
                    await self._data.run(_write_chunks, self._flushed, chunks)
        except StorageError as exc:
            self._failed = exc
            raise
        except BaseException:
            self._changed |= changed
            raise

    async def drop_data(self) -> None:
        """Free the space of the data, of which nothing is HELD any more. Raises StorageError."""
        if self.map.held_blocks:
            raise RuntimeError(f"{self._data_path} is in use")
        with storage_errors("free", self._data_path):
            await self._data.run(zero_range, 0, self._blocks * BLOCK_BYTES)

    def close(self) -> None:
        """Let go of the files, which stay."""
        self._data.close()
        self.map.release()
        self._live.close()
        if self._flushed >= 0:
            os.close(self._flushed)
            self._flushed = -1

    def discard(self) -> None:
        """Let go, and delete the files."""
        if hasattr(self, "map"):
            self.close()
        remove(self._directory, self._name)


def remove(directory: Path, name: str) -> None:
    """Delete an overlay's files; the one that makes them an overlay first. Never raises."""
    for kind in ("json", "flushed", "live", "data"):
        with contextlib.suppress(OSError):
            _path(directory, name, kind).unlink(missing_ok=True)


def _path(directory: Path, name: str, kind: str) -> Path:
    return directory / f"{name}.{kind}"


def _write_chunks(_data: int, flushed: int, chunks: list[tuple[int, bytes]]) -> None:
    for start, content in chunks:
        write_at(flushed, start, [memoryview(content)])
    os.fdatasync(flushed)


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _document(size_bytes: int, identity: dict[str, Any], *, durable: bool) -> bytes:
    fields = {"boot": _boot_id(), "size_bytes": size_bytes, "durable": durable, "identity": identity}
    return json.dumps({"format": FORMAT, "crc32c": checksum(fields), **fields}, indent=1).encode()


def _load(path: Path) -> dict[str, Any]:
    """The document of an overlay. Raises NotFoundError: there is none; StorageError: it is damaged."""
    with storage_errors("read", path):
        if not path.exists():
            raise NotFoundError(f"there is no overlay {path}")
        content = path.read_bytes()
    try:
        return _parse(content)
    except ValueError as exc:
        raise StorageError(f"{path} is damaged: {exc}", path=str(path)) from exc


def _parse(content: bytes) -> dict[str, Any]:
    document = parse_object(content)
    if document.pop("format", None) != FORMAT or document.pop("crc32c", None) != checksum(document):
        raise ValueError("its checksum is wrong, or it is of another version")
    return document


def _check_size(descriptor: int, size_bytes: int, path: Path) -> None:
    if os.fstat(descriptor).st_size != size_bytes:
        raise StorageError(
            f"{path} has another size than it was made with",
            hint="it is damaged; what was written to the view is lost",
        )
