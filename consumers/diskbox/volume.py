"""One recovery volume of a diskbox: made, opened, run, promoted, given back.

Layout: `volumes/<volume>/position.json` and, unless the operator named another place, `volumes/<volume>/data.raw`.
A target (file, device, NBD export) is ours if a position names it; the position is written before the file is made, so a crash in between leaves
nothing that would later be refused as somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rephub.consumers.diskbox import seeding
from rephub.consumers.diskbox.applier import Applier, CrashPoint, go_on
from rephub.consumers.diskbox.comparer import BOX_COMPARES_MAX, Comparer
from rephub.consumers.diskbox.files import storage_errors
from rephub.consumers.diskbox.position import FILE, Position, load_position, save_position
from rephub.consumers.diskbox.projector import PACE_SECONDS, Projector
from rephub.consumers.diskbox.recovery import RecoveryVolume, check_free, create_raw_file, remove_raw_file
from rephub.consumers.diskbox.recovery_targets import check_target, open_recovery
from rephub.core.errors import ConflictError, RephubError, StorageError, UnavailableError
from rephub.core.journal.port import JournalReader, JournalStore
from rephub.core.targets import is_ours_to_delete, target_kind
from rephub.projections.journal_fold import fresh_state
from rephub.projections.window import History

log = logging.getLogger(__name__)

TRIM_SECONDS = 10.0
"""Between two DeleteRecords of a volume."""


Owns = Callable[[str], Awaitable[bool]]


async def always(_volume: str) -> bool:
    """An `owns` for a diskbox that shares the log with nobody."""
    return True


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the catalogue wants of a volume."""

    volume: str
    size_bytes: int
    start_id: str
    epoch: int
    epoch_offset: int
    recovery: str | None
    history: History
    reason: str = "initial sync"
    """Of the gap until the first sync is complete."""
    inherited: bool = False
    """`recovery` was that of a lost diskbox: what is on it is this volume's."""
    seed: str | None = None
    failback: bool = False
    """`recovery` is the disk of before a fail-over: what is on it is nearly the volume, and somebody's."""


