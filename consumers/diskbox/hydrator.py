"""Hydration: a view's part of the journal is copied into a file beside it, in the background.

Needed are the events that the view shows anything of. They are written in journal order, so that of two the newer one wins, as
in the view. A read that the index sends to an event may take the file as soon as that event was written: what it wants of
the event is covered by no later one, so nothing that is still to be written touches it. What it wants of a later event
comes from the journal as before: each read is right at every moment, whatever the hydrator does.

The file holds nothing that the journal does not: it is made anew by each life of the diskbox, and without it views are slower.
"""

from __future__ import annotations

import asyncio
import logging
import os
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.recovery import read_file, write_all
from rephub.core.errors import IntegrityError, RephubError, StorageError, UnavailableError
from rephub.projections.coalesce import Change, changed_length, coalesce
from rephub.projections.index import DATA, HYDRATED, RECOVERY, ZERO, Piece
from rephub.projections.view import ABSENT, BLOCK_BYTES, FOLDED, HELD, ZEROED, BlockMap, Lookup
from rephub.schemas.journal import SyncData, Write

PLAN_BYTES = 256 << 10
"""Of the volume, looked up at once: about a millisecond of the loop where 1 M events changed 1 GiB."""
STEP_BYTES = 2 << 20
"""Of the journal, fetched and written at once."""
RETRY_SECONDS = 1.0
LOOK_SECONDS = 0.1

RESERVE_SHARE, RESERVE_BYTES_MAX = 0.05, 10 << 30
"""Of the file system, left free: recovery volumes and scratches on it need the room more."""

MIXED = FOLDED
"""Of a block that more than one piece lies in: it is looked up as ever."""
_KINDS = {ABSENT: RECOVERY, HELD: HYDRATED, ZEROED: ZERO}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pace:
    """How fast views are hydrated; may be changed at any time.

    `bytes_per_second`: 0: as fast as it goes. `stopped`: not at all.
    """

    bytes_per_second: int
    stopped: bool = False


class GoneError(Exception):
    """What was planned to be read from the file is to be planned anew: there is no file any more."""


