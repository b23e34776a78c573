"""How the events about named checkpoints change the catalogue; see `fold.py`.

Periodic checkpoints are not here: they live in the journal and its timeline, and vanish with the history window. Of
the named ones the catalogue, not the marker, says what they are: a marker of one that failed is no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections.entities import Checkpoint, message
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue

ENDED_MAX = 1000
"""Checkpoints that failed, expired or were deleted, and that the catalogue still remembers."""


def _requested(catalogue: Catalogue, event: ev.CheckpointRequested) -> None:
    old = catalogue.checkpoints.get(event.checkpoint)
    if old is not None and not old.ended:
        raise ConflictError(f"checkpoint {event.checkpoint} exists")
    catalogue.checkpoints.pop(event.checkpoint, None)
    catalogue.checkpoints[event.checkpoint] = Checkpoint(
        name=event.checkpoint,
        volumes=list(event.volumes),
        group=event.group,
        agent=event.agent,
        kind=event.kind,
        deadline_at=event.deadline_at or 0,
        event_id=event.id,
        command_id=event.command_id or "",
        tags=dict(event.tags or {}),
    )


def _known(catalogue: Catalogue, name: str, *states: str) -> Checkpoint:
    """The checkpoint, if it is in one of the states. Raises ConflictError."""
    checkpoint = catalogue.checkpoints.get(name)
    if checkpoint is None or checkpoint.state not in states:
        state = "unknown" if checkpoint is None else checkpoint.state
        raise ConflictError(f"checkpoint {name} is {state}, not {' or '.join(states)}")
    return checkpoint


def _answered(catalogue: Catalogue, event: ev.CheckpointCreated | ev.CheckpointFailed) -> Checkpoint:
    """The checkpoint that the event answers. Raises ConflictError: an earlier one of this name, which the hub gave up."""
    checkpoint = _known(catalogue, event.checkpoint, "requested")
    if event.cause_id and event.cause_id != checkpoint.event_id:
        raise ConflictError(f"checkpoint {event.checkpoint} was asked for anew since")
    return checkpoint


def _created(catalogue: Catalogue, event: ev.CheckpointCreated) -> None:
    checkpoint = _answered(catalogue, event)
    checkpoint.state = "created"
    checkpoint.kind = event.kind
    checkpoint.offsets = dict(event.offsets)
    checkpoint.captured_at = event.captured_at


def _failed(catalogue: Catalogue, event: ev.CheckpointFailed) -> None:
    checkpoint = _answered(catalogue, event)
    checkpoint.state, checkpoint.reason = "failed", message(event.error)
    _prune(catalogue)


def _expired(catalogue: Catalogue, event: ev.CheckpointExpired) -> None:
    """One volume's window has passed it; it is gone for good once those of all its volumes have."""
    checkpoint = _known(catalogue, event.checkpoint, "created")
    if checkpoint.offsets.get(event.volume) != event.offset:
        raise ConflictError(f"checkpoint {event.checkpoint} is at another offset of volume {event.volume}")
    if event.volume not in checkpoint.expired:
        checkpoint.expired.append(event.volume)
    _settle(catalogue, checkpoint)


def _deleted(catalogue: Catalogue, event: ev.CheckpointDeleted) -> None:
    checkpoint = _known(catalogue, event.checkpoint, "created", "expired", "failed")
    checkpoint.state, checkpoint.reason = "deleted", ""
    _prune(catalogue)


def forget_checkpoints(catalogue: Catalogue, name: str) -> None:
    """The journal is gone, and with it the markers."""
    for checkpoint in list(catalogue.checkpoints.values()):
        if name in checkpoint.volumes:
            checkpoint.volumes.remove(name)
            checkpoint.offsets.pop(name, None)
            if name in checkpoint.expired:
                checkpoint.expired.remove(name)
            if not checkpoint.volumes:
                del catalogue.checkpoints[checkpoint.name]
            elif checkpoint.state == "created":
                _settle(catalogue, checkpoint)


def _settle(catalogue: Catalogue, checkpoint: Checkpoint) -> None:
    if set(checkpoint.offsets) <= set(checkpoint.expired):
        checkpoint.state = "expired"
        _prune(catalogue)


def _prune(catalogue: Catalogue) -> None:
    """Forget the oldest that ended: the snapshot stays small."""
    ended = [name for name, checkpoint in catalogue.checkpoints.items() if checkpoint.ended]
    for name in ended[:-ENDED_MAX]:
        del catalogue.checkpoints[name]


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.CheckpointRequested: _requested,
    ev.CheckpointCreated: _created,
    ev.CheckpointFailed: _failed,
    ev.CheckpointExpired: _expired,
    ev.CheckpointDeleted: _deleted,
}
