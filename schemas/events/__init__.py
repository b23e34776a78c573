# ruff: noqa: E501
"""Typed records of `rephub.events`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnnounced:
    """A RepAgent is there."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    agent: str
    host: str
    pid: int
    url: str
    peer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureDetached:
    """The agent left QEMU as it was."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLost:
    """Guest writes no longer reach the journal; the guest goes on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCreated:
    """All markers are acked."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    checkpoint: str
    kind: str
    offsets: dict[str, int]
    captured_at: int
    warning: str | None = None
    hold_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDeleted:
    """A named checkpoint is forgotten; its marker stays in the journal."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointExpired:
    """The history window of a volume has passed a named checkpoint."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    checkpoint: str
    volume: str
    offset: int
    earliest_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed:
    """CheckpointFailed"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    checkpoint: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequested:
    """The hub asks for markers."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    checkpoint: str
    volumes: tuple[str, ...]
    group: str | None = None
    agent: str
    kind: str
    deadline_at: int | None = None
    tags: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandFulfilled:
    """What a command wished for was so already."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRejected:
    """The hub did not take a command."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequested:
    """The fail-over is to become permanent."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    close: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentItem:
    """Part of another record."""

    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonAccepted:
    """The diskbox understands Digest events and compares those of this run."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    run: str
    volume: str
    diskbox: str
    extents: tuple[ExtentItem, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskboxAnnounced:
    """A diskbox is there."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    diskbox: str
    host: str
    pid: int
    url: str
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskboxDrainRequested:
    """A diskbox gets nothing new and its volumes move to others, or it is used again."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    diskbox: str
    drain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskboxFailed:
    """The provider brought no diskbox; every protect that waited for one fails with this error."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    diskbox: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskboxLost:
    """A diskbox was silent for too long, or an operator says that it is lost: its volumes go to others."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    diskbox: str
    reason: str
    off: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskboxRequested:
    """All diskboxes are full: the provider is to bring a new one, which announces itself."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    diskbox: str
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentsCompared:
    """The diskbox has compared a round."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    run: str
    round: int
    volume: str
    offset: int
    compared_bytes: int
    differing_bytes: int
    differing: tuple[ExtentItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentsDigested:
    """The agent has journalled the digests of a round."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    run: str
    round: int
    volume: str
    epoch: int
    last_offset: int
    digested_bytes: int
    skipped_bytes: int
    copied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverAttachFailed:
    """The recovery VM could not get the views; they stay open."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    agent: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverAttached:
    """The recovery VM has the views as disks."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverCloseRequested:
    """The committed volumes are to be served no longer."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanItem:
    """Part of another record."""

    volume: str
    offset: int
    captured_at: int | None = None
    checkpoint: str | None = None
    path: str
    events: int
    bytes: int
    lost_events: int
    lost_bytes: int
    lost_seconds: float
    applied_from_at: int | None = None
    last_checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverClosed:
    """Nothing of the fail-over is served any more."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    reason: str
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverCommitted:
    """What the recovered VM wrote is in the recovery volumes, protection ended; they are served until closed."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverDetached:
    """The recovery VM has let go of the views, or is gone."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    agent: str
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainedItem:
    """Part of another record."""

    volume: str
    offset: int
    captured_at: int
    stopped: bool
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverDrained:
    """Volumes of a planned fail-over are at rest: their VM is stopped, all that it wrote is acked."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    agent: str
    drained: tuple[DrainedItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverFailed:
    """A fail-over that could not be."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverFolded:
    """All events up to the point are in the recovery volumes."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewItem:
    """Part of another record."""

    volume: str
    offset: int
    captured_at: int | None = None
    checkpoint: str | None = None
    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverOpened:
    """The views are served, and the VM may start; `plans` says what was lost by the fence."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    views: tuple[ViewItem, ...]
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverPlanned:
    """What would be, or will be, opened and lost."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverRequested:
    """A fail-over that the hub took; the diskbox plans it, after the agents drained a planned one."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    volumes: tuple[str, ...]
    group: str | None = None
    diskbox: str
    point_kind: str
    point_value: str
    dry_run: bool
    planned: bool
    qmp: str | None = None
    agent: str | None = None
    rollback_seconds: int | None = None
    deadline_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverResumed:
    """The protected VM that a planned fail-over had stopped runs again, or is gone."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    agent: str
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverRolledBack:
    """What the recovered VM wrote is discarded; the volumes are protected as before."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverStarted:
    """The old epochs end: the diskbox fences them and opens the views."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterAttached:
    """Capture is on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    agent: str
    epoch: int
    attachment_id: str
    offset: int
    reason: str
    node: str | None = None
    device: str | None = None
    bitmap: str | None = None
    persistent: bool | None = None
    image: str | None = None
    based: bool | None = None
    compare: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FotAttachFailed:
    """The recovery VM could not get the views: the test ends."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    agent: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FotAttached:
    """The recovery VM has the views as its disks, and runs."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FotDetached:
    """The recovery VM has let go of the views, or is gone: they may close."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    agent: str
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FotFailed:
    """FotFailed"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FotRequested:
    """FotRequested"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    volumes: tuple[str, ...]
    group: str | None = None
    diskbox: str
    point_kind: str
    point_value: str
    read_only: bool
    qmp: str | None = None
    agent: str | None = None
    deadline_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FotScratchFull:
    """A write of whoever uses a fail-over test was refused with ENOSPC: the scratch is at its limit. Said once for a view."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    volume: str
    scratch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FotStarted:
    """FotStarted"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    views: tuple[ViewItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FotStopRequested:
    """FotStopRequested"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FotStopped:
    """Scratch discarded, pins released."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRestored:
    """The history window of a volume is as long as asked again."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    window_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySet:
    """How much history these volumes keep from now on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volumes: tuple[str, ...]
    group: str | None = None
    history_seconds: int | None = None
    history_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryShortened:
    """The byte limit made the history window of a volume shorter than was asked."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    earliest_offset: int
    window_seconds: float
    asked_seconds: int
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubStarted:
    """A hub took over; events of hubs with a lower epoch count for nothing."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    hub: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HydrationSet:
    """How fast what a fail-over test needs of the journal is copied beside it from now on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    fot: str
    stopped: bool
    rate_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCopied:
    """The new diskbox has a copy and has followed the journal to its head."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    move: str
    volume: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFailed:
    """A move ended without effect, because of an error or on request."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    move: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequested:
    """Recovery volumes are to move to another diskbox; they stay on theirs until VolumesMoved."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    move: str
    volumes: tuple[str, ...]
    diskbox: str
    previous_diskbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveServed:
    """The old diskbox stands still at a position of the journal and serves what it has applied."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    move: str
    volume: str
    uri: str
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseFailed:
    """The volume was not paused; it is protected as before, or in a gap."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequested:
    """The hub asks the agent to let go, and QEMU to remember what is written."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    deadline_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteCancelRequested:
    """A promote is to be given up, if it is not too late."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteFailed:
    """PromoteFailed"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotePlanned:
    """What would be, or will be, applied and lost."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteRequested:
    """PromoteRequested"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str
    volumes: tuple[str, ...]
    group: str | None = None
    diskbox: str
    point_kind: str
    point_value: str
    dry_run: bool
    to: str | None = None
    deadline_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteStarted:
    """Decided: agents detach, the diskbox fences and applies."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """Done."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    promotion: str
    plans: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectFailed:
    """Protection did not start; nothing is left of it."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectRequested:
    """The hub took a Protect and waits for an agent to announce the VM."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
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
    deadline_at: int
    failback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryVolumeCreated:
    """The diskbox holds a recovery volume."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    diskbox: str
    path: str
    size_bytes: int
    first_offset: int | None = None
    seeded: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryVolumeReleased:
    """The diskbox let the recovery volume go."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    purged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested:
    """The hub asks the agent to attach a paused volume."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncRequested:
    """The hub asks the agent to attach anew."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequested:
    """The fail-over is to be undone, or cancelled."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    failover: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProtect:
    """The hub tells agent and diskbox to protect."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
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
    agent: str
    diskbox: str
    size_bytes: int
    device: str | None = None
    failback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPaceSet:
    """How fast, and in which order, a volume is synced from now on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    paused: bool
    rate_bytes_per_second: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequested:
    """The hub starts sync."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnprotectRequested:
    """UnprotectRequested"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    purge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprotected:
    """Unprotected"""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    purged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyCompleted:
    """A verify came to its end."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    verify: str
    volume: str
    offset: int
    compared_bytes: int
    skipped_bytes: int
    differing: tuple[ExtentItem, ...]
    differing_bytes: int
    repaired_bytes: int
    equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFailed:
    """A verify ended without a result."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    verify: str
    volume: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequested:
    """The hub takes a verify."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    verify: str
    volume: str
    epoch: int
    repair: bool
    rate_bytes: int | None = None
    deadline_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """Part of another record."""

    node: str
    device: str
    size_bytes: int
    driver: str
    read_only: bool
    iothread: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmAnnounced:
    """A VM and all its volumes, as its agent sees them."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    agent: str
    qmp: str
    vm: str
    version: str
    nodes: tuple[NodeInfo, ...]
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmProbeFailed:
    """The monitor did not answer as one."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    agent: str
    qmp: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmProbeRequested:
    """The hub asks an agent to look at a monitor."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    agent: str
    qmp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePaused:
    """Capture is off, everything captured is in the journal, and a dirty bitmap in QEMU records since before."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int
    offset: int
    bitmap: str
    persistent: bool
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePlaced:
    """A volume of a lost diskbox goes to another one, which makes a new recovery volume."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    diskbox: str
    previous_diskbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeResized:
    """The protected volume has another size than before, from an epoch on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeResumed:
    """The projector goes on."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStopped:
    """The projector stopped at an event that it must not apply."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    offset: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSyncCompleted:
    """The journal holds all of the volume."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSyncStarted:
    """The agent reads the volume."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    volume: str
    epoch: int
    mode: str
    total_bytes: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesMoved:
    """From here on the new diskbox has the volumes."""

    id: str
    at: int
    source: str
    command_id: str | None = None
    cause_id: str | None = None
    hub_epoch: int
    move: str


