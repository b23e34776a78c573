"""The diskbox: folds `rephub.events`, compares the catalogue with what it holds, and does what is missing.

Nothing here reacts to a single event. After each batch, and once a second, a *round* goes over the catalogue and starts
jobs: make, open, release a recovery volume; start, stop a test; plan, copy, carry out a promotion. A job answers with
events whose ids follow from their causes, so one that is done again after a kill is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import uuid
from pathlib import Path

from rephub.consumers.diskbox.applier import CrashPoint, go_on
from rephub.consumers.diskbox.compare_jobs import CompareJobs
from rephub.consumers.diskbox.comparer import BOX_COMPARES_MAX
from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.failback import Failbacks
from rephub.consumers.diskbox.failover_jobs import FailoverJobs
from rephub.consumers.diskbox.failovers import Failovers
from rephub.consumers.diskbox.fot_jobs import FotJobs
from rephub.consumers.diskbox.fots import Fots, Limits
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.mirror import mirror
from rephub.consumers.diskbox.moves import Moves
from rephub.consumers.diskbox.ownership import Ownership, Strays
from rephub.consumers.diskbox.projector import PACE_SECONDS, Projector
from rephub.consumers.diskbox.promote_jobs import PromoteJobs
from rephub.consumers.diskbox.promotions import DETACH_SECONDS, Promotions
from rephub.consumers.diskbox.signals import Signal
from rephub.consumers.diskbox.volume import BoxVolume, Wanted
from rephub.consumers.diskbox.window_watch import WindowWatch
from rephub.core.bitmap.port import BitmapStore
from rephub.core.control.follow import follow
from rephub.core.control.port import ControlLog
from rephub.core.errors import (
    DeadlineError,
    IndeterminateError,
    IntegrityError,
    RephubError,
    StorageError,
    UnavailableError,
)
from rephub.core.journal.port import JournalStore
from rephub.core.names import EVENTS_TOPIC
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Volume
from rephub.projections.window import History
from rephub.schemas import events as ev

log = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
"""Between rounds without events."""


class Diskbox:
    """One diskbox daemon, without its HTTP and signals.

    Args:
        name: its id.
        state_dir: for all its files: `diskbox/<name>/`.
        store: of the journals.
        control: log of the control plane, started.
        bitmaps: for acks, leases and mirrored pins; may be away.
        limits: of fail-over tests.
        capacity: volumes it takes.
        crash_point, pace_seconds, detach_seconds: see where they go.
        move_host: address on which moves are served; empty: a unix socket.
        fold_bytes_per_second: see `Failovers`.
    """

    def __init__(
        self,
        name: str,
        state_dir: Path,
        store: JournalStore,
        control: ControlLog,
        bitmaps: BitmapStore,
        *,
        limits: Limits,
        capacity: int,
        crash_point: CrashPoint = go_on,
        pace_seconds: float = PACE_SECONDS,
        detach_seconds: float = DETACH_SECONDS,
        move_host: str = "",
        fold_bytes_per_second: int = 0,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.directory = state_dir / "diskbox" / name
        self.sockets = state_dir / "s"
        self.catalogue = Catalogue()
        self.volumes: dict[str, BoxVolume] = {}
        self.ready = False
        self.url = ""
        self._life = str(uuid.uuid4())
        self._store, self._control, self._bitmaps = store, control, bitmaps
        self._facts = Facts(control, name)
        self.fots = Fots(self.directory / "fots", self.sockets, limits, self.volumes)
        self.fots.on_change = self._wake
        self._folded = Signal()
        self._ownership = Ownership(name, self.catalogue, control, self._folded)
        self.promotions = Promotions(
            store, self.volumes, self.fots, detach_seconds=detach_seconds, owns=self._ownership.owns
        )
        self._jobs = Jobs(self._end_with, self._wake)
        self._fot_jobs = FotJobs(
            name, self.catalogue, self.volumes, self.fots, self.promotions, self._jobs, self._facts
        )
        self._promote_jobs = PromoteJobs(
            name, self.catalogue, self.promotions, self._jobs, self._facts, self._folded
        )
        self.failovers = Failovers(
            self.directory / "failovers", self.sockets, store, self.volumes,
            fold_bytes_per_second=fold_bytes_per_second, crash_point=crash_point, owns=self._ownership.owns,
        )  # fmt: skip
        self._failover_jobs = FailoverJobs(name, self.catalogue, self.failovers, self._jobs, self._facts)
        self._compare_gate = asyncio.Semaphore(BOX_COMPARES_MAX)
        self._failbacks = Failbacks(self.catalogue, self.failovers, name)
        self._compare_jobs = CompareJobs(
            name, self.catalogue, self.volumes, self._jobs, self._facts, self._failbacks
        )
        self._window_watch = WindowWatch(self.catalogue, self.volumes, self._jobs, self._facts)
        self.moves = Moves(
            name, self._life, self.directory / "volumes", self.sockets, move_host, self.catalogue, self.volumes,
            self._jobs, self._facts, self._new_box, self._run_projector,
        )  # fmt: skip
        self._strays = Strays(
            name, self.directory / "volumes", self.catalogue, self.volumes, self._jobs, self._new_box,
            self._fot_jobs.stop_all_of, self.moves.expects,
        )  # fmt: skip
        self._round = asyncio.Event()
        self._bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inherited: set[str] = set()
        """Volumes that were called stopped before they were opened: whether they still are is to be said."""
        self._called_lost = False
        self._crash_point, self._pace_seconds = crash_point, pace_seconds

    async def run(self) -> None:
        """Work until cancelled; raises what no part should let through."""
        for directory in (self.directory, self.directory / "volumes", self.sockets):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        tasks = [
            asyncio.create_task(self._follow(), name="follow events"),
            asyncio.create_task(self._rounds(), name="rounds"),
            asyncio.create_task(mirror(self, self._bitmaps), name="mirror"),
        ]
        try:
            done, _ = await asyncio.wait([*tasks, self._bug], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._close()

    async def _close(self) -> None:
        await self._jobs.cancel()
        await self.fots.shut_all()
        await self.failovers.shut_all()
        await self.moves.close()
        for box in self.volumes.values():
            await box.close()

    def _end_with(self, exc: BaseException) -> None:
        if not self._bug.done():
            self._bug.set_exception(exc)

    def _wake(self) -> None:
        self._round.set()

    async def _follow(self) -> None:
        async def after_batch() -> None:
            if not self.ready:
                await self._announce(self._life)
                self.fots.remove_leftovers(self._fot_jobs.running())
                await self._open_all()
                self.ready = True
            self._folded.notify()
            self._round.set()

        await follow(self._control, EVENTS_TOPIC, 0, self.catalogue.apply, after_batch)  # type: ignore[arg-type]

    async def _announce(self, cause_id: str) -> None:
        await self._facts.tell(
            ev.DiskboxAnnounced, cause_id, self.name,
            diskbox=self.name, host=socket.gethostname(), pid=os.getpid(), url=self.url, capacity=self.capacity,
        )  # fmt: skip

    async def _rounds(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    ROUND_SECONDS
                ):  # wait_for can swallow a cancellation in Python 3.11
                    await self._round.wait()
            self._round.clear()
            if self.ready:
                self.moves.round()
                self._strays.round()
                self._round_of_box()
                for volume in list(self.catalogue.volumes.values()):
                    if volume.diskbox == self.name:
                        self._round_of_volume(volume)
                self._fot_jobs.round()
                self._promote_jobs.round()
                self._failover_jobs.round()
                self._compare_jobs.round()
                self._window_watch.round()

    def _round_of_box(self) -> None:
        """Called lost while it lives: it is there again, with what nobody else has taken."""
        me = self.catalogue.diskboxes.get(self.name)
        if me is None or (not me.lost and not self._called_lost):
            return
        if me.lost:
            self._jobs.once(("return", me.lost_id), functools.partial(self._announce, me.lost_id))
        else:
            for volume in self.catalogue.volumes.values():
                if volume.diskbox == self.name and volume.stopped:
                    self._jobs.forget("look again", volume.name, volume.start_id)
                    self._inherited.add(volume.name)
        self._called_lost = me.lost

    # volumes

    def _new_box(self, name: str) -> BoxVolume:
        return BoxVolume(
            name, self.directory / "volumes" / name, self._store, crash_point=self._crash_point,
            on_stopped=self._volume_stopped, on_resumed=self._volume_resumed, pace_seconds=self._pace_seconds,
            owns=self._ownership.owns, compare_gate=self._compare_gate,
        )  # fmt: skip

    def _box(self, name: str) -> BoxVolume:
        if name not in self.volumes:
            self.volumes[name] = self._new_box(name)
        return self.volumes[name]

    async def _open_all(self) -> None:
        """Before the first round: open what there is, then let the projectors run."""
        for volume in self.catalogue.volumes.values():
            if volume.diskbox == self.name and volume.path and not volume.retired and not volume.unprotect_id:
                if volume.stopped:
                    self._inherited.add(volume.name)
                with contextlib.suppress(RephubError):  # the round tries again, and says why if it fails
                    await self._box(volume.name).open(_history(volume))
        for box in self.volumes.values():
            self._watch(box)

    def _watch(self, box: BoxVolume) -> None:
        """Pin what was promised, then let the projector run."""
        for promotion in self.catalogue.promotions.values():
            if promotion.diskbox == self.name and promotion.state in ("planned", "started"):
                self.promotions.pin_again(promotion, box)
        for fot in self._fot_jobs.running():
            self.fots.pin_again(fot, box)
        for failover in self.catalogue.failovers.values():
            if failover.diskbox == self.name:
                self.failovers.pin_again(failover, box)
        self._compare_jobs.begin_again(box)
        self.moves.hold(box)
        self._run_projector(box)

    def _run_projector(self, box: BoxVolume) -> None:
        for task in box.start():
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._end_with(exc)

    def _round_of_volume(self, volume: Volume) -> None:
        if volume.unprotect_id:
            if not volume.released:
                self._jobs.once(("release", volume.unprotect_id), functools.partial(self._release, volume))
        elif volume.live and not volume.path:
            self._jobs.once(("make", volume.recovery_id), functools.partial(self._make, volume))
        elif not volume.retired:
            box = self._box(volume.name)
            if box.position is None and not self._jobs.is_running("make", volume.recovery_id):
                self._jobs.once(
                    ("open", volume.name, volume.recovery_id), functools.partial(self._open, volume)
                )
            projector = box.projector
            if projector is not None:
                if volume.name in self._inherited:
                    key = ("look again", volume.name, volume.start_id)
                    self._jobs.once(key, functools.partial(self._look_again, volume.name, projector))
                projector.history = _history(volume)
                diverged = projector.divergence is not None
                if (
                    diverged
                    and volume.attached
                    and volume.epoch > max(box.rejoined_epoch, projector.head.state.epoch)
                ):
                    key = ("rejoin", volume.name, str(volume.epoch))
                    self._jobs.once(key, functools.partial(self._rejoin, volume))

    async def _make(self, volume: Volume) -> None:
        box = self._box(volume.name)
        wanted = _wanted(volume)
        try:
            await self._fot_jobs.stop_all_of(volume.name, "the volume is protected anew")
            await box.close()
            if wanted.failback:
                await asyncio.to_thread(self._failbacks.look, volume)
            position = await box.make(wanted)
            await box.open(wanted.history)
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            if volume.placed_id:  # protection goes on: said, and tried again
                self._volume_stopped(volume.name, -1, exc)
                raise UnavailableError(exc.message) from exc
            fields = {"volume": volume.name, "error": exc.to_json()}
            await self._facts.tell(
                ev.ProtectFailed, volume.start_id, volume.name, volume.command_id, **fields
            )
            return
        self._watch(box)
        await self._facts.tell(
            ev.RecoveryVolumeCreated, volume.recovery_id, volume.name, volume.command_id,
            volume=volume.name, diskbox=self.name, path=position.path, size_bytes=volume.size_bytes,
            first_offset=position.applied_offset + 1,
            seeded=wanted.seed is not None or wanted.failback or None,
        )  # fmt: skip

    async def _open(self, volume: Volume) -> None:
        box = self._box(volume.name)
        try:
            await box.open(_history(volume))
        except (UnavailableError, IndeterminateError):
            raise
        except RephubError as exc:
            self._volume_stopped(volume.name, -1, exc)
            self._inherited.add(volume.name)
            raise UnavailableError(exc.message) from exc
        self._watch(box)

    async def _look_again(self, name: str, projector: Projector) -> None:
        """Say that a volume goes on which a former life, or a failed open, called stopped."""
        try:
            await projector.catch_up()
        except DeadlineError as exc:
            raise UnavailableError(exc.message) from exc
        except IntegrityError:
            return  # it diverged: said by the projector
        if projector.stopped is None:
            self._volume_resumed(name, projector.applier.applied_offset)

    async def _rejoin(self, volume: Volume) -> None:
        box = self._box(volume.name)
        await self._fot_jobs.stop_all_of(volume.name, "the journal diverged")
        try:
            await box.rejoin(_wanted(volume))
        except StorageError as exc:
            raise UnavailableError(exc.message) from exc
        self._watch(box)
        self._volume_resumed(volume.name, volume.epoch_offset)

    async def _release(self, volume: Volume) -> None:
        unprotect_id, purge = volume.unprotect_id, volume.purge
        await self._fot_jobs.stop_all_of(volume.name, "the volume was unprotected")
        box = self._box(volume.name)
        try:
            await box.release(purge=purge)
        except RephubError as exc:
            raise UnavailableError(exc.message) from exc
        self.volumes.pop(volume.name, None)
        await self._facts.tell(
            ev.RecoveryVolumeReleased,
            unprotect_id,
            volume.name,
            volume.command_id,
            volume=volume.name,
            purged=purge,
        )

    def _is_here(self, name: str) -> bool:
        """Whether the log has the volume here; a copy that is on its way has nothing to say yet."""
        return self.catalogue.volumes[name].diskbox == self.name

    def _volume_stopped(self, name: str, journal_offset: int, error: RephubError) -> None:
        if not self._is_here(name):
            return
        cause = f"{self._cause(name, error)}@{journal_offset}"
        text = error.to_json()
        self._jobs.once(
            ("stopped", cause),
            lambda: self._facts.tell(
                ev.VolumeStopped, cause, name, volume=name, offset=journal_offset, error=text
            ),
        )

    def _volume_resumed(self, name: str, journal_offset: int) -> None:
        if not self._is_here(name):
            return
        me = self.catalogue.diskboxes.get(self.name)
        cause = f"{self._life}/{me.announced_id if me else ''}:{name}@{journal_offset}"
        self._jobs.once(
            ("resumed", cause), lambda: self._facts.tell(ev.VolumeResumed, cause, name, volume=name)
        )

    def _cause(self, name: str, error: RephubError) -> str:
        """Poison is the same after each restart; what the disk or the journal did belongs to this life."""
        poison = "journal_offset" in error.fields
        return f"{self.catalogue.volumes[name].start_id if poison else self._life}:{name}"


def _history(volume: Volume) -> History:
    return History(volume.history_seconds, volume.history_bytes)


def _seed(volume: Volume) -> str | None:
    """What the recovery volume is made of; a seed is on the host of the first diskbox alone."""
    return None if volume.placed_id else volume.seed


def _wanted(volume: Volume) -> Wanted:
    return Wanted(
        volume=volume.name, size_bytes=volume.size_bytes, start_id=volume.recovery_id, epoch=volume.epoch,
        epoch_offset=volume.epoch_offset, recovery=volume.recovery, history=_history(volume), seed=_seed(volume),
        reason=f"diskbox {volume.placed_from} was lost" if volume.placed_id else "initial sync",
        inherited=bool(volume.placed_id and volume.recovery), failback=bool(volume.failback and not volume.placed_id),
    )  # fmt: skip
