"""From what an operator names (`--offset`, `--time`, `--checkpoint`, `--latest`) to one journal offset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from rephub.core.errors import NotFoundError, PointNotAvailableError, UsageError
from rephub.core.units import rfc3339
from rephub.projections.entities import Checkpoint
from rephub.projections.timeline import Mark, Timeline

Listed = Callable[[str, Mark], bool]
"""Whether a marker in the journal of a volume is a checkpoint: the catalogue knows of those that became void."""

KINDS = ("offset", "time", "checkpoint", "latest")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A point that can be opened."""

    offset: int
    captured_at: int | None
    """Running maximum of captured_at at the point, microseconds."""
    checkpoint: str | None
    """Name of the checkpoint that is this very point."""


def listed_in(checkpoints: Mapping[str, Checkpoint], *, strictly: bool) -> Listed:
    """Which markers are checkpoints, as the catalogue has them.

    Periodic ones always are: their markers enter all queues within one loop turn. A named one is where the catalogue
    says; a marker of a checkpoint that failed, was deleted or was made again elsewhere is not.

    Args:
        checkpoints: of the catalogue, by name.
        strictly: a name that the catalogue does not know is none. So for several volumes: whether their markers are of
            one instant is nowhere else.
    """

    def listed(volume: str, mark: Mark) -> bool:
        known = checkpoints.get(mark.checkpoint)
        if mark.periodic or known is None:
            return mark.periodic or not strictly
        return known.state in ("created", "expired") and known.offsets.get(volume) == mark.offset

    return listed


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
            _no_checkpoint(value)
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


def _no_checkpoint(name: str) -> NoReturn:
    raise NotFoundError(
        f"no checkpoint {name!r} in the history window", hint="`rephub timeline` lists them", checkpoint=name
    )


def _refuse(message: str, nearest_offset: int | None) -> NoReturn:
    hint = (
        "look at `rephub timeline`"
        if nearest_offset is None
        else f"the nearest good one is --offset {nearest_offset}"
    )
    raise PointNotAvailableError(message, hint=hint, nearest_offset=nearest_offset)


def resolve_group(
    timelines: dict[str, Timeline], kind: str, value: str, listed: Listed = lambda _volume, _mark: True
) -> dict[str, Resolved]:
    """One point for each of several volumes: all or none.

    Disks that are recovered together must be of one instant, so for more than one volume only a checkpoint that all of
    them have will do: `--latest` is the newest such, `--time` the newest one not after it.

    Args:
        timelines: by volume.
        kind: as for `resolve`.
        value: as for `resolve`.
        listed: which markers are checkpoints.

    Raises:
        UsageError, NotFoundError, PointNotAvailableError: as `resolve`; an offset is of one volume only.
    """
    if kind == "offset" and len(timelines) > 1:
        raise UsageError("an offset is a point of one volume", hint="name a checkpoint of the group")
    if kind not in ("checkpoint", "offset") and len(timelines) > 1:
        kind, value = "checkpoint", newest_common(timelines, int(value) if kind == "time" else None, listed)
    if kind == "checkpoint":
        _check_common(timelines, value, listed)
    return {
        name: _labelled(resolve(timeline, kind, value), name, timeline, listed)
        for name, timeline in timelines.items()
    }


def resolve_checkpoint(timelines: dict[str, Timeline], checkpoint: Checkpoint) -> dict[str, Resolved]:
    """The points of a named checkpoint, where the catalogue has it.

    Raises:
        PointNotAvailableError: the window of a volume has passed it; names the nearest good offset.
        NotFoundError: something else is there: the journal began anew since.
    """
    resolved = {}
    for name, timeline in timelines.items():
        offset = checkpoint.offsets[name]
        check_available(timeline, offset)
        mark = timeline.mark_at(offset)
        if mark is None or mark.checkpoint != checkpoint.name:
            _no_checkpoint(checkpoint.name)
        resolved[name] = Resolved(offset, timeline.captured_at(offset), checkpoint.name)
    return resolved


def _check_common(timelines: dict[str, Timeline], value: str, listed: Listed) -> None:
    """Raise NotFoundError unless the newest markers of the name are one checkpoint of all volumes."""
    marks = {name: timeline.mark(value) for name, timeline in timelines.items()}
    first = next(iter(marks.values()))
    for name, mark in marks.items():
        if mark is None or first is None or not listed(name, mark) or not _is_same(first, mark):
            _no_checkpoint(value)


def _is_same(one: Mark, other: Mark) -> bool:
    """Whether markers of one name in two volumes are of one instant; of named ones `listed` has said so."""
    if one.periodic != other.periodic:
        return False
    return not one.periodic or (one.group, one.captured_at) == (other.group, other.captured_at)


def _labelled(resolved: Resolved, name: str, timeline: Timeline, listed: Listed) -> Resolved:
    mark = timeline.mark_at(resolved.offset)
    return resolved if mark is None or listed(name, mark) else replace(resolved, checkpoint=None)


def newest_common(timelines: dict[str, Timeline], captured_at: int | None, listed: Listed) -> str:
    """The newest checkpoint that all volumes have, at or before a time if one is given.

    Raises:
        PointNotAvailableError: there is none.
    """
    first, *others = timelines
    for mark in timelines[first].marks_newest_first():
        if (captured_at is not None and mark.captured_at > captured_at) or not listed(first, mark):
            continue
        common = [(name, timelines[name].mark(mark.checkpoint)) for name in others]
        if all(other is not None and listed(name, other) and _is_same(mark, other) for name, other in common):
            return mark.checkpoint
    names = ", ".join(sorted(timelines))
    raise PointNotAvailableError(
        f"no checkpoint in the history window is common to {names}",
        hint="`rephub timeline` lists them",
        nearest_offset=None,
    )


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    """`{offset, captured_at, checkpoint}` of a view or plan."""
    at = item.get("captured_at")
    return {
        "offset": item["offset"],
        "captured_at": rfc3339(at) if at is not None else None,
        "checkpoint": item.get("checkpoint"),
    }
