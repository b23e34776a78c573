"""What a wish names: a point in time and a target, checked before anything is sent; for the command line and the web page."""

from __future__ import annotations

from dataclasses import dataclass

from rephub.core.errors import UsageError
from rephub.core.names import check_name
from rephub.core.units import parse_time


@dataclass(frozen=True, slots=True)
class Point:
    """A point as commands carry it."""

    kind: str
    value: str


def one_point(
    offset: int | None, time: str | None, checkpoint: str | None, *, latest: bool, hint: str
) -> Point:
    """The one point that was given.

    Args:
        offset: from 0.
        time: RFC 3339 with a zone.
        checkpoint: its name.
        latest: the newest consistent point.
        hint: of the error where none or several are given.

    Raises:
        UsageError: none or several, or it is not well-formed.
    """
    given = []
    if offset is not None:
        given.append(Point("offset", str(offset)))
    if time is not None:
        given.append(Point("time", str(parse_time(time))))
    if checkpoint is not None:
        given.append(Point("checkpoint", check_name(checkpoint, "checkpoint")))
    if latest:
        given.append(Point("latest", ""))
    if len(given) != 1:
        what = "no point is given" if not given else f"{len(given)} points are given"
        raise UsageError(what, hint=hint)
    return given[0]


def check_target(volume: str | None, group: str | None) -> str:
    """The target in words, if exactly one was given.

    Raises:
        UsageError: none or both, or not a name.
    """
    if (volume is None) == (group is None):
        raise UsageError(
            "no volume and no group is given" if volume is None else "a volume and a group are given",
            hint="give one of them",
        )
    if volume is not None:
        return f"volume {check_name(volume, 'volume')}"
    return f"group {check_name(str(group), 'group')}"