class BoxVolume:
    """A recovery volume of this diskbox.

    Args:
        directory: `volumes/<volume>`.
        store: of the journals.
        on_stopped: called with (volume, offset, error).
        on_resumed: called with (volume, offset).
        crash_point: see `applier.CRASH_POINTS`.
        pace_seconds: see `projector.PACE_SECONDS`.
        owns: asks the log whether the volume is still this diskbox's; see `ownership.py`.
        compare_gate: how much is compared at once, of the whole diskbox.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        store: JournalStore,
        *,
        on_stopped: Callable[[str, int, RephubError], None],
        on_resumed: Callable[[str, int], None],
        crash_point: CrashPoint = go_on,
        pace_seconds: float = PACE_SECONDS,
        owns: Owns = always,
        compare_gate: asyncio.Semaphore | None = None,
    ) -> None:
        self.name = name
        self._owns = owns
        self.directory = directory
        self._store = store
        self._on_stopped, self._on_resumed = on_stopped, on_resumed
        self._crash_point = crash_point
        self._pace_seconds = pace_seconds
        self._compare_gate = compare_gate or asyncio.Semaphore(BOX_COMPARES_MAX)
        self.position: Position | None = None
        self.projector: Projector | None = None
        self.comparer: Comparer | None = None
        self.rejoined_epoch = 0
        """Epoch of the attachment that a diverged journal was joined again with."""
        self._reader: JournalReader | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def make(self, wanted: Wanted) -> Position:
        """Make the recovery volume, or take over the one that is there for a new protection.

        Raises:
            ConflictError: somebody else's data are in its place, or it or the seed does not do; nothing was changed.
            NotFoundError: there is no such device, or no such seed.
            UsageError: a bad URI.
            StorageError: the disk refuses; nothing half-made is left.
            UnavailableError: the journal cannot be asked; try again.
        """
        old = await asyncio.to_thread(load_position, self.directory)
        if old is not None and old.ready and old.start_id == wanted.start_id:
            return old
        path = wanted.recovery or str(self.directory / "data.raw")
        ours = wanted.inherited or wanted.failback or (old is not None and old.path == path)
        seed = await self._seed(wanted, path)
        if wanted.failback and seed is not None:
            await asyncio.to_thread(seeding.check_not_written, seed)
        identity = await check_target(path, wanted.size_bytes, ours=ours)
        if (
            ours and old is not None and old.identity not in ("", identity)
        ):  # another device under the name of ours
            await check_target(path, wanted.size_bytes, ours=False)
        last_offset = await self._journal_end()
        epoch = max(wanted.epoch, old.applied.epoch if old else 0)
        joining = last_offset >= 0
        state = fresh_state(
            last_offset, wanted.size_bytes, epoch=epoch, joining=joining, reason=wanted.reason
        )
        position = Position(wanted.volume, path, wanted.start_id, state, last_offset, identity=identity)
        if seed is not None and seeding.is_same(seed, Path(path)):
            position = replace(position, taken_over=True)
        making = _Making(self.directory, wanted.size_bytes, old, seed)
        try:
            position = await asyncio.to_thread(making.make, position)
        finally:
            # The daemon ends: a thread that copies a large seed must not keep it.
            making.stopped.set()
        log.info(
            "volume=%s recovery_volume=%s size=%d first_offset=%d",
            self.name,
            path,
            wanted.size_bytes,
            last_offset + 1,
        )
        return position

    async def _seed(self, wanted: Wanted, path: str) -> Path | None:
        """The seed, if there is one and it does. Raises: as `make`."""
        if wanted.seed is None:
            return None
        if target_kind(path) != "file":
            raise ConflictError(
                f"a seed cannot be copied to {path}: only to a recovery volume that is a file",
                hint="leave --seed out, or name a file with --recovery",
                path=path,
            )
        seed = Path(wanted.seed)
        await asyncio.to_thread(seeding.check_seed, seed, wanted.size_bytes)
        return seed

    async def _journal_end(self) -> int:
        reader = self._store.reader(self.name)
        try:
            await reader.start()
            return await reader.next_offset() - 1
        finally:
            await reader.close()

    async def open(self, history: History) -> None:
        """Load the position and start the projector, unless the volume is promoted or retired.

        Raises:
            StorageError: position or recovery volume cannot be opened.
            UnavailableError: the journal cannot be asked.
        """
        position = await asyncio.to_thread(load_position, self.directory)
        if position is None or not position.ready:
            raise StorageError(
                f"{self.directory / FILE} is missing", hint="unprotect with --purge and protect again",
                path=str(self.directory / FILE),
            )  # fmt: skip
        if position.promoted or position.retired:
            self.position = position
            return
        recovery = await open_recovery(position)
        reader = self._store.reader(self.name)
        try:
            await reader.start()
        except BaseException:
            await recovery.close()
            raise
        self.position, self._reader = position, reader
        applier = Applier(self.directory, position, recovery, self._crash_point)

        async def reopen() -> None:
            await applier.recovery.reopen(applier.position.applied.size_bytes)

        self.projector = Projector(
            self.name, applier, reader, history, reopen=reopen, pace_seconds=self._pace_seconds,
            on_stopped=lambda offset, error: self._on_stopped(self.name, offset, error),
            on_resumed=lambda offset: self._on_resumed(self.name, offset),
        )  # fmt: skip
        self.comparer = Comparer(self.projector, self._compare_gate)

    def start(self) -> list[asyncio.Task[None]]:
        """Let the projector run; pins of before must be set by now. Returns the tasks, to be watched."""
        if self.projector is not None and self.comparer is not None and not self._tasks:
            self._tasks = [
                asyncio.create_task(self.projector.run(), name=f"projector {self.name}"),
                asyncio.create_task(self.comparer.run(), name=f"compare {self.name}"),
                asyncio.create_task(self._trim_for_ever(self.projector), name=f"trim {self.name}"),
            ]
        return self._tasks

    async def _trim_for_ever(self, projector: Projector) -> None:
        """Free what is applied; the record at the applied offset stays, to recognise the journal by."""
        trimmed = -1
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            applied = projector.applier.applied_offset
            if applied <= max(trimmed, 0) or projector.divergence is not None:
                continue
            below = min([applied, *projector.pins.values()])
            with contextlib.suppress(UnavailableError):
                if await self._owns(self.name):
                    await self._store.admin().delete_records(self.name, below)
                    trimmed = applied

    async def close(self) -> None:
        """Stop the projector and let go of files; the position stays as it is."""
        if self.projector is not None:
            await (await self.hand_over()).close()

    async def hand_over(self) -> RecoveryVolume:
        """Stop the projector; the recovery volume, still open, is the caller's. Raises ConflictError: not projected."""
        projector = self.projector
        if projector is None:
            raise ConflictError(f"{self.name} is not projected now", volume=self.name)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.position = projector.applier.position
        self.projector = self.comparer = None
        if self._reader is not None:
            await self._reader.close()
            self._reader = None
        return projector.applier.recovery

    async def rejoin(self, wanted: Wanted) -> None:
        """After a divergence: forget all points, start at the EpochStarted of a later attachment.

        Raises: as `open`.
        """
        history = wanted.history
        await self.close()
        if self.position is None:
            raise StorageError(f"{self.directory / FILE} is missing")
        state = fresh_state(
            wanted.epoch_offset - 1,
            wanted.size_bytes,
            epoch=wanted.epoch - 1,
            joining=True,
            reason="journal diverged",
        )
        position = replace(self.position, applied=state, intent_offset=state.last_offset)
        await asyncio.to_thread(save_position, self.directory, position)
        self.rejoined_epoch = wanted.epoch
        await self.open(history)

    async def mark_promoted(self, promotion: str, offset: int) -> None:
        """Record that the recovery volume is exactly a point. Raises StorageError."""
        if self.projector is None:
            raise ConflictError(f"{self.name} is not projected")
        applier = self.projector.applier
        await applier.update(replace(applier.position, promoted={"promotion": promotion, "offset": offset}))
        self.position = applier.position

    async def release(self, *, purge: bool) -> None:
        """End: keep the data and remember that they are ours, or delete everything but devices and NBD exports.

        Raises:
            StorageError: the disk refuses; may be tried again.
        """
        await self.close()
        position = self.position or await asyncio.to_thread(load_position, self.directory)
        if position is not None:
            await asyncio.to_thread(_release_files, self.directory, position, purge)
        self.position = None


