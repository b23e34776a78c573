"""How the events about a volume's protection change the catalogue; see `fold.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.core.units import rfc3339
from rephub.projections import fold_checkpoints, fold_sync, states
from rephub.projections.entities import Volume, message
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue


def known_volume(catalogue: Catalogue, name: str) -> Volume:
    """The volume, retired or not. Raises ConflictError."""
    volume = catalogue.volumes.get(name)
    if volume is None:
        raise ConflictError(f"no volume {name}")
    return volume


def _current(catalogue: Catalogue, name: str, epoch: int) -> Volume:
    """The volume, if the epoch is the one that is on. Raises ConflictError: it is an older one."""
    volume = known_volume(catalogue, name)
    if volume.retired:
        raise ConflictError(f"volume {name} is not protected any more")
    if epoch < volume.epoch:
        raise ConflictError(f"epoch {epoch} of volume {name} is over, the current one is {volume.epoch}")
    return volume


def move(volume: Volume, fact: str, at: int, reason: str) -> None:
    """Take the volume to the state that the table gives; a state that stays keeps its `since_at`.

    Raises:
        ConflictError: the table forbids it; nothing was changed.
    """
    state = states.next_state(volume.state, fact)
    if state != volume.state:
        volume.since_at = at
    if state in ("protected", "promoted"):
        volume.gap_at = 0
    elif not volume.gap_at:
        volume.gap_at = at
    volume.state = state
    volume.reason = reason


def _start_protect(catalogue: Catalogue, event: ev.StartProtect) -> None:
    old = catalogue.volumes.get(event.volume)
    if old is not None and old.live:
        raise ConflictError(f"volume {event.volume} is protected already")
    volume = Volume(
        name=event.volume,
        group=event.group,
        agent=event.agent,
        diskbox=event.diskbox,
        qmp=event.qmp,
        node=event.node,
        size_bytes=event.size_bytes,
        ack=event.ack,
        overload=event.overload,
        history_seconds=event.history_seconds,
        history_bytes=event.history_bytes,
        recovery=event.recovery,
        seed=event.seed,
        failback=event.failback or "",
        by_device=event.device or "",
        device=event.device or "",
        reason="waits for capture",
        since_at=event.at,
        gap_at=event.at,
        start_id=event.id,
        command_id=event.command_id or "",
    )
    if old is not None and not old.purged:
        volume.state = states.next_state(old.state, "started")
        volume.previous = "retired" if old.retired else "promoted"
        volume.previous_path = old.path
        volume.epoch, volume.epoch_offset = old.epoch, old.epoch_offset
        volume.attachment_id = old.attachment_id
        volume.sync_epoch, volume.synced_epoch = old.sync_epoch, old.synced_epoch
    catalogue.volumes[event.volume] = volume
    catalogue.protects.pop(event.volume, None)


def _protect_failed(catalogue: Catalogue, event: ev.ProtectFailed) -> None:
    """A protect that waits is dropped; one that had begun is undone as an unprotect would.

    A volume that was new leaves nothing behind (purge); one that continued an older life goes back to it.
    """
    if event.volume in catalogue.protects:
        del catalogue.protects[event.volume]
        return
    volume = known_volume(catalogue, event.volume)
    if not volume.live or volume.attached_before or volume.unprotect_id:
        raise ConflictError(f"protection of volume {event.volume} is not about to start")
    reason = f"protect failed: {message(event.error)}"
    if volume.previous == "promoted":
        volume.state, volume.since_at, volume.reason = "promoted", event.at, reason
        volume.gap_at = 0
        volume.path = volume.path or volume.previous_path
        return
    volume.state, volume.since_at, volume.reason = "gap", event.at, reason
    volume.unprotect_id = event.id
    volume.purge = not volume.previous
    volume.detached = volume.released = False


def _recovery_volume_created(catalogue: Catalogue, event: ev.RecoveryVolumeCreated) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.live or volume.unprotect_id or event.diskbox != volume.diskbox:
        raise ConflictError(f"volume {event.volume} wants no recovery volume on {event.diskbox}")
    if volume.placed_id and not volume.path:
        _recovery_volume_made_anew(volume, event)
    volume.path = event.path
    volume.to_compare = bool(event.seeded)


def _recovery_volume_made_anew(volume: Volume, event: ev.RecoveryVolumeCreated) -> None:
    """Behind a running capture: a new attachment, with a full sync, gives it its content."""
    if volume.stopped:
        move(volume, "placed", event.at, f"diskbox {volume.placed_from} was lost, a new copy is made")
        volume.stopped = ""
    volume.made_offset = -1 if event.first_offset is None else event.first_offset
    volume.bitmap, volume.whole = {}, False
    if volume.epoch and not volume.paused_at:
        volume.resync_id = event.id


def _filter_attached(catalogue: Catalogue, event: ev.FilterAttached) -> None:
    volume = _current(catalogue, event.volume, event.epoch)
    if event.epoch == volume.epoch:
        raise ConflictError(f"epoch {event.epoch} of volume {event.volume} is taken")
    if event.agent != volume.agent:
        raise ConflictError(f"volume {event.volume} belongs to agent {volume.agent}, not {event.agent}")
    move(volume, "attached", event.at, "waits for sync")
    volume.epoch = event.epoch
    volume.attachment_id = event.attachment_id
    volume.epoch_offset = event.offset
    if event.node:
        volume.node = event.node
        # A node that nobody uses for now keeps the device by which it may be found again.
        volume.device = event.device or volume.device
    volume.to_compare = not _is_broken(catalogue, volume) and (volume.to_compare or bool(event.compare))
    volume.bitmap = _left_bitmap(event)
    volume.attached = volume.attached_before = True
    if event.offset >= volume.made_offset:
        volume.resync_id = ""
    volume.resume_id = ""
    volume.paused_at = 0
    volume.detached = False
    promotion = catalogue.promotions.get(volume.promotion)
    if promotion is not None and volume.name in promotion.detached:
        promotion.detached.remove(volume.name)


def _left_bitmap(event: ev.FilterAttached) -> dict[str, Any]:
    if event.bitmap is None:
        return {}
    return {
        "name": event.bitmap,
        "persistent": bool(event.persistent),
        "image": event.image or "",
        "epoch": event.epoch,
        "offset": event.offset,
        "based": bool(event.based),
    }


def _sync_requested(catalogue: Catalogue, event: ev.SyncRequested) -> None:
    volume = _current(catalogue, event.volume, event.epoch)
    if event.epoch != volume.epoch:
        raise ConflictError(f"epoch {event.epoch} of volume {event.volume} has not begun")
    volume.sync_epoch = event.epoch


def _sync_started(catalogue: Catalogue, event: ev.VolumeSyncStarted) -> None:
    volume = _current(catalogue, event.volume, event.epoch)
    if event.mode == "compare":
        # Also of a volume that stopped meanwhile: the agent waits for its comparison, or for word that there is none.
        fold_sync.begin_sync(catalogue, volume, event)
        if _is_broken(catalogue, volume):
            fold_sync.cannot_compare(catalogue, volume, volume.stopped)
    elif volume.state not in ("syncing", "resyncing"):
        raise ConflictError(f"a volume that is {volume.state} does not sync")
    volume.reason = volume.stopped or f"{event.mode} sync" + (f": {event.reason}" if event.reason else "")
    volume.sync_mode = event.mode


def _sync_completed(catalogue: Catalogue, event: ev.VolumeSyncCompleted) -> None:
    volume = _current(catalogue, event.volume, event.epoch)
    if event.epoch != volume.epoch:
        raise ConflictError(f"epoch {event.epoch} of volume {event.volume} has not begun")
    if volume.needs_full and (volume.resync_id or not volume.path):
        raise ConflictError(f"the recovery volume of {event.volume} is newer than epoch {event.epoch}")
    if volume.sync_mode != "delta":
        # Every byte was copied, or found equal: what a verify found is gone.
        volume.differs = ""
    volume.to_compare, volume.whole = False, True
    fold_sync.end_sync(catalogue, volume)
    if volume.stopped or volume.differs:
        move(volume, "synced_stopped", event.at, volume.stopped or volume.differs)
    else:
        move(volume, "synced", event.at, volume.reason if volume.state == "gap" else "")
    volume.synced_epoch = event.epoch
    volume.needs_full, volume.made_offset = False, -1
    if volume.bitmap:
        volume.bitmap["based"] = True


def _capture_lost(catalogue: Catalogue, event: ev.CaptureLost) -> None:
    volume = _current(catalogue, event.volume, event.epoch)
    # A fail-over says more than that the agent let go for it.
    reason = volume.reason if volume.failover else event.reason
    move(volume, "lost", event.at, volume.stopped or volume.differs or reason)
    volume.attached = False


def _capture_detached(catalogue: Catalogue, event: ev.CaptureDetached) -> None:
    """Epoch 0 says that nothing was attached: it answers an unprotect or a promote as well."""
    volume = known_volume(catalogue, event.volume)
    promotion = catalogue.promotions.get(volume.promotion)
    if not event.epoch and volume.attached:
        raise ConflictError(f"volume {event.volume} is attached in epoch {volume.epoch}")
    if event.epoch:
        _current(catalogue, event.volume, event.epoch)
        reason = "detached for promote" if promotion else "detached"
        move(volume, "detached", event.at, volume.stopped or reason)
    volume.attached, volume.bitmap = False, {}
    if volume.unprotect_id:
        volume.detached = True
    if promotion is not None and volume.name not in promotion.detached:
        promotion.detached.append(volume.name)


def _resync_requested(catalogue: Catalogue, event: ev.ResyncRequested) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.live or not states.may(volume.state, "attached"):
        raise ConflictError(f"a volume that is {volume.state} cannot become resyncing")
    volume.resync_id = event.id
    volume.bitmap = {}
    volume.command_id = event.command_id or ""


def _volume_stopped(catalogue: Catalogue, event: ev.VolumeStopped) -> None:
    volume = known_volume(catalogue, event.volume)
    reason = f"stopped at offset {event.offset}: {message(event.error)}"
    move(volume, "stopped", event.at, reason)
    volume.stopped = reason
    fold_sync.cannot_compare(catalogue, volume, reason)


def _is_broken(catalogue: Catalogue, volume: Volume) -> bool:
    """Its diskbox has stopped it; one whose diskbox is lost is as it was, if that comes back."""
    box = catalogue.diskboxes.get(volume.diskbox)
    return bool(volume.stopped) and not (box is not None and box.lost)


def _volume_resumed(catalogue: Catalogue, event: ev.VolumeResumed) -> None:
    volume = known_volume(catalogue, event.volume)
    box = catalogue.diskboxes.get(volume.diskbox)
    if box is not None and box.lost:
        raise ConflictError(f"diskbox {box.name} of volume {event.volume} is lost")
    if volume.failover:
        move(volume, "resumed_failed_over", event.at, volume.reason)
    elif volume.paused_at:
        move(volume, "resumed_paused", event.at, f"paused since {rfc3339(volume.paused_at)}")
    elif not volume.attached:
        move(volume, "resumed_detached", event.at, "capture is off")
    elif volume.synced_epoch == volume.epoch:
        move(volume, "stopped" if volume.differs else "resumed_synced", event.at, volume.differs)
    else:
        move(volume, "resumed_syncing", event.at, "waits for sync")
    volume.stopped = ""


def _unprotect_requested(catalogue: Catalogue, event: ev.UnprotectRequested) -> None:
    volume = known_volume(catalogue, event.volume)
    if volume.purged or volume.unprotect_id or volume.taken or volume.move:
        raise ConflictError(f"volume {event.volume} cannot be unprotected now")
    volume.unprotect_id = event.id
    volume.purge = event.purge
    volume.detached = not volume.live
    volume.released = False
    volume.pause_id = volume.resume_id = ""
    volume.command_id = event.command_id or ""
    if volume.live:
        volume.reason = "unprotect under way"


def _recovery_volume_released(catalogue: Catalogue, event: ev.RecoveryVolumeReleased) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.unprotect_id:
        raise ConflictError(f"nobody asked for the release of volume {event.volume}")
    volume.released = True


def _unprotected(catalogue: Catalogue, event: ev.Unprotected) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.unprotect_id:
        raise ConflictError(f"nobody asked to unprotect volume {event.volume}")
    move(volume, "unprotected", event.at, "unprotected")
    volume.retired, volume.attached = True, False
    volume.path = volume.path or volume.previous_path
    volume.unprotect_id = volume.resync_id = volume.stopped = ""
    volume.paused_at, volume.bitmap = 0, {}
    volume.detached = volume.released = False
    if event.purged:
        volume.purged = True
        volume.path = volume.attachment_id = ""
        volume.epoch = volume.sync_epoch = volume.synced_epoch = 0
        volume.epoch_offset = -1
        fold_checkpoints.forget_checkpoints(catalogue, volume.name)


def _history_set(catalogue: Catalogue, event: ev.HistorySet) -> None:
    for volume in [known_volume(catalogue, name) for name in event.volumes]:
        if event.history_seconds is not None:
            volume.history_seconds = event.history_seconds
        if event.history_bytes is not None:
            volume.history_bytes = event.history_bytes


def _history_shortened(catalogue: Catalogue, event: ev.HistoryShortened) -> None:
    known_volume(catalogue, event.volume).history_short = True


def _history_restored(catalogue: Catalogue, event: ev.HistoryRestored) -> None:
    known_volume(catalogue, event.volume).history_short = False


def _sync_pace_set(catalogue: Catalogue, event: ev.SyncPaceSet) -> None:
    volume = known_volume(catalogue, event.volume)
    volume.sync_paused = event.paused
    volume.sync_rate_bytes_per_second = event.rate_bytes_per_second
    volume.sync_priority = event.priority


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.StartProtect: _start_protect,
    ev.ProtectFailed: _protect_failed,
    ev.RecoveryVolumeCreated: _recovery_volume_created,
    ev.FilterAttached: _filter_attached,
    ev.SyncRequested: _sync_requested,
    ev.VolumeSyncStarted: _sync_started,
    ev.VolumeSyncCompleted: _sync_completed,
    ev.CaptureLost: _capture_lost,
    ev.CaptureDetached: _capture_detached,
    ev.ResyncRequested: _resync_requested,
    ev.VolumeStopped: _volume_stopped,
    ev.VolumeResumed: _volume_resumed,
    ev.UnprotectRequested: _unprotect_requested,
    ev.RecoveryVolumeReleased: _recovery_volume_released,
    ev.Unprotected: _unprotected,
    ev.SyncPaceSet: _sync_pace_set,
    ev.HistorySet: _history_set,
    ev.HistoryShortened: _history_shortened,
    ev.HistoryRestored: _history_restored,
}
