"""What the hub has to write because a diskbox is silent or lost; pure.

A lost diskbox ends what runs on it, and its volumes go to others: a group together, least loaded first, to a new diskbox
of the provider if all are full. What the operator named with --recovery stays where it is, see `may_move`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from rephub.core.errors import RephubError, UnavailableError
from rephub.core.targets import target_kind
from rephub.projections import decide_failover, states
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import make
from rephub.projections.decide_moves import failed, unfit
from rephub.projections.entities import Diskbox, Fot, Move, Promotion, Volume
from rephub.projections.placement import free_name, place_together
from rephub.schemas import events as ev

PLACE_RETRY_SECONDS = 60
"""After the provider failed: nobody waits at a terminal, and a site's hook is not to be called without end."""


def of_fleet(
    catalogue: Catalogue, now: int, silent: Collection[str], gone: Mapping[str, str], lost_seconds: float
) -> Iterator[ev.Record]:
    """Events that are due about diskboxes.

    Args:
        catalogue: folded up to the head.
        now: microseconds since the Unix epoch.
        silent: diskboxes that do not answer; nothing is placed there.
        gone: those that have not answered for `lost_seconds`: name → the announcement of the process that is missing.
        lost_seconds: the limit, for the reason.
    """
    for name in sorted(gone):
        box = catalogue.diskboxes.get(name)
        if box is not None and not box.lost and box.announced_id == gone[name]:
            yield make(
                catalogue,
                ev.DiskboxLost,
                now,
                box.announced_id,
                name,
                diskbox=name,
                reason=f"silent for {lost_seconds:g} s",
                off=False,
            )
    yield from _moves(catalogue, now)
    for box in catalogue.diskboxes.values():
        if box.lost:
            yield from _what_runs_on(catalogue, box, now)
            yield from _placements(catalogue, box, now, silent)
        elif box.state == "draining":
            yield from _drain(catalogue, box, now, silent)


def _error_of(box: Diskbox) -> str:
    return UnavailableError(f"diskbox {box.name} is lost", hint="rephub fleet list").to_json()


def _what_runs_on(catalogue: Catalogue, box: Diskbox, now: int) -> Iterator[ev.Record]:
    """Tests, promotes and protects that have just begun fail: what they were about is out of reach."""
    for fot in catalogue.fots.values():
        if fot.diskbox == box.name and not fot.ended:
            yield make(
                catalogue,
                ev.FotFailed,
                now,
                box.lost_id,
                fot.name,
                command_id=fot.command_id or None,
                fot=fot.name,
                error=_error_of(box),
            )
    for promotion in catalogue.promotions.values():
        if promotion.diskbox == box.name and not promotion.ended:
            yield make(
                catalogue,
                ev.PromoteFailed,
                now,
                box.lost_id,
                promotion.name,
                command_id=promotion.command_id or None,
                promotion=promotion.name,
                error=_error_of(box),
            )
    yield from decide_failover.failed_on_lost(catalogue, box.name, now, _error_of(box))
    for volume in catalogue.live_volumes():
        if volume.diskbox == box.name and not volume.attached_before and not volume.unprotect_id:
            yield make(
                catalogue,
                ev.ProtectFailed,
                now,
                volume.start_id,
                volume.name,
                command_id=volume.command_id or None,
                volume=volume.name,
                error=_error_of(box),
            )


def may_move(volume: Volume, box: Diskbox) -> bool:
    """Whether another diskbox may make a new recovery volume in place of the one on the lost diskbox.

    A path or a device was chosen on that host: nobody knows its like elsewhere, so the volume waits for its diskbox.
    An NBD target can be reached from elsewhere, but so can the lost diskbox still reach it: it is taken over only once
    an operator has said that it is off.
    """
    return volume.recovery is None or (target_kind(volume.recovery) == "nbd" and box.off)


def waiting_on(catalogue: Catalogue, box: Diskbox) -> list[Volume]:
    """The volumes of a lost diskbox that are to go to another one, by name."""
    return [
        volume
        for volume in catalogue.live_volumes()
        if volume.diskbox == box.name
        and volume.attached_before
        and not volume.unprotect_id
        and not volume.taken
        and not volume.move
        and states.may(volume.state, "placed")
        and may_move(volume, box)
    ]