@dataclass(slots=True)
class _Making:
    """What a new recovery volume is made of; `make` is blocking."""

    directory: Path
    size_bytes: int
    old: Position | None
    """What was there of an earlier protection."""
    seed: Path | None
    stopped: threading.Event = field(default_factory=threading.Event)

    def make(self, position: Position) -> Position:
        """Position and file; all or nothing. Raises: as `BoxVolume.make`."""
        return _make_files(self, position)


def _make_files(making: _Making, position: Position) -> Position:
    directory, size_bytes, old = making.directory, making.size_bytes, making.old
    if not is_ours_to_delete(position.path):
        with storage_errors("create", directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        position = replace(position, ready=True)
        save_position(directory, position)
        return position
    path = Path(position.path)
    if not path.is_absolute():
        raise ConflictError(f"the recovery path {path} is not absolute", path=str(path))
    ours = old is not None and old.path == position.path
    if not ours and not position.taken_over:
        check_free(path)
    existed, directory_existed = path.exists(), directory.exists()
    try:
        with storage_errors("create", directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_position(directory, position)
        if position.taken_over:
            log.info("volume=%s seed=taken_over path=%s", position.volume, path)
        elif making.seed is not None:
            seeding.copy_seed(making.seed, path, making.stopped)
        elif ours and existed:
            with storage_errors("resize", path):
                os.truncate(path, size_bytes)
        else:
            create_raw_file(path, size_bytes)
        position = replace(position, ready=True)
        save_position(directory, position)
    except RephubError:
        if not ours and not position.taken_over:
            remove_raw_file(path, existed=existed)
        if not directory_existed:
            shutil.rmtree(directory, ignore_errors=True)
        elif old is None:
            (directory / FILE).unlink(missing_ok=True)
        else:
            with contextlib.suppress(StorageError):
                save_position(directory, old)
        raise
    return position


def _release_files(directory: Path, position: Position, purge: bool) -> None:
    if not purge:
        save_position(directory, replace(position, retired=True))
        return
    if is_ours_to_delete(position.path) and not position.taken_over:
        path = Path(position.path)
        with storage_errors("delete", path):
            path.unlink(missing_ok=True)
    with storage_errors("delete", directory):
        shutil.rmtree(directory, ignore_errors=False)
