"""What the supervisor must know of a part to run it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_ORDER = ("monitor", "agent", "diskbox", "hub", "redis", "broker")
"""Each may still use what comes after it while it stops."""

STOP_SECONDS: Mapping[str, float] = {
    "monitor": 10.0,
    "agent": 30.0,
    "diskbox": 20.0,
    "hub": 10.0,
    "redis": 10.0,
    "broker": 30.0,
}
"""After so long a part is killed: an agent detaches its volumes from QEMU first, a broker closes its logs."""

STOP_SECONDS_MAX = sum(STOP_SECONDS.values()) + 15.0
"""Longest stop of a whole stack."""

READY_SECONDS_MAX = 60.0
"""Longest start of one part: JVM, Faust and their first look at the disk on a busy machine."""


def _nothing() -> None:
    """A part that needs no preparation."""


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One process.

    Args:
        name: unique within the stack.
        kind: of STOP_ORDER.
        argv: command line; asked after `prepare`.
        log: where its output goes.
        ready: asks once whether it can be used; must not raise for a part that is still starting.
        env: whole environment, None: ours.
        cwd: working directory, None: ours.
        prepare: blocking, before its first start only.
    """

    name: str
    kind: str
    argv: Callable[[], Sequence[str]]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    prepare: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Stage:
    """Parts that start together, and what is done once all are ready."""

    parts: Sequence[PartSpec]
    after: Callable[[], Awaitable[None]]