def _placements(catalogue: Catalogue, box: Diskbox, now: int, silent: Collection[str]) -> Iterator[ev.Record]:
    """One group at a time, because it changes where the next one may go."""
    waiting = waiting_on(catalogue, box)
    full = False
    for group in dict.fromkeys(volume.group for volume in waiting):
        members = [volume for volume in waiting if volume.group == group]
        try:
            diskbox = place_together(catalogue, members, silent)
        except RephubError:
            # Beside the rest of its group there is no room now; what changes that wakes the hub.
            continue
        if diskbox is None:
            full = True
            continue
        for volume in members:
            yield make(
                catalogue,
                ev.VolumePlaced,
                now,
                box.lost_id,
                volume.name,
                volume=volume.name,
                diskbox=diskbox,
                previous_diskbox=box.name,
            )
        return
    if full:
        yield from _one_more(catalogue, box, now, waiting[0].name)


def _rests(box: Diskbox, now: int) -> bool:
    """Whether something failed for its volumes a moment ago."""
    return bool(box.failed_id) and now < box.failed_at + PLACE_RETRY_SECONDS * 1_000_000


def _one_more(catalogue: Catalogue, box: Diskbox, now: int, volume: str) -> Iterator[ev.Record]:
    """Ask the provider, one at a time, and not again at once after it failed."""
    if catalogue.diskbox_requests or _rests(box, now):
        return
    name = free_name(catalogue)
    cause_id = box.failed_id or box.lost_id or box.drain_id
    yield make(catalogue, ev.DiskboxRequested, now, cause_id, name, diskbox=name, volume=volume)


def _moves(catalogue: Catalogue, now: int) -> Iterator[ev.Record]:
    """The end of moves: the switch once all is copied and nobody looks at the old place, or a diskbox that was lost."""
    for move in catalogue.moves.values():
        if move.ended:
            continue
        lost = [name for name in (move.previous, move.diskbox) if catalogue.diskboxes[name].lost]
        if lost:
            error = UnavailableError(f"diskbox {lost[0]} is lost", hint="rephub fleet list")
            yield failed(catalogue, move, now, error, catalogue.diskboxes[lost[0]].lost_id, move.command_id)
        elif move.copied.keys() == set(move.volumes) and not _looked_at(catalogue, move):
            yield make(
                catalogue,
                ev.VolumesMoved,
                now,
                move.event_id,
                move.name,
                command_id=move.command_id or None,
                move=move.name,
            )


def _looked_at(catalogue: Catalogue, move: Move) -> bool:
    """Whether a test, or a promote with its pins, is at work on one of the volumes."""
    at_work: list[Fot | Promotion] = [*catalogue.fots.values(), *catalogue.promotions.values()]
    return any(not one.ended and set(one.volumes) & set(move.volumes) for one in at_work)


def _drain(catalogue: Catalogue, box: Diskbox, now: int, silent: Collection[str]) -> Iterator[ev.Record]:
    """One group after the other, so that the copies do not take each other's disk and network."""
    under_way = any(not move.ended and move.previous == box.name for move in catalogue.moves.values())
    if under_way or _rests(box, now) or box.name in silent:
        return
    volumes = [volume for volume in catalogue.live_volumes() if volume.diskbox == box.name]
    for group in dict.fromkeys(volume.group for volume in volumes):
        members = [volume for volume in volumes if volume.group == group]
        if any(unfit(catalogue, volume) for volume in members):
            continue
        try:
            diskbox = place_together(catalogue, members, silent)
        except RephubError:
            continue
        if diskbox is None:
            yield from _one_more(catalogue, box, now, members[0].name)
            return
        event = make(
            catalogue,
            ev.MoveRequested,
            now,
            box.failed_id or box.drain_id,
            group,
            move="",
            volumes=tuple(volume.name for volume in members),
            diskbox=diskbox,
            previous_diskbox=box.name,
        )
        yield replace(event, move=event.id)
        return
