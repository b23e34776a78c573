"""Options and answers that the verbs with a point or a target share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from rephub.core.errors import UsageError
from rephub.core.names import check_name
from rephub.core.units import parse_time, rfc3339


@dataclass(frozen=True, slots=True)
class Point:
    """A point as commands carry it."""

    kind: str
    value: str


def point_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--offset`, `--time`, `--checkpoint`, `--latest`; hand all four to `parse_point`."""
    for option in (
        click.option("--latest", is_flag=True, help="The newest consistent point."),
        click.option("--checkpoint", metavar="NAME", help="The point of a checkpoint."),
        click.option(
            "--time", "time_", metavar="T", help="The last point at or before this time (RFC 3339)."
        ),
        click.option("--offset", type=click.IntRange(min=0), metavar="N", help="All events up to this one."),
    ):
        function = option(function)
    return function


def parse_point(offset: int | None, time_: str | None, checkpoint: str | None, latest: bool) -> Point:
    """The one point that was given.

    Raises:
        UsageError: none or several, or it is not well-formed.
    """
    given = []
    if offset is not None:
        given.append(Point("offset", str(offset)))
    if time_ is not None:
        given.append(Point("time", str(parse_time(time_))))
    if checkpoint is not None:
        given.append(Point("checkpoint", check_name(checkpoint, "checkpoint")))
    if latest:
        given.append(Point("latest", ""))
    if len(given) != 1:
        what = "no point is given" if not given else f"{len(given)} points are given"
        raise UsageError(what, hint="exactly one of --offset, --time, --checkpoint, --latest")
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


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    """`{offset, captured_at, checkpoint}` of a view or plan."""
    at = item.get("captured_at")
    return {
        "offset": item["offset"],
        "captured_at": rfc3339(at) if at is not None else None,
        "checkpoint": item.get("checkpoint"),
    }


def timeout_option(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--timeout S`, as `seconds`, with the verb's own default."""
    return click.option(
        "--timeout",
        "seconds",
        type=click.FloatRange(min=0.1, max=86_400),
        default=seconds,
        show_default=True,
        metavar="S",
        help="Seconds to wait for the end.",
    )


def absolute(path: str) -> str:
    """The path as daemons, which have another working directory, understand it; symbolic links stay."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - resolve() would follow links
