"""How the events about comparisons change the catalogue; see `fold.py`, and `Comparison` for the rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.core.units import format_bytes
from rephub.projections import fold_sync
from rephub.projections.entities import Comparison, message
from rephub.projections.extent_lists import total
from rephub.projections.fold_volume import known_volume, move
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue

ENDED_MAX = 100
"""Ended comparisons that the catalogue remembers."""


def _comparison(catalogue: Catalogue, name: str, *states: str, round_: int = 0) -> Comparison:
    """The comparison, if it is in one of the states, and in the round if one is given. Raises ConflictError."""
    found = catalogue.comparisons.get(name)
    if found is None or found.state not in states:
        raise ConflictError(f"comparison {name} is {found.state if found else 'unknown'}")
    if round_ and found.round != round_:
        raise ConflictError(f"comparison {name} is in round {found.round}, not {round_}")
    return found


def _verify_requested(catalogue: Catalogue, event: ev.VerifyRequested) -> None:
    if event.verify in catalogue.comparisons or catalogue.comparison_of(event.volume) is not None:
        raise ConflictError(f"volume {event.volume} is being compared already")
    known_volume(catalogue, event.volume)
    catalogue.comparisons[event.verify] = Comparison(
        name=event.verify,
        volume=event.volume,
        epoch=event.epoch,
        repair=event.repair,
        rate_bytes=event.rate_bytes,
        deadline_at=event.deadline_at,
        requested_at=event.at,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _accepted(catalogue: Catalogue, event: ev.ComparisonAccepted) -> None:
    comparison = _comparison(catalogue, event.run, "requested")
    comparison.state = "digesting"
    if event.extents is not None:
        comparison.extents = [[extent.start, extent.length] for extent in event.extents]


def _digested(catalogue: Catalogue, event: ev.ExtentsDigested) -> None:
    comparison = _comparison(catalogue, event.run, "digesting", round_=event.round)
    comparison.state = "comparing"
    comparison.last_offset = event.last_offset
    comparison.digested_bytes = event.digested_bytes
    # What an exact round skips, the round before has named as differing: it is not skipped twice.
    comparison.skipped_bytes += event.skipped_bytes
    comparison.repaired_bytes += event.copied_bytes


def _compared(catalogue: Catalogue, event: ev.ExtentsCompared) -> None:
    comparison = _comparison(catalogue, event.run, "comparing", round_=event.round)
    comparison.last_offset = max(comparison.last_offset, event.offset)
    differing = [[extent.start, extent.length] for extent in event.differing]
    if comparison.sync:
        comparison.extents, comparison.state = differing, "copying"
        return
    if not comparison.exact:
        comparison.compared_bytes = event.compared_bytes
    elif not comparison.copies:
        comparison.found, comparison.found_bytes = differing, event.differing_bytes
    if next_round(comparison, differing):
        comparison.round += 1
        comparison.extents, comparison.state = differing, "digesting"
    else:
        comparison.extents, comparison.state = [], "compared"
        comparison.equal = not differing


def next_round(comparison: Comparison, differing: Sequence[Sequence[int]]) -> bool:
    """Rule: whether what was found to differ is looked at again: exactly, and once more after a repair."""
    if not differing or comparison.copies:
        return False
    return comparison.repair or not comparison.exact


def _verify_completed(catalogue: Catalogue, event: ev.VerifyCompleted) -> None:
    """A volume that differs is `failed` until it is repaired, found equal, or copied anew."""
    comparison = _comparison(catalogue, event.verify, "compared")
    comparison.state = "completed"
    volume = catalogue.volumes.get(event.volume)
    if volume is not None and volume.live and volume.epoch == comparison.epoch:
        if not event.equal:
            volume.differs = sentence(comparison)
            move(volume, "stopped", event.at, volume.stopped or volume.differs)
        elif volume.differs:
            volume.differs = ""
            if not volume.stopped:
                move(volume, "resumed_synced", event.at, "")
    _prune(catalogue)


def sentence(comparison: Comparison) -> str:
    """What was found, for people."""
    first = comparison.found[0] if comparison.found else [0, 0]
    return (
        f"verify: the recovery volume differs in {format_bytes(comparison.found_bytes or total(comparison.found))}, "
        f"first at byte {first[0]}"
    )


def _verify_failed(catalogue: Catalogue, event: ev.VerifyFailed) -> None:
    states = ("requested", "digesting", "comparing", "copying", "compared")
    comparison = _comparison(catalogue, event.verify, *states)
    if comparison.sync:
        fold_sync.failed(catalogue, comparison, event)
        return
    comparison.state, comparison.reason = "failed", message(event.error)
    comparison.extents = []
    _prune(catalogue)


def _prune(catalogue: Catalogue) -> None:
    ended = [one.name for one in catalogue.comparisons.values() if one.ended]
    for name in ended:
        catalogue.comparisons[name].found = []
    for name in ended[:-ENDED_MAX]:
        del catalogue.comparisons[name]


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.VerifyRequested: _verify_requested,
    ev.ComparisonAccepted: _accepted,
    ev.ExtentsDigested: _digested,
    ev.ExtentsCompared: _compared,
    ev.VerifyCompleted: _verify_completed,
    ev.VerifyFailed: _verify_failed,
}
