"""From what an operator names (`--offset`, `--time`, `--checkpoint`, `--latest`) to one journal offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from rephub.core.errors import NotFoundError, PointNotAvailableError, UsageError
from rephub.projections.timeline import Timeline

KINDS = ("offset", "time", "checkpoint", "latest")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A point that can be opened."""

    offset: int
    captured_at: int | None
    """Running maximum of captured_at at the point, microseconds."""
    checkpoint: str | None
    """Name of the checkpoint that is this very point."""


def resolve(timeline: Timeline, kind: str, value: str) -> Resolved:
    """The offset of a point, if it can be opened.

    Args:
        timeline: of the volume.
        kind: offset, time, checkpoint or latest.
        value: decimal offset, microseconds since the Unix epoch, name of a checkpoint, or empty.

    Raises:
        UsageError: the kind or the value is none.
        NotFoundError: no such checkpoint in the window.
        PointNotAvailableError: before the earliest, after the latest or inside a gap; names the nearest good offset.
    """
    latest = timeline.latest_offset()
    if latest is None:
        raise PointNotAvailableError(
            "no point can be opened yet", hint="wait until the volume is protected", nearest_offset=None
        )
    offset = latest if kind == "latest" else named_offset(timeline, kind, value)
    check_available(timeline, offset)
    return Resolved(offset, timeline.captured_at(offset), timeline.checkpoint_at(offset))


def named_offset(timeline: Timeline, kind: str, value: str) -> int:
    """The offset that a point names, whether or not it can be opened."""
    if kind == "checkpoint":
        found = timeline.checkpoint_offset(value)
        if found is None:
            raise NotFoundError(
                f"no checkpoint {value!r} in the history window",
                hint="`rephub timeline` lists them",
                checkpoint=value,
            )
        return found
    if kind not in KINDS:
        raise UsageError(f"unknown kind of point {kind!r}")
    try:
        number = int(value)
    except ValueError:
        raise UsageError(f"{kind} {value!r} is not a number") from None
    return timeline.last_at_most(number) if kind == "time" else number


def check_available(timeline: Timeline, offset: int) -> None:
    """Raise PointNotAvailableError unless the point can be opened."""
    earliest, latest = timeline.earliest_offset(), timeline.latest_offset()
    if earliest is None or latest is None:
        _refuse("no point can be opened yet", None)
    if offset < earliest:
        _refuse(f"offset {offset} is before the earliest point {earliest}", earliest)
    gap = timeline.gap_at(offset) if offset <= timeline.head_offset else None
    if gap is not None:
        candidates = [gap.first_offset - 1, *([] if gap.next_offset is None else [gap.next_offset])]
        good = [candidate for candidate in candidates if earliest <= candidate <= latest]
        nearest = min(good, key=lambda candidate: abs(candidate - offset))
        _refuse(f"offset {offset} is inside a gap ({gap.reason})", nearest)
    if offset > latest:
        _refuse(f"offset {offset} is after the latest point {latest}", latest)


def _refuse(message: str, nearest_offset: int | None) -> NoReturn:
    hint = (
        "look at `rephub timeline`"
        if nearest_offset is None
        else f"the nearest good one is --offset {nearest_offset}"
    )
    raise PointNotAvailableError(message, hint=hint, nearest_offset=nearest_offset)


def resolve_group(timelines: dict[str, Timeline], kind: str, value: str) -> dict[str, Resolved]:
    """One point for each of several volumes: all or none.

    Disks that are recovered together must be of one instant, so for more than one volume only a checkpoint that all of
    them have will do: `--latest` is the newest such, `--time` the newest one not after it.

    Args:
        timelines: by volume.
        kind: as for `resolve`.
        value: as for `resolve`.

    Raises:
        UsageError, NotFoundError, PointNotAvailableError: as `resolve`; an offset is of one volume only.
    """
    if len(timelines) == 1:
        return {name: resolve(timeline, kind, value) for name, timeline in timelines.items()}
    if kind == "offset":
        raise UsageError("an offset is a point of one volume", hint="name a checkpoint of the group")
    if kind != "checkpoint":
        kind, value = "checkpoint", newest_common(timelines, int(value) if kind == "time" else None)
    return {name: resolve(timeline, kind, value) for name, timeline in timelines.items()}


def newest_common(timelines: dict[str, Timeline], captured_at: int | None) -> str:
    """The newest checkpoint that all volumes have, at or before a time if one is given.

    Raises:
        PointNotAvailableError: there is none.
    """
    first, *others = timelines.values()
    for mark in first.marks_newest_first():
        if captured_at is not None and mark.captured_at > captured_at:
            continue
        if all(timeline.checkpoint_offset(mark.checkpoint) is not None for timeline in others):
            return mark.checkpoint
    names = ", ".join(sorted(timelines))
    raise PointNotAvailableError(
        f"no checkpoint in the history window is common to {names}",
        hint="`rephub timeline` lists them",
        nearest_offset=None,
    )
