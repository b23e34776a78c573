"""How the events about moves between diskboxes change the catalogue; see `fold.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections.entities import Move, message
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue

ENDED_MAX = 1000
"""Ended moves that the catalogue remembers."""


def _move_requested(catalogue: Catalogue, event: ev.MoveRequested) -> None:
    volumes = [catalogue.volumes.get(name) for name in event.volumes]
    if event.move in catalogue.moves or event.diskbox not in catalogue.diskboxes:
        raise ConflictError(f"move {event.move} exists, or its diskbox does not")
    for volume in volumes:
        if volume is None or not volume.live or volume.unprotect_id or volume.taken or volume.move:
            raise ConflictError(f"a volume of move {event.move} is busy or gone")
        if volume.diskbox != event.previous_diskbox:
            raise ConflictError(f"volume {volume.name} is not on diskbox {event.previous_diskbox}")
    for volume in volumes:
        assert volume is not None
        volume.move = event.move
    catalogue.moves[event.move] = Move(
        name=event.move,
        volumes=list(event.volumes),
        diskbox=event.diskbox,
        previous=event.previous_diskbox,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _at_work(catalogue: Catalogue, name: str) -> Move:
    """The move. Raises ConflictError: it ended, or never was."""
    move = catalogue.moves.get(name)
    if move is None or move.ended:
        raise ConflictError(f"move {name} is {move.state if move else 'unknown'}")
    return move


def _move_served(catalogue: Catalogue, event: ev.MoveServed) -> None:
    """Again after a restart: the position is the same, the URI may be another one."""
    move = _at_work(catalogue, event.move)
    if event.volume not in move.volumes:
        raise ConflictError(f"volume {event.volume} is not in move {event.move}")
    move.served[event.volume] = {"uri": event.uri, "position": event.position}


def _move_copied(catalogue: Catalogue, event: ev.MoveCopied) -> None:
    move = _at_work(catalogue, event.move)
    if event.volume not in move.volumes:
        raise ConflictError(f"volume {event.volume} is not in move {event.move}")
    move.copied[event.volume] = event.path


def _volumes_moved(catalogue: Catalogue, event: ev.VolumesMoved) -> None:
    move = _at_work(catalogue, event.move)
    if move.copied.keys() != set(move.volumes):
        raise ConflictError(f"move {event.move} is not complete")
    for name in move.volumes:
        volume = catalogue.volumes[name]
        volume.diskbox, volume.path = move.diskbox, move.copied[name]
        volume.placed_id, volume.placed_from, volume.placed_at = move.event_id, "", 0
        volume.move = ""
    move.state = "moved"
    _prune(catalogue)


def _move_failed(catalogue: Catalogue, event: ev.MoveFailed) -> None:
    move = _at_work(catalogue, event.move)
    move.state, move.reason = "failed", message(event.error)
    for name in move.volumes:
        volume = catalogue.volumes.get(name)
        if volume is not None and volume.move == move.name:
            volume.move = ""
    box = catalogue.diskboxes.get(move.previous)
    if box is not None and box.state == "draining":
        box.failed_id, box.failed_at = event.id, event.at
    _prune(catalogue)


def _prune(catalogue: Catalogue) -> None:
    if len(catalogue.moves) <= ENDED_MAX:
        return
    ended = [name for name, move in catalogue.moves.items() if move.ended]
    for name in ended[:-ENDED_MAX]:
        del catalogue.moves[name]


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.MoveRequested: _move_requested,
    ev.MoveServed: _move_served,
    ev.MoveCopied: _move_copied,
    ev.VolumesMoved: _volumes_moved,
    ev.MoveFailed: _move_failed,
}
