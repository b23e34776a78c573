"""Options and answers that the verbs with a point or a target share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from rephub.core.control.wishes import Point, check_target, one_point

__all__ = ["Point", "absolute", "check_target", "parse_point", "point_options", "timeout_option"]


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
    hint = "exactly one of --offset, --time, --checkpoint, --latest"
    return one_point(offset, time_, checkpoint, latest=latest, hint=hint)


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
