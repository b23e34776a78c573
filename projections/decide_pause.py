"""What the hub decides about pause and resume; pure."""

from __future__ import annotations

from typing import Any

from rephub.core.errors import ConflictError
from rephub.core.units import rfc3339
from rephub.projections import states
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, make, protected_volume, undisturbed
from rephub.projections.entities import Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

_HINTS = {
    "failed": "rephub status says why; rephub resync takes it up again",
    "promoted": "nothing captures it: its disk can be changed as it is",
    "failed_over": "rephub status shows its state",
}
"""What to do instead, by state; else wait until it is protected."""


def answer(volume: Volume) -> dict[str, Any]:
    """What `pause` and `resume` answer."""
    paused_at = rfc3339(volume.paused_at) if volume.paused_at else None
    return {"volume": volume.name, "epoch": volume.epoch, "state": volume.state, "paused_at": paused_at}


def pause(catalogue: Catalogue, command: cmd.Pause, now: int) -> ev.Record:
    """Ask the agent to let go.

    Only a volume that is whole can be paused: what a sync had still to copy is in no bitmap.

    Raises:
        NotFoundError: unknown volume.
        ConflictError: it is not protected, or busy.
    """
    volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    if volume.resume_id or (volume.paused_at and volume.resync_id):
        raise ConflictError(
            f"volume {volume.name} is being resumed",
            hint=f"rephub wait {volume.name} --state protected",
            state=volume.state,
        )
    if volume.paused_at or volume.pause_id:
        return fulfilled(catalogue, command, now, answer(volume) | {"done": bool(volume.paused_at)})
    if volume.state != "protected" or not volume.attached or volume.resync_id:
        wait = f"rephub wait {volume.name} --state protected"
        raise ConflictError(
            f"a volume that is {volume.state} cannot be paused",
            hint=_HINTS.get(volume.state, wait),
            state=volume.state,
        )
    states.next_state(volume.state, "paused")
    return make(
        catalogue,
        ev.PauseRequested,
        now,
        command.id,
        volume.name,
        command_id=command.id,
        volume=volume.name,
        deadline_at=command.deadline_at,
    )


def resume(catalogue: Catalogue, command: cmd.Resume, now: int) -> ev.Record:
    """Ask the agent to attach again; without a deadline: a volume that shall be captured, shall be.

    Raises:
        NotFoundError: unknown volume.
        ConflictError: it is promoted or stopped, or busy.
    """
    volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    if volume.pause_id:
        raise ConflictError(
            f"volume {volume.name} is being paused",
            hint=f"rephub wait {volume.name} --state paused",
            state=volume.state,
        )
    if volume.resume_id or (volume.paused_at and volume.resync_id):
        return fulfilled(catalogue, command, now, answer(volume) | {"done": False})
    if not volume.paused_at:
        if volume.state in _HINTS:
            raise ConflictError(
                f"volume {volume.name} is {volume.state}, not paused",
                hint=_HINTS[volume.state],
                state=volume.state,
            )
        return fulfilled(catalogue, command, now, answer(volume) | {"done": True})
    return make(
        catalogue,
        ev.ResumeRequested,
        now,
        command.id,
        volume.name,
        command_id=command.id,
        volume=volume.name,
    )
