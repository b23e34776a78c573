"""Keeps one volume as the catalogue wants it: a task of the control process that does one action after the other.

Every action either ends with what `plan.py` saw as missing being there, or raises; then the keeper waits (back-off)
and asks again. The guest never depends on it: whatever fails here, capture ends and the guest goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from rephub.agent import attach, bitmaps, overload, pausing, plan, source
from rephub.agent.epochs import Hint
from rephub.agent.hold import Hold
from rephub.agent.memory import EPOCHS_MARKED, forget_marks
from rephub.agent.parts import Parts
from rephub.agent.plan import Action, Local
from rephub.agent.verifier import Verifier
from rephub.agent.vms import is_listening
from rephub.agent.workers import WorkerProcess
from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError
from rephub.core.names import ack_key
from rephub.projections import decide_sync
from rephub.projections.catalogue import Volume
from rephub.schemas import events as ev

FIRST_ATTEMPTS_MAX = 3
"""Attempts at the first attach of a protect; then it fails, so that the operator hears why."""

STOP_SECONDS = 8.0
"""How long a stop of the agent waits for a clean detach; then the workers end, which frees the guest."""

SHORT_LIFE_SECONDS = 10.0
"""An attachment that ended sooner makes the next attempt wait longer: no flapping between gap and resync."""

ROTATE_LOOK_SECONDS = 5.0
"""How often a volume is looked at that nothing else happens to."""

ROTATE_RPO_SECONDS = 1.0
"""A volume whose acks are later than that is not rotated: the guest would wait for them."""

UNDISTURBING = (Action.NONE, Action.RECONNECT, Action.PACE, Action.ROTATE)
"""A comparison goes on beside these."""

log = logging.getLogger(__name__)


class Keeper:
    """Keeps one volume.

    Args:
        name: of the volume.
        parts: of the process.
    """

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self.local = Local()
        self.reason = ""
        self.gap_since_at: int | None = None
        """When capture was lost, in microseconds since the Unix epoch; None while there is no gap."""
        self.gaps = 0
        """That opened since the start of the agent."""
        self._parts = parts
        self._hold: Hold | None = None
        self._verifier = Verifier(name, parts, self.synced, self.wake)
        self._attempts = 0
        self._short_lives = 0
        self._rests_until = 0.0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # What others tell us.

    def wake(self) -> None:
        """Something may have changed: look again."""
        self._wake.set()

    def lost(self, epoch: int, error: RephubError) -> None:
        """Capture ended by itself; epoch 0 means whatever is held."""
        held = self.local.held
        if held is None or (epoch and epoch != held.epoch) or self.local.lost is not None:
            return
        self.local.lost = error
        self._gap(error.message)
        self.wake()

    def synced(self, epoch: int, offset: int) -> None:
        """Sync of the epoch is complete and acked."""
        held = self.local.held
        if held is None or epoch != held.epoch:
            return
        held.synced_offset = offset
        self._forget_marks(epoch)
        self.reason, self.gap_since_at = "", None
        self._emit(ev.VolumeSyncCompleted, held.attachment_id, epoch=epoch, offset=offset)
        self.wake()

    def _forget_marks(self, epoch: int) -> None:
        """Of the epochs before: sync has copied what they said."""
        before = range(max(1, epoch - EPOCHS_MARKED), epoch)
        task = asyncio.create_task(forget_marks(self._parts.bitmaps, self.name, before))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def vm_gone(self) -> None:
        """The monitor connection ended; capture may still be on."""
        self.local.connected = False
        self.wake()

    # What others ask.

    @property
    def worker(self) -> WorkerProcess | None:
        """The worker that has the volume; None while it is not attached."""
        return self._hold.worker if self._hold and self.local.lost is None else None

    @property
    def is_consistent(self) -> bool:
        """Attached and synced: a checkpoint now is a good point."""
        held = self.local.held
        return self.worker is not None and held is not None and held.synced_offset is not None

    def status(self) -> dict[str, Any]:
        """The volume's part of `/status`."""
        held, worker = self.local.held, self.worker
        figures = (worker.figures.get(self.name) if worker else None) or {}
        gap = None if self.gap_since_at is None else max(0.0, time.time() - self.gap_since_at / 1e6)
        return {
            "attached": worker is not None,
            "epoch": held.epoch if held else self.local.last_epoch,
            "attachment_id": held.attachment_id if held else "",
            "acked_offset": figures.get("acked_offset", held.offset if held else None),
            "lag_bytes": figures.get("lag_bytes", 0),
            "rpo_seconds": round(max(figures.get("rpo_seconds", 0.0), gap or 0.0), 3),
            "dirty_bytes": figures.get("dirty_bytes", 0),
            "verify": figures.get("verify"),
            "ack_delay": figures.get("ack_delay"),
            "written": figures.get("written"),
            "throttled": figures.get("throttled"),
            "sync": self._sync_status(figures.get("sync")),
            "gap_since_at": self.gap_since_at,
            "gaps": self.gaps,
            "reason": self.reason,
        }

    def _sync_status(self, figures: dict[str, Any] | None) -> dict[str, Any] | None:
        """The worker's figures and why they may stand still; also of a sync that has not begun."""
        catalogue, held = self._parts.catalogue, self.local.held
        volume = catalogue.volumes.get(self.name)
        if volume is None or held is None or held.synced_offset is not None:
            return figures
        if figures is None and not (catalogue.wants_sync(volume) and self.worker):
            return None
        begun = figures or {"done_bytes": 0, "total_bytes": volume.size_bytes, "eta_seconds": None}
        return begun | decide_sync.pace(volume) | {"waiting": not self.local.turn and not volume.sync_paused}

    # The loop.

    async def run(self) -> None:
        """Keep the volume until cancelled."""
        delay = overload.RETRY_SECONDS
        while True:
            self._wake.clear()
            try:
                acted = await self._step()
            except RephubError as exc:
                # Once per reason: a VM may be off for days.
                level = logging.DEBUG if self.reason == exc.message else logging.WARNING
                self.reason = exc.message
                log.log(level, "will try again", extra={"volume": self.name, "error": exc.message})
            except Exception as exc:
                # A mistake of ours must not leave the other volumes of the host without their keepers.
                self.reason = f"internal error: {exc!r}"
                log.exception("will try again", extra={"volume": self.name})
            else:
                delay = overload.RETRY_SECONDS
                if not acted:
                    await self._pause(ROTATE_LOOK_SECONDS if self.is_consistent else None)
                continue
            await self._pause(delay)
            delay = min(delay * 2, overload.RETRY_SECONDS_MAX)

    async def stop(self, reason: str) -> None:
        """Let go cleanly because the agent ends; the timeline says why there is a gap. `run` must be cancelled."""
        await self._verifier.stop()
        held, hold = self.local.held, self._hold
        if held is None or hold is None:
            return
        if self.local.lost is not None:
            await self._report_lost(hold.volume)
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await hold.let_go()
        except (RephubError, TimeoutError) as exc:
            log.warning("not detached cleanly", extra={"volume": self.name, "error": str(exc)})
        self._announce_lost(held.epoch, held.attachment_id, reason)

    async def _step(self) -> bool:
        catalogue = self._parts.catalogue
        volume = catalogue.volumes.get(self.name)
        if volume is None:
            return False
        self.local.rotation_due = self._rotation_due()
        action = plan.next_action(catalogue, volume, self._parts.settings.agent.id, self.local)
        undisturbed = action in UNDISTURBING and self.local.held is not None
        self._verifier.look(self._hold if undisturbed else None)
        if action is Action.NONE:
            return False
        log.debug("action", extra={"volume": self.name, "action": action.value})
        await {
            Action.REPORT_LOST: self._report_lost,
            Action.ATTACH: self._attach,
            Action.DETACH: self._detach,
            Action.RELEASE: self._release,
            Action.PACE: self._set_pace,
            Action.SYNC: self._sync,
            Action.TIDY: self._tidy,
            Action.ROTATE: self._rotate,
            Action.RECONNECT: self._reconnect,
            Action.PAUSE: self._pause_volume,
            Action.REFUSE_PAUSE: self._refuse_pause,
        }[action](volume)
        return True

    async def _pause(self, seconds: float | None) -> None:
        """Wait until something changes, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # The actions.

    async def _attach(self, volume: Volume) -> None:
        if (left := self._rests_until - time.monotonic()) > 0:
            await self._pause(left)
            return
        self._attempts += 1
        resync_id, reason, size_bytes = volume.resync_id, self._why(volume), volume.size_bytes
        try:
            hold = await Hold.take(volume, self._parts, self, await self._hints(volume), reason)
        except RephubError as exc:
            if volume.attached_before or (exc.retriable and self._attempts < FIRST_ATTEMPTS_MAX):
                raise
            self._give_up(volume, exc)
            return
        held = hold.held
        self._hold, self._attempts = hold, 0
        self.local.held, self.local.lost, self.local.connected = held, None, True
        self.local.resynced, self.local.last_epoch = resync_id, held.epoch
        self.reason = "waits for sync"
        self._emit(
            ev.FilterAttached,
            held.attachment_id,
            volume,
            agent=self._parts.settings.agent.id,
            epoch=held.epoch,
            attachment_id=held.attachment_id,
            offset=held.offset,
            reason=hold.reason,
            node=hold.node,
            device=hold.device or None,
            **hold.memory.left,
        )
        if hold.size_bytes != size_bytes:
            self._emit(
                ev.VolumeResized, held.attachment_id, volume, epoch=held.epoch, size_bytes=hold.size_bytes
            )
        log.info("attached", extra={"volume": self.name, "epoch": held.epoch, "node": hold.node})

    def _give_up(self, volume: Volume, exc: RephubError) -> None:
        self._attempts = 0
        self.local.gave_up, self.reason = volume.start_id, exc.message
        self._emit(ev.ProtectFailed, volume.start_id, volume, error=exc.to_json())

    async def _detach(self, volume: Volume) -> None:
        held, hold = self.local.held, self._hold
        assert held is not None
        assert hold is not None
        await self._verifier.stop()
        requested = plan.key_of(volume)
        resync = self._parts.catalogue.wants_capture(volume)
        try:
            # After a fail-over the bitmaps stay: they make the way back a delta.
            await hold.let_go(forget=not (resync or volume.failover))
        except UnavailableError as exc:
            # Capture is off; what was not acked is lost to the journal, and the gap that follows says so.
            log.warning("not detached cleanly", extra={"volume": self.name, "error": exc.message})
        finally:
            self._hold = self.local.held = self.local.lost = None
        if resync or volume.failover:
            why = (
                "resync requested"
                if volume.taken_by == held.taken_by
                else "fenced by a fail-over or a promote"
            )
            self._announce_lost(held.epoch, held.attachment_id, why)
        else:
            await self._announce_detached(volume, held.epoch, requested)
        log.info("detached", extra={"volume": self.name, "epoch": held.epoch})

    async def _release(self, volume: Volume) -> None:
        """Nothing is held here; a process before us may have left something in QEMU."""
        requested, vms = plan.key_of(volume), self._parts.vms
        try:
            vm = await vms.get(volume.qmp, self)
            async with vms.changing(vm):
                await attach.clean(vm, volume.node)
                await bitmaps.clean(vm, volume.node)
                await source.stop_server(vm, source.own_path(self._parts.settings, volume.qmp))
        except (NotFoundError, ConflictError) as exc:
            log.info("nothing to release", extra={"volume": self.name, "error": exc.message})
        except UnavailableError:
            if is_listening(volume.qmp):
                raise
        finally:
            vms.give_back(volume.qmp, self)
        self.local.last_epoch = max(self.local.last_epoch, volume.epoch)
        await self._announce_detached(volume, volume.epoch if volume.attached else 0, requested)

    async def _report_lost(self, volume: Volume) -> None:
        held, error, hold = self.local.held, self.local.lost, self._hold
        if held is None or error is None or hold is None:
            self._announce_lost(volume.epoch, volume.attachment_id, "the agent was restarted")
            return
        await self._verifier.stop()
        short = time.monotonic() - hold.taken_at < SHORT_LIFE_SECONDS
        self._short_lives = self._short_lives + 1 if short else 0
        rest = overload.rest_seconds(self._short_lives, outran=bool(error.fields.get("outran")))
        self._rests_until = time.monotonic() + rest
        if plan.is_final(error) and volume.taken_by == held.taken_by:
            # Nobody whom the catalogue knows has fenced it.
            self.local.fenced = plan.key_of(volume)
        self._announce_lost(held.epoch, held.attachment_id, error.message)
        try:
            await hold.drop()
        finally:
            self._hold = self.local.held = self.local.lost = None

    async def _sync(self, volume: Volume) -> None:
        """Copy all of it, or compare where the recovery volume holds a copy; the verifier does the latter."""
        hold = self._hold
        assert hold is not None
        again = hold.held.compares
        mode, total_bytes = "compare", hold.size_bytes
        if not volume.to_compare:
            # Also where comparing failed again and again.
            await self._verifier.stop()
            mode, total_bytes = await hold.begin_sync()
        why = hold.memory.why
        hold.held.sync_begun, hold.held.compares = True, volume.to_compare
        self.reason = f"{mode} sync: {why}" if why else f"{mode} sync"
        self._emit(
            ev.VolumeSyncStarted,
            hold.held.attachment_id,
            volume,
            subject=f"{self.name}/{mode}" if again else self.name,
            epoch=hold.held.epoch,
            mode=mode,
            total_bytes=total_bytes,
            reason=why or None,
        )

    async def _set_pace(self, volume: Volume) -> None:
        assert self._hold is not None
        await self._hold.set_pace(plan.wanted_pace(volume, self.local))

    async def _tidy(self, _volume: Volume) -> None:
        assert self._hold is not None
        await self._hold.tidy()

    def _rotation_due(self) -> bool:
        hold, worker = self._hold, self.worker
        if hold is None or worker is None or not self.is_consistent:
            return False
        figures = worker.figures.get(self.name) or {}
        if figures.get("rpo_seconds", 0.0) > ROTATE_RPO_SECONDS:
            return False
        return hold.rotation.is_due(
            figures.get("acked_offset", -1), self._parts.settings.agent.rotate_seconds
        )

    async def _rotate(self, _volume: Volume) -> None:
        assert self._hold is not None
        await self._hold.rotation.rotate()

    async def _reconnect(self, _volume: Volume) -> None:
        hold = self._hold
        assert hold is not None
        if not await hold.reconnect():
            self.lost(hold.held.epoch, UnavailableError("the mirror job is gone"))
        self.local.connected = True

    async def _pause_volume(self, volume: Volume) -> None:
        held, hold, pause_id = self.local.held, self._hold, volume.pause_id
        assert held is not None
        assert hold is not None
        if not self.is_consistent:
            await self._refuse_pause(volume)
            return
        marks: dict[str, Any] | None = None
        error: RephubError | None = None
        try:
            marks = await pausing.pause(hold)
        except RephubError as exc:
            error = exc
        if hold.worker is not None:
            # Still attached, as before.
            self._answer_pause(volume, pause_id, error)
            return
        error = error or self.local.lost
        self._hold = self.local.held = self.local.lost = None
        if error is None and marks is not None:
            self.local.paused, self.reason, self.gap_since_at = pause_id, "", None
            fields = {key: marks[key] for key in ("epoch", "offset", "persistent", "image")}
            self._emit(ev.VolumePaused, pause_id, volume, bitmap=marks["name"], **fields)
            log.info("paused", extra={"volume": self.name, "epoch": held.epoch, "bitmap": marks["name"]})
            return
        self._announce_lost(held.epoch, held.attachment_id, error.message if error else "pause failed")
        self._answer_pause(volume, pause_id, error)

    async def _refuse_pause(self, volume: Volume) -> None:
        why = self.reason or "nothing is attached"
        hint = f"rephub wait {self.name} --state protected"
        error = ConflictError(f"volume {self.name} is not captured completely now: {why}", hint=hint)
        self._answer_pause(volume, volume.pause_id, error)

    def _answer_pause(self, volume: Volume, pause_id: str, error: RephubError | None) -> None:
        error = error or RephubError(f"volume {self.name} was not paused")
        self.local.paused = pause_id
        self._emit(ev.PauseFailed, pause_id, volume, error=error.to_json())

    # Their parts.

    async def _hints(self, volume: Volume) -> list[Hint]:
        """Where an epoch is known to be current, the newest first."""
        try:
            ack = await self._parts.bitmaps.get_ack(self.name)
        except UnavailableError:
            # The catalogue's hint only makes the scan longer.
            ack = {}
        hints = []
        if ack.get("epoch") and ack["epoch"] == volume.epoch:
            hints.append(Hint(ack["epoch"], ack["acked_offset"]))
        if volume.epoch:
            hints.append(Hint(volume.epoch, volume.epoch_offset))
        return hints

    def _why(self, volume: Volume) -> str:
        """The reason that the new epoch's start gives in the journal."""
        if not volume.attached_before:
            return "protect"
        if volume.resync_id and volume.resync_id != self.local.resynced:
            return "resync requested"
        if volume.paused_at:
            return "resumed after a pause"
        return volume.reason or self.reason or "attached anew"

    def _gap(self, reason: str) -> None:
        self.reason = reason
        if self.gap_since_at is None:
            self.gap_since_at = time.time_ns() // 1000
            self.gaps += 1

    def _announce_lost(self, epoch: int, attachment_id: str, reason: str) -> None:
        self._gap(reason)
        self.local.last_epoch = max(self.local.last_epoch, epoch)
        self._emit(ev.CaptureLost, attachment_id, epoch=epoch, reason=reason)

    async def _announce_detached(self, volume: Volume, epoch: int, requested: str) -> None:
        self.local.released = requested
        self.gap_since_at, self.reason = None, ""
        if volume.purge:
            # The journal goes away, and with it what the hint means.
            with contextlib.suppress(UnavailableError):
                await self._parts.bitmaps.drop(ack_key(self.name))
        cause_id = volume.unprotect_id or volume.promotion or volume.attachment_id
        self._emit(ev.CaptureDetached, cause_id, volume, epoch=epoch)

    def _emit(
        self,
        event_type: type[ev.Record],
        cause_id: str,
        volume: Volume | None = None,
        subject: str = "",
        **fields: Any,
    ) -> None:
        self._parts.announcer.emit(
            event_type,
            subject or self.name,
            cause_id=cause_id,
            command_id=volume.command_id if volume else "",
            volume=self.name,
            **fields,
        )
