"""Which diskbox a volume goes to, and when a new one is needed; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rephub.core.errors import ConflictError, RephubError, UnavailableError, from_json
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import expired, make, too_late
from rephub.projections.entities import PendingProtect, Volume
from rephub.schemas import events as ev


def place(catalogue: Catalogue, name: str, group: str, silent: Collection[str] = ()) -> str | None:
    """The diskbox for a volume: its old one, its group's, else the least loaded that is not silent.

    Args:
        catalogue: says who is there and who holds what.
        name: of the volume.
        group: that it belongs to.
        silent: diskboxes that do not answer.

    Returns:
        Its name; None: all that answer are full, a new one is needed.

    Raises:
        UnavailableError: none has announced itself; the one that the volume is bound to is silent.
        ConflictError: the one that the volume is bound to has no room.
    """
    if not catalogue.diskboxes:
        raise UnavailableError(
            "no diskbox has announced itself", hint="start one: rephub up, or rephub diskbox"
        )
    for member in catalogue.group_members(group):
        if member.move:
            raise ConflictError(
                f"group {group} is being moved to another diskbox",
                hint=f"wait until it is done, or rephub fleet cancel --group {group}",
            )
    old = catalogue.volumes.get(name)
    if old is not None and not old.purged and not _is_lost(catalogue, old.diskbox):
        bound = {old.diskbox}
    else:
        bound = _boxes_of_group(catalogue, group)
    return _with_room(catalogue, bound, {name}, silent)


def place_together(catalogue: Catalogue, members: list[Volume], silent: Collection[str]) -> str | None:
    """The diskbox for volumes of one group that leave theirs: beside the rest of the group, else the least loaded.

    Returns:
        Its name, with room for all of them; None: a new one is needed.

    Raises:
        UnavailableError, ConflictError: the rest of the group is on one that is silent or full.
    """
    names = {member.name for member in members}
    leaving = {member.diskbox for member in members}
    bound = _boxes_of_group(catalogue, members[0].group) - leaving
    return _with_room(catalogue, bound, names, {*silent, *leaving})


def _is_lost(catalogue: Catalogue, name: str) -> bool:
    box = catalogue.diskboxes.get(name)
    return box is not None and box.lost


def _boxes_of_group(catalogue: Catalogue, group: str) -> set[str]:
    """Where the group is, as far as those diskboxes are not lost."""
    found = {member.diskbox for member in catalogue.group_members(group)}
    return {name for name in found if not _is_lost(catalogue, name)}


def _load(catalogue: Catalogue, without: set[str]) -> dict[str, int]:
    """Places taken on each diskbox, by volumes there and on their way there, without some."""
    load = dict.fromkeys(catalogue.diskboxes, 0)
    for volume in catalogue.volumes.values():
        if not volume.purged and volume.name not in without:
            load[volume.diskbox] = load.get(volume.diskbox, 0) + 1
    for move in catalogue.moves.values():
        if not move.ended:
            load[move.diskbox] = load.get(move.diskbox, 0) + len(move.volumes)
    return load


def room_on(catalogue: Catalogue, name: str, volumes: list[Volume]) -> bool:
    """Whether a diskbox has room for volumes that are not there."""
    return _load(catalogue, set())[name] + len(volumes) <= catalogue.diskboxes[name].capacity


def _with_room(catalogue: Catalogue, bound: set[str], names: set[str], silent: Collection[str]) -> str | None:
    """The least loaded of the diskboxes `bound` (empty: of all) that has room for the volumes `names`."""
    load = _load(catalogue, names)
    usable = {
        name: box for name, box in catalogue.diskboxes.items() if box.state == "ready" and name not in silent
    }
    wanted = sorted(bound or catalogue.diskboxes)
    answering = [box for box in wanted if box in usable]
    room = [box for box in answering if load[box] + len(names) <= usable[box].capacity]
    if room:
        return min(room, key=lambda box: (load[box], box))
    if not bound:
        return None
    name = ", ".join(sorted(names))
    draining = [box for box in wanted if box in catalogue.diskboxes and catalogue.diskboxes[box].drain_id]
    if draining and not answering:
        raise ConflictError(
            f"volume {name} belongs to diskbox {', '.join(draining)}, which is being drained",
            hint="wait until its group has moved: rephub fleet list",
        )
    if not answering:
        raise UnavailableError(
            f"volume {name} belongs to diskbox {', '.join(wanted)}, which does not answer",
            hint="rephub status says which parts run",
        )
    raise ConflictError(
        f"no room for volume {name}: {', '.join(f'{box} holds {load[box]}' for box in answering)}",
        hint="choose another --group, or unprotect --purge what is not needed",
    )


def overflow(
    catalogue: Catalogue, waiting: PendingProtect, now: int, silent: Collection[str]
) -> Iterator[ev.DiskboxRequested]:
    """Ask for a diskbox for a protect that found no room; nothing while one is asked for already.

    Raises:
        RephubError: the provider failed while it waited, or its deadline is over.
    """
    if waiting.diskbox_error:
        raise from_json(waiting.diskbox_error)
    if expired(waiting.deadline_at, now):
        raise _no_room_in_time(catalogue, waiting, silent)
    if catalogue.diskbox_requests:
        return
    name = free_name(catalogue)
    yield make(
        catalogue,
        ev.DiskboxRequested,
        now,
        waiting.event_id,
        name,
        command_id=waiting.command_id or None,
        diskbox=name,
        volume=waiting.volume,
    )


def _no_room_in_time(catalogue: Catalogue, waiting: PendingProtect, silent: Collection[str]) -> RephubError:
    mute = f" ({', '.join(sorted(silent))} does not answer)" if silent else ""
    asked = ", ".join(catalogue.diskbox_requests) or "a new one"
    return too_late(
        f"no diskbox has room for volume {waiting.volume}{mute}, and {asked} did not announce itself"
    )


def free_name(catalogue: Catalogue) -> str:
    """The first of diskbox1, diskbox2, … that no diskbox has."""
    number = 1
    while f"diskbox{number}" in catalogue.diskboxes or f"diskbox{number}" in catalogue.diskbox_requests:
        number += 1
    return f"diskbox{number}"
