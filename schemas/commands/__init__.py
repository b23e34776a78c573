# ruff: noqa: E501
"""Typed records of `rephub.commands`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelMove:
    """Give up a move that has not ended; the volumes stay where they are."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPromote:
    """Give up a promote."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelVerify:
    """End a verify that is under way."""

    id: str
    at: int
    source: str
    deadline_at: int
    verify: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Make a fail-over permanent."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None
    close: bool


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
class DrainDiskbox:
    """Move everything off a diskbox and place nothing new there, or use it again."""

    id: str
    at: int
    source: str
    deadline_at: int
    diskbox: str
    drain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failback:
    """Protect a recovered VM in the other direction."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str
    qmp: str
    node: str
    recovery: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """Run from a point."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None
    point_kind: str
    point_value: str
    dry_run: bool
    planned: bool
    qmp: str | None = None
    rollback_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseDiskbox:
    """Give up a diskbox that does not answer: its volumes go to others."""

    id: str
    at: int
    source: str
    deadline_at: int
    diskbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveVolumes:
    """Move a recovery volume and its group to another diskbox, protection goes on."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None
    diskbox: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Let go of the volume and remember what is written meanwhile."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str


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
class Resume:
    """Capture the volume again and copy what was written meanwhile."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """Attach anew and copy again."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Undo a fail-over."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str | None = None
    group: str | None = None


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
class SetHydration:
    """How fast what a fail-over test needs of the journal is copied beside it; at once, and after a restart."""

    id: str
    at: int
    source: str
    deadline_at: int
    fot: str
    stopped: bool | None = None
    rate_bytes_per_second: int | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Compare the recovery volume with the protected one."""

    id: str
    at: int
    source: str
    deadline_at: int
    volume: str
    repair: bool
    rate_bytes: int | None = None


Record = CancelMove | CancelPromote | CancelVerify | Commit | CreateCheckpoint | DeleteCheckpoint | DrainDiskbox | Failback | Failover | LoseDiskbox | MoveVolumes | Pause | Promote | Protect | Resume | Resync | Rollback | SetHistory | SetHydration | SetSyncPace | StartFot | StopFot | Unprotect | Verify
RECORDS: tuple[type[Record], ...] = (CancelMove, CancelPromote, CancelVerify, Commit, CreateCheckpoint, DeleteCheckpoint, DrainDiskbox, Failback, Failover, LoseDiskbox, MoveVolumes, Pause, Promote, Protect, Resume, Resync, Rollback, SetHistory, SetHydration, SetSyncPace, StartFot, StopFot, Unprotect, Verify,)
