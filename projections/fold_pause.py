"""How the events about pause, resume and a new size change the catalogue; see `fold.py`.

Whether capture is paused is `paused_at` and not the state alone: a paused volume whose projector stops is `failed`, and
still nobody attaches it before a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.core.units import rfc3339
from rephub.projections.entities import Volume
from rephub.projections.fold_volume import known_volume, move
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue


def _attached_in(catalogue: Catalogue, name: str, epoch: int) -> Volume:
    """The volume, if it is attached in the epoch. Raises ConflictError."""
    volume = known_volume(catalogue, name)
    if volume.retired or not volume.attached or epoch != volume.epoch:
        raise ConflictError(f"volume {name} is not attached in epoch {epoch}")
    return volume


def _pause_requested(catalogue: Catalogue, event: ev.PauseRequested) -> None:
    volume = known_volume(catalogue, event.volume)
    if volume.state != "protected" or not volume.attached or volume.unprotect_id or volume.taken:
        raise ConflictError(f"volume {event.volume} cannot be paused now")
    volume.pause_id, volume.pause_deadline_at = event.id, event.deadline_at
    volume.command_id = event.command_id or ""


def _volume_paused(catalogue: Catalogue, event: ev.VolumePaused) -> None:
    """If the hub has given up the pause meanwhile, capture is lost, and the bitmap makes the way back a short one."""
    volume = _attached_in(catalogue, event.volume, event.epoch)
    if volume.pause_id:
        move(volume, "paused", event.at, volume.stopped or f"paused since {rfc3339(event.at)}")
        volume.paused_at = event.at
    else:
        move(volume, "lost", event.at, volume.stopped or "paused too late")
    volume.pause_id, volume.attached = "", False
    volume.bitmap = {
        "name": event.bitmap,
        "persistent": event.persistent,
        "image": event.image,
        "epoch": event.epoch,
        "offset": event.offset,
        "based": True,
    }


def _pause_failed(catalogue: Catalogue, event: ev.PauseFailed) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.pause_id or volume.pause_id != event.cause_id:
        raise ConflictError(f"volume {event.volume} is not being paused")
    volume.pause_id = ""


def _resume_requested(catalogue: Catalogue, event: ev.ResumeRequested) -> None:
    volume = known_volume(catalogue, event.volume)
    if not volume.live or not volume.paused_at:
        raise ConflictError(f"volume {event.volume} is not paused")
    volume.resume_id = event.id
    volume.command_id = event.command_id or ""


def _volume_resized(catalogue: Catalogue, event: ev.VolumeResized) -> None:
    _attached_in(catalogue, event.volume, event.epoch).size_bytes = event.size_bytes


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.PauseRequested: _pause_requested,
    ev.VolumePaused: _volume_paused,
    ev.PauseFailed: _pause_failed,
    ev.ResumeRequested: _resume_requested,
    ev.VolumeResized: _volume_resized,
}
