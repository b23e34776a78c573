# ruff: noqa: E501
"""Typed records of `rephub.commands`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCheckpoint:
    """Mark one instant of a volume or group."""

    id: str
    at: int
    source: str
    deadline_at: int
    checkpoint: str
    volume: str | None = None
    group: str | None = None
    quiesce: bool
    tags: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint:
    """Forget a named checkpoint; its marker stays in the journal."""

    id: str
    at: int
    source: str
    deadline_at: int
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make a point permanent."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None
    point_kind: str
    point_value: str
    dry_run: bool
    to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """Start protection of a volume."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str
    group: str
    qmp: str
    node: str
    ack: str
    overload: str
    history_seconds: int
    history_bytes: int
    recovery: str | None = None
    seed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """Attach anew and copy again."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHistory:
    """Change how much history a volume, or each volume of a group, keeps; a field that is null stays as it is."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None
    history_seconds: int | None = None
    history_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSyncPace:
    """How fast, and in which order, a volume is synced, now and later; a field that is null stays as it is."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str
    paused: bool | None = None
    rate_bytes_per_second: int | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFot:
    """Open a fail-over test."""

    id: str
    at: int
    source: str
    deadline_at: int
    fot: str
    volume: str | None = None
    group: str | None = None
    point_kind: str
    point_value: str
    read_only: bool
    qmp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFot:
    """End a fail-over test, discard its scratch."""

    id: str
    at: int
    source: str
    deadline_at: int
    fot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprotect:
    """End protection of a volume."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str
    purge: bool


Record = CreateCheckpoint | DeleteCheckpoint | Promote | Protect | Resync | SetHistory | SetSyncPace | StartFot | StopFot | Unprotect
RECORDS: tuple[type[Record], ...] = (CreateCheckpoint, DeleteCheckpoint, Promote, Protect, Resync, SetHistory, SetSyncPace, StartFot, StopFot, Unprotect,)
