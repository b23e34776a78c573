"""Helpers that all decisions share: making events of the hub, finding what a command names."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from rephub.core.control.ids import event_id
from rephub.core.errors import ConflictError, DeadlineError, NotFoundError, UsageError
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

EventT = TypeVar("EventT")

NAMES_SHOWN_MAX = 10
"""Names that a hint lists."""

POINT_KINDS = ("offset", "time", "checkpoint", "latest")


def make(
    catalogue: Catalogue, kind: type[EventT], now: int, cause_id: str, subject: str, /, **fields: Any
) -> EventT:
    """An event of the hub that is in charge.

    Args:
        catalogue: says which hub that is.
        kind: class of the event.
        now: microseconds since the Unix epoch.
        cause_id: id of the command or event that it answers; with `subject` it fixes the event's id.
        subject: what the event is about, where one cause has several effects of a kind.
        **fields: the rest.
    """
    head = {
        "id": event_id(cause_id, kind.__name__, subject),
        "at": now,
        "source": f"hub/{catalogue.hub}",
        "cause_id": cause_id,
        "hub_epoch": catalogue.hub_epoch,
    }
    return kind(**head, **fields)


def fulfilled(
    catalogue: Catalogue, command: cmd.Record, now: int, answer: dict[str, Any]
) -> ev.CommandFulfilled:
    """Say that what the command wishes for is so already."""
    return make(
        catalogue,
        ev.CommandFulfilled,
        now,
        command.id,
        "",
        command_id=command.id,
        answer=json.dumps(answer),
    )


def one_of(value: str, allowed: tuple[str, ...], what: str) -> str:
    """The value. Raises UsageError if it is not one of those allowed."""
    if value not in allowed:
        raise UsageError(f"bad {what} {value!r}", hint=f"one of {', '.join(allowed)}")
    return value


def listed(names: list[str], what: str) -> str:
    """A hint: the names that there are."""
    if not names:
        return f"there are no {what}"
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return f"{what}: {', '.join(sorted(names)[:NAMES_SHOWN_MAX])}{more}"


def protected_volume(catalogue: Catalogue, name: str) -> Volume:
    """The volume, protected or promoted.

    Raises:
        UsageError: not a name.
        NotFoundError: nobody protects it; the hint lists those there are.
    """
    volume = catalogue.volumes.get(check_name(name, "volume"))
    if volume is None or volume.retired:
        known = [other.name for other in catalogue.volumes.values() if not other.retired]
        raise NotFoundError(f"no volume {name} is protected", hint=listed(known, "volumes"))
    return volume


def undisturbed(catalogue: Catalogue, volume: Volume) -> None:
    """Refuse while something else is under way with the volume.

    Raises:
        ConflictError: an unprotect, a promote or a fail-over is.
    """
    if volume.unprotect_id:
        raise ConflictError(
            f"volume {volume.name} is being unprotected",
            hint="wait until it is done: rephub status",
            state=volume.state,
        )
    promotion = catalogue.promotions.get(volume.promotion)
    if promotion is not None:
        raise ConflictError(
            f"volume {volume.name} is being promoted",
            hint="wait until it is done: rephub status",
            state=volume.state,
        )
    if volume.failover:
        raise ConflictError(
            f"volume {volume.name} is failed over",
            hint=f"rephub commit {volume.name}, or rephub rollback {volume.name}",
            state=volume.state,
        )


def not_moving(volume: Volume) -> None:
    """Refuse while the volume is on its way to another diskbox. Raises ConflictError."""
    if volume.move:
        raise ConflictError(
            f"volume {volume.name} is being moved to another diskbox",
            hint=f"wait until it is done, or rephub fleet cancel --volume {volume.name}",
            state=volume.state,
        )


def targets(
    catalogue: Catalogue, volume: str | None, group: str | None, *, one_diskbox: bool
) -> list[Volume]:
    """The volumes that a command names: one, or the members of a group, by name.

    Raises:
        UsageError: both or neither is named.
        NotFoundError: unknown volume or group.
        ConflictError: one is promoted, or busy, or the group spans diskboxes.
    """
    if (volume is None) == (group is None):
        raise UsageError("not exactly one of volume and group is named", hint="name a volume, or a group")
    if group is not None:
        found = catalogue.group_members(check_name(group, "group"))
        if not found:
            groups = list({member.group for member in catalogue.live_volumes()})
            raise NotFoundError(f"no group {group}", hint=listed(groups, "groups"))
    else:
        found = [protected_volume(catalogue, str(volume))]
    for member in found:
        if member.state == "promoted":
            raise ConflictError(
                f"volume {member.name} is promoted",
                hint="protect it again, or use its recovery volume",
                state="promoted",
                path=member.path,
            )
        undisturbed(catalogue, member)
    if one_diskbox and len({member.diskbox for member in found}) > 1:
        raise ConflictError(
            f"the volumes of group {group} are on several diskboxes", hint="name the volumes one by one"
        )
    return found


def expired(deadline_at: int, now: int) -> bool:
    """Whether the deadline is over; 0 is none."""
    return 0 < deadline_at < now


def too_late(what: str) -> DeadlineError:
    """The error of something that nobody answered in time."""
    return DeadlineError(f"{what} in time", hint="rephub status says which part does not answer")
