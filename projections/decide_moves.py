"""What the hub decides about moves between diskboxes and about draining; pure."""

from __future__ import annotations

from collections.abc import Collection

from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, make, not_moving, targets
from rephub.projections.decide_fleet import known_diskbox
from rephub.projections.entities import Move, Volume
from rephub.projections.placement import place_together, room_on
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def move(catalogue: Catalogue, command: cmd.MoveVolumes, now: int, silent: Collection[str]) -> ev.Record:
    """Let a recovery volume, with all of its group, move while protection goes on.

    Raises:
        UsageError, NotFoundError, ConflictError: the target is wrong, busy, or cannot be moved; no room there.
        UnavailableError: one of the two diskboxes does not answer.
    """
    named = targets(catalogue, command.volume, command.group, one_diskbox=True)
    volumes = catalogue.group_members(named[0].group)
    if command.diskbox is not None and {volume.diskbox for volume in volumes} == {command.diskbox}:
        return fulfilled(catalogue, command, now, _answer(volumes, command.diskbox))
    if volumes[0].move and all(volume.move == volumes[0].move for volume in volumes):
        under_way = catalogue.moves[volumes[0].move]
        if command.diskbox in (None, under_way.diskbox):
            return fulfilled(
                catalogue, command, now, _answer(volumes, under_way.diskbox) | {"move": under_way.name}
            )
    previous = volumes[0].diskbox
    for volume in volumes:
        error = unfit(catalogue, volume)
        if error is not None:
            raise error
    if len({volume.diskbox for volume in volumes}) > 1:
        raise ConflictError(
            f"the volumes of group {volumes[0].group} are on several diskboxes", hint="rephub fleet list"
        )
    if previous in silent:
        raise UnavailableError(f"diskbox {previous} does not answer", hint="rephub fleet list")
    target = _target(catalogue, command, volumes, silent)
    return make(
        catalogue,
        ev.MoveRequested,
        now,
        command.id,
        command.id,
        command_id=command.id,
        move=command.id,
        volumes=tuple(volume.name for volume in volumes),
        diskbox=target,
        previous_diskbox=previous,
    )


def _answer(volumes: list[Volume], diskbox: str) -> dict[str, object]:
    return {"move": "", "volumes": [volume.name for volume in volumes], "diskbox": diskbox}


def _target(
    catalogue: Catalogue, command: cmd.MoveVolumes, volumes: list[Volume], silent: Collection[str]
) -> str:
    if command.diskbox is None:
        found = place_together(catalogue, volumes, silent)
        if found is None:
            raise ConflictError(
                "no other diskbox has room", hint="start another one, or name one with --to DISKBOX"
            )
        return found
    box = known_diskbox(catalogue, command.diskbox)
    if box.state != "ready":
        raise ConflictError(f"diskbox {box.name} is {box.state}", hint="rephub fleet list")
    if box.name in silent:
        raise UnavailableError(f"diskbox {box.name} does not answer", hint="rephub fleet list")
    if not room_on(catalogue, box.name, volumes):
        raise ConflictError(f"diskbox {box.name} has no room", hint="rephub fleet list")
    return box.name


def unfit(catalogue: Catalogue, volume: Volume) -> RephubError | None:
    """Why the volume cannot be moved now; None: it can."""
    if volume.recovery is not None:
        return ConflictError(
            f"the recovery volume of {volume.name} is {volume.recovery}, where --recovery put it",
            hint="unprotect it, then protect it with another --recovery",
        )
    try:
        not_moving(volume)
    except ConflictError as error:
        return error
    if not volume.path or volume.stopped or volume.unprotect_id or volume.taken:
        return ConflictError(
            f"volume {volume.name} is {volume.state}: {volume.reason or 'busy'}",
            hint="rephub status",
            state=volume.state,
        )
    tests = [fot.name for fot in catalogue.fots.values() if volume.name in fot.volumes and not fot.ended]
    if tests:
        return ConflictError(
            f"fail-over test {', '.join(tests)} uses volume {volume.name}",
            hint=f"rephub fot stop {tests[0]}",
            fots=tests,
        )
    return None


def cancel(catalogue: Catalogue, command: cmd.CancelMove, now: int) -> ev.Record:
    """Give up a move; the volumes stay where they are.

    Raises:
        UsageError, NotFoundError, ConflictError: the target is wrong, or does not move.
    """
    (found, *_) = targets(catalogue, command.volume, command.group, one_diskbox=False)
    under_way = catalogue.moves.get(found.move)
    if under_way is None:
        raise NotFoundError(f"volume {found.name} is not being moved", hint="rephub fleet list")
    return failed(
        catalogue,
        under_way,
        now,
        ConflictError("the move was cancelled", hint="rephub fleet move begins it anew"),
        command.id,
        command.id,
    )


def failed(
    catalogue: Catalogue, under_way: Move, now: int, error: RephubError, cause_id: str, command_id: str
) -> ev.MoveFailed:
    """The end of a move without effect."""
    return make(
        catalogue,
        ev.MoveFailed,
        now,
        cause_id,
        under_way.name,
        command_id=command_id or None,
        move=under_way.name,
        error=error.to_json(),
    )


def drain(catalogue: Catalogue, command: cmd.DrainDiskbox, now: int) -> ev.Record:
    """Move everything off a diskbox, group by group (`reactions_fleet.py`), or use it again.

    Raises:
        NotFoundError: unknown diskbox.
        ConflictError: it is lost.
    """
    box = known_diskbox(catalogue, command.diskbox)
    if box.lost:
        raise ConflictError(f"diskbox {box.name} is lost", hint="its volumes go to others anyway")
    if (box.state == "draining") == command.drain:
        return fulfilled(catalogue, command, now, {"diskbox": box.name, "state": box.state})
    return make(
        catalogue,
        ev.DiskboxDrainRequested,
        now,
        command.id,
        box.name,
        command_id=command.id,
        diskbox=box.name,
        drain=command.drain,
    )
