"""How the events about diskboxes, and about which volume is on which, change the catalogue; see `fold.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections import states
from rephub.projections.entities import Diskbox, DiskboxRequest
from rephub.projections.fleet_states import DISKBOX
from rephub.projections.fold_volume import known_volume, move
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue


def _diskbox_announced(catalogue: Catalogue, event: ev.DiskboxAnnounced) -> None:
    old = catalogue.diskboxes.get(event.diskbox)
    state = DISKBOX.next_state(old.name, old.state, "announced") if old else DISKBOX.first
    box = Diskbox(
        event.diskbox, event.host, event.pid, event.url, event.capacity, announced_id=event.id, state=state
    )
    if old is not None and state == "draining":
        box.drain_id, box.failed_id, box.failed_at = old.drain_id, old.failed_id, old.failed_at
    catalogue.diskboxes[event.diskbox] = box
    catalogue.diskbox_requests.pop(event.diskbox, None)


def _diskbox_requested(catalogue: Catalogue, event: ev.DiskboxRequested) -> None:
    if event.diskbox in catalogue.diskboxes or event.diskbox in catalogue.diskbox_requests:
        raise ConflictError(f"diskbox {event.diskbox} is there or asked for already")
    catalogue.diskbox_requests[event.diskbox] = DiskboxRequest(
        event.diskbox, event.volume, event.id, event.command_id or ""
    )


def _diskbox_failed(catalogue: Catalogue, event: ev.DiskboxFailed) -> None:
    request = catalogue.diskbox_requests.get(event.diskbox)
    if request is None or request.event_id != event.cause_id:
        raise ConflictError(f"diskbox {event.diskbox} is not asked for, or asked for anew")
    del catalogue.diskbox_requests[event.diskbox]
    for pending in catalogue.protects.values():
        pending.diskbox_error = event.error
    for box in catalogue.diskboxes.values():
        if box.state != "ready":
            box.failed_id, box.failed_at = event.id, event.at


def _diskbox_lost(catalogue: Catalogue, event: ev.DiskboxLost) -> None:
    """Its volumes stop; capture goes on. What becomes of them, and of its tests, the hub says next."""
    box = catalogue.diskboxes.get(event.diskbox)
    if box is None:
        raise ConflictError(f"no diskbox {event.diskbox}")
    if box.lost and (box.off or not event.off):
        raise ConflictError(f"diskbox {event.diskbox} is lost already")
    box.state = DISKBOX.next_state(box.name, box.state, "lost")
    box.off = event.off
    box.lost_id = box.lost_id or event.id
    for volume in catalogue.live_volumes():
        if volume.diskbox != box.name or volume.unprotect_id or volume.state == "paused":
            continue
        if states.may(volume.state, "stopped"):
            reason = f"diskbox {box.name} is lost: {event.reason}"
            # A comparison that is under way waits: the copy is as it was, if the diskbox comes back.
            move(volume, "stopped", event.at, reason)
            volume.stopped = reason


def _volume_placed(catalogue: Catalogue, event: ev.VolumePlaced) -> None:
    volume = known_volume(catalogue, event.volume)
    old = catalogue.diskboxes.get(event.previous_diskbox)
    if volume.diskbox != event.previous_diskbox or old is None or not old.lost:
        raise ConflictError(f"volume {event.volume} is not on a lost diskbox {event.previous_diskbox}")
    if not volume.live or volume.unprotect_id or volume.taken or volume.move:
        raise ConflictError(f"volume {event.volume} wants no other diskbox")
    if event.diskbox not in catalogue.diskboxes:
        raise ConflictError(f"no diskbox {event.diskbox}")
    if volume.paused_at and volume.state == "failed":
        move(volume, "resumed_paused", event.at, volume.reason)
    move(volume, "placed", event.at, f"diskbox {old.name} was lost, {event.diskbox} takes over")
    volume.diskbox = event.diskbox
    volume.placed_id, volume.placed_from, volume.placed_at = event.id, old.name, event.at
    volume.path = volume.stopped = ""
    volume.needs_full, volume.made_offset = True, -1
    # What QEMU noted was on top of the copy that is lost.
    volume.bitmap, volume.whole = {}, False


def _drain_requested(catalogue: Catalogue, event: ev.DiskboxDrainRequested) -> None:
    box = catalogue.diskboxes.get(event.diskbox)
    if box is None:
        raise ConflictError(f"no diskbox {event.diskbox}")
    box.state = DISKBOX.next_state(box.name, box.state, "drain" if event.drain else "undrain")
    box.drain_id = event.id if event.drain else ""
    box.failed_id, box.failed_at = "", 0


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.DiskboxAnnounced: _diskbox_announced,
    ev.DiskboxRequested: _diskbox_requested,
    ev.DiskboxFailed: _diskbox_failed,
    ev.DiskboxLost: _diskbox_lost,
    ev.VolumePlaced: _volume_placed,
    ev.DiskboxDrainRequested: _drain_requested,
}