class Hydrator:
    """Of one view.

    Args:
        projector: of the volume.
        offset: the view's point.
        size_bytes: of the view.
        path: of the file.
        pace: how fast.
    """

    def __init__(self, projector: Projector, offset: int, size_bytes: int, path: Path, pace: Pace) -> None:
        self._projector = projector
        self._offset = offset
        self._size_bytes = size_bytes
        self._path = path
        self._pace = pace
        self._file: ThreadedFile | None = None
        self._needed: list[int] = []
        self._blocks = np.zeros(-(-size_bytes // BLOCK_BYTES), np.uint8)
        self._map: BlockMap | None = None
        self._skipped = False
        """Some needed events are not in the file, as they are in the recovery volume."""
        self._done_upto = -1
        """Needed events up to this offset are in the file."""
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        """A write that goes on in its thread, whoever gave up waiting for it."""
        self.state = "waiting"
        """waiting, planning, running, done, stopped or failed."""
        self.problem = ""
        self.done_events = 0
        self.total_events = 0
        self.bytes = 0
        """Written to the file."""

    def plan(self, start: int, length: int, lookup: Lookup) -> list[Piece]:
        """As `Index.lookup` at the view's point, without it where possible: once all is in the file."""
        blocks = self._map
        if blocks is None:
            return lookup(start, length)
        pieces: list[Piece] = []
        for first, count, state in blocks.runs(start, length):
            if state == MIXED:
                pieces += lookup(first, count)
            else:
                pieces.append(Piece(first, count, _KINDS[state]))
        return pieces

    def holds(self, journal_offset: int) -> bool:
        """Whether what a view wants of an event may be read here."""
        return journal_offset <= self._done_upto and self._file is not None

    async def pread(self, start: int, length: int) -> bytes | bytearray:
        """What the file holds. Raises StorageError; GoneError: it holds nothing any more."""
        file = self._file
        if file is None:
            raise GoneError
        try:
            return await read_file(file, self._path, start, length)
        except StorageError:
            if self._file is not file:
                raise GoneError from None
            raise

    def status(self) -> dict[str, Any]:
        """How far it is."""
        return {
            "state": self.state, "done_events": self.done_events, "total_events": self.total_events, "bytes": self.bytes,
            "problem": self.problem,
        }  # fmt: skip

    def start(self) -> None:
        """Hydrate in the background, unless that is under way or done."""
        if self._task is None and not self._pace.stopped and self.state != "done":
            self._task = asyncio.create_task(self._run(), name=f"hydrate {self._path.stem}")

    async def complete(self, look: Callable[[], None]) -> None:
        """Hydrate, and wait until it is done or has failed; then reads are as slow as before.

        Args:
            look: called now and then; what it raises ends the wait.
        """
        self.start()
        while self._task is not None:
            look()
            await asyncio.wait([self._task], timeout=LOOK_SECONDS)

    async def stop(self) -> None:
        """Give up; what is there stays of use until `close`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        # Or a later life of this would write newer data, and it older ones over them.
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing = None
        if self.state != "done":
            self.state = "stopped"

    async def close(self) -> None:
        """Stop, and delete the file."""
        await self.stop()
        self._forget()

    def _forget(self) -> None:
        self._done_upto, self._map = -1, None
        if self._file is not None:
            self._file.close()
            self._file = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _run(self) -> None:
        try:
            if self._file is None:
                self.state, self.problem = "planning", ""
                await self._plan()
            if self.total_events:
                if self._file is None:
                    self._open()
                self.state = "running"
                await self._copy()
            self.state = "done"
            # From now on all is either in the file or in the recovery volume, and stays there.
            if not self._skipped:
                self._map = BlockMap(bytearray(self._blocks))
        except RephubError as exc:
            # Views read the journal as before.
            log.warning("view=%s not_hydrated=%s", self._path.stem, exc.message)
            self._forget()
            self.state, self.problem = "failed", exc.message
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _plan(self) -> None:
        """Find the events that the view shows anything of."""
        index, clock = self._projector.index, asyncio.get_running_loop().time
        needed: set[int] = set()
        self._skipped = False
        self._blocks[:] = ABSENT
        for start, end in index.touched(index.applied_offset, self._offset, 1 << 16):
            for first in range(start, min(end, self._size_bytes), PLAN_BYTES):
                began = clock()
                length = min(PLAN_BYTES, end - first, self._size_bytes - first)
                for piece in index.lookup(first, length, self._offset):
                    self._mark(piece)
                    if piece.kind == DATA:
                        needed.add(piece.journal_offset)
                # As long as that took, the loop is for those who read.
                await asyncio.sleep(clock() - began)
        self._needed = sorted(needed)
        self.done_events, self.total_events = 0, len(needed)

    def _mark(self, piece: Piece) -> None:
        """Note where the blocks of a piece are; pieces come in ascending order."""
        state = {DATA: HELD, ZERO: ZEROED}.get(piece.kind, ABSENT)
        end = piece.start + piece.length
        first, next_ = -(-piece.start // BLOCK_BYTES), end // BLOCK_BYTES
        if end == self._size_bytes:
            next_ = len(self._blocks)
        self._blocks[first:next_] = state
        for block in {piece.start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES} - set(range(first, next_)):
            self._blocks[block] = MIXED

    def _open(self) -> None:
        with storage_errors("create", self._path):
            self._file = ThreadedFile(
                os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            )

    async def _copy(self) -> None:
        while self.done_events < self.total_events:
            first = self._needed[self.done_events]
            try:
                events = await self._projector.source.events(first, STEP_BYTES)
            except UnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except IntegrityError:
                # Applied and deleted meanwhile: the view has it from the recovery volume now.
                applied = self._projector.applier.applied_offset
                if first > applied:
                    raise
                # The index sends nobody to them any more; the map would.
                self._skipped = True
                self._advance(applied)
                continue
            changes: list[Change] = []
            last = self._needed[-1]
            for journal_offset, record in events:
                if self._needs(journal_offset):
                    if not isinstance(record, (Write, SyncData)):
                        raise IntegrityError(
                            f"the event at journal offset {journal_offset} cannot be read any more"
                        )
                    changes.append(record)
                if journal_offset >= last:
                    break
            await self._write(changes)
            self._advance(min(events[-1][0], last))
            if rate := self._pace.bytes_per_second:
                await asyncio.sleep(sum(map(changed_length, changes)) / rate)
            else:
                await asyncio.sleep(0)

    def _needs(self, journal_offset: int) -> bool:
        position = bisect_left(self._needed, journal_offset, self.done_events)
        return position < len(self._needed) and self._needed[position] == journal_offset

    async def _write(self, changes: list[Change]) -> None:
        assert self._file is not None
        _check_reserve(self._path)
        writes = coalesce(changes)
        with storage_errors("write", self._path):
            self._writing = asyncio.ensure_future(self._file.run(write_all, writes))
            await asyncio.shield(self._writing)
        self._writing = None
        self.bytes += sum(write.length for write in writes)

    def _advance(self, journal_offset: int) -> None:
        self.done_events = bisect_left(self._needed, journal_offset + 1, self.done_events)
        self._done_upto = max(self._done_upto, journal_offset)


def _check_reserve(path: Path) -> None:
    """Raise StorageError if the file system is nearly full."""
    with storage_errors("look at", path):
        found = os.statvfs(path.parent)
    reserve = min(found.f_blocks * found.f_frsize * RESERVE_SHARE, RESERVE_BYTES_MAX)
    if found.f_bavail * found.f_frsize < reserve:
        raise StorageError(f"the file system of {path} is nearly full", path=str(path))