Record = AgentAnnounced | CaptureDetached | CaptureLost | CheckpointCreated | CheckpointDeleted | CheckpointExpired | CheckpointFailed | CheckpointRequested | CommandFulfilled | CommandRejected | CommitRequested | ComparisonAccepted | DiskboxAnnounced | DiskboxDrainRequested | DiskboxFailed | DiskboxLost | DiskboxRequested | ExtentsCompared | ExtentsDigested | FailoverAttachFailed | FailoverAttached | FailoverCloseRequested | FailoverClosed | FailoverCommitted | FailoverDetached | FailoverDrained | FailoverFailed | FailoverFolded | FailoverOpened | FailoverPlanned | FailoverRequested | FailoverResumed | FailoverRolledBack | FailoverStarted | FilterAttached | FotAttachFailed | FotAttached | FotDetached | FotFailed | FotRequested | FotScratchFull | FotStarted | FotStopRequested | FotStopped | HistoryRestored | HistorySet | HistoryShortened | HubStarted | HydrationSet | MoveCopied | MoveFailed | MoveRequested | MoveServed | PauseFailed | PauseRequested | PromoteCancelRequested | PromoteFailed | PromotePlanned | PromoteRequested | PromoteStarted | Promoted | ProtectFailed | ProtectRequested | RecoveryVolumeCreated | RecoveryVolumeReleased | ResumeRequested | ResyncRequested | RollbackRequested | StartProtect | SyncPaceSet | SyncRequested | UnprotectRequested | Unprotected | VerifyCompleted | VerifyFailed | VerifyRequested | VmAnnounced | VmProbeFailed | VmProbeRequested | VolumePaused | VolumePlaced | VolumeResized | VolumeResumed | VolumeStopped | VolumeSyncCompleted | VolumeSyncStarted | VolumesMoved
RECORDS: tuple[type[Record], ...] = (AgentAnnounced, CaptureDetached, CaptureLost, CheckpointCreated, CheckpointDeleted, CheckpointExpired, CheckpointFailed, CheckpointRequested, CommandFulfilled, CommandRejected, CommitRequested, ComparisonAccepted, DiskboxAnnounced, DiskboxDrainRequested, DiskboxFailed, DiskboxLost, DiskboxRequested, ExtentsCompared, ExtentsDigested, FailoverAttachFailed, FailoverAttached, FailoverCloseRequested, FailoverClosed, FailoverCommitted, FailoverDetached, FailoverDrained, FailoverFailed, FailoverFolded, FailoverOpened, FailoverPlanned, FailoverRequested, FailoverResumed, FailoverRolledBack, FailoverStarted, FilterAttached, FotAttachFailed, FotAttached, FotDetached, FotFailed, FotRequested, FotScratchFull, FotStarted, FotStopRequested, FotStopped, HistoryRestored, HistorySet, HistoryShortened, HubStarted, HydrationSet, MoveCopied, MoveFailed, MoveRequested, MoveServed, PauseFailed, PauseRequested, PromoteCancelRequested, PromoteFailed, PromotePlanned, PromoteRequested, PromoteStarted, Promoted, ProtectFailed, ProtectRequested, RecoveryVolumeCreated, RecoveryVolumeReleased, ResumeRequested, ResyncRequested, RollbackRequested, StartProtect, SyncPaceSet, SyncRequested, UnprotectRequested, Unprotected, VerifyCompleted, VerifyFailed, VerifyRequested, VmAnnounced, VmProbeFailed, VmProbeRequested, VolumePaused, VolumePlaced, VolumeResized, VolumeResumed, VolumeStopped, VolumeSyncCompleted, VolumeSyncStarted, VolumesMoved,)
