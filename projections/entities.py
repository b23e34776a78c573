"""What the catalogue is made of: agents, diskboxes, volumes, checkpoints, tests and promotions.

Plain data without behaviour beyond a few questions about themselves; `fold.py` changes them, nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rephub.core.errors import from_json


@dataclass(slots=True)
class Agent:
    """A RepAgent that announced itself."""

    name: str
    host: str
    pid: int
    url: str
    probes: dict[str, str] = field(default_factory=dict)
    """Monitors that the hub asked about and that have not answered: path → id of the asking event."""
    peer: str = ""
    """Where other agents reach it: unix:PATH or tcp:HOST:PORT; empty: an older version."""
    vms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By monitor path: {"vm", "version", "nodes": [{"node", "device", "size_bytes", …}]}."""


@dataclass(slots=True)
class Diskbox:
    """A diskbox that announced itself."""

    name: str
    host: str
    pid: int
    url: str
    capacity: int


@dataclass(slots=True)
class DiskboxRequest:
    """A diskbox that the provider is to bring and that has not announced itself."""

    name: str
    volume: str
    """The first volume that had no room."""
    event_id: str
    command_id: str


@dataclass(slots=True)
class PendingProtect:
    """A Protect that the hub took and that waits for an agent to announce the VM."""

    volume: str
    group: str
    qmp: str
    node: str
    """As given: a node name or a device."""
    ack: str
    overload: str
    history_seconds: int
    history_bytes: int
    recovery: str | None
    seed: str | None
    deadline_at: int
    """Microseconds since the Unix epoch."""
    event_id: str
    command_id: str
    asked: dict[str, str] = field(default_factory=dict)
    """By agent: id of the VmProbeRequested that this protect caused."""
    announced: list[str] = field(default_factory=list)
    """Agents that announced the VM since."""
    errors: dict[str, str] = field(default_factory=dict)
    """By agent: JSON of the error with which the monitor did not answer."""
    diskbox_error: str = ""
    """JSON of the error with which the provider failed while this waited; counts only if it needs a new diskbox."""


@dataclass(slots=True)
class Volume:
    """A protected volume. `state` is one of the states of the contract (`states.py`)."""

    name: str
    group: str
    agent: str
    diskbox: str
    qmp: str
    node: str
    size_bytes: int
    ack: str
    overload: str
    history_seconds: int
    history_bytes: int
    recovery: str | None
    """Where the operator wants the recovery volume, None: the diskbox decides."""
    seed: str | None
    state: str = "syncing"
    reason: str = ""
    since_at: int = 0
    """When `state` became what it is, in microseconds since the Unix epoch."""
    gap_at: int = 0
    """Since when the journal's end is not crash-consistent, in microseconds since the Unix epoch; 0: it is."""
    path: str = ""
    """The recovery volume, empty until RecoveryVolumeCreated."""
    epoch: int = 0
    """Of the newest FilterAttached; 0: never attached."""
    attachment_id: str = ""
    epoch_offset: int = -1
    """Journal offset of that epoch's EpochStarted: the hint from which the agent looks for newer epochs."""
    attached: bool = False
    attached_before: bool = False
    """Capture was on at least once since StartProtect."""
    sync_epoch: int = 0
    """Epoch in which the hub asked for sync; sync is due while it equals `epoch` and `synced_epoch` is lower."""
    synced_epoch: int = 0
    stopped: str = ""
    """Why the projector stopped; empty while it runs."""
    resync_id: str = ""
    """Event that asks for a new attachment and was not answered by FilterAttached."""
    start_id: str = ""
    """The StartProtect that began this protection."""
    unprotect_id: str = ""
    """Event that ends the protection and was not answered by Unprotected."""
    purge: bool = False
    detached: bool = False
    """The agent has let go since `unprotect_id`."""
    released: bool = False
    """The diskbox has let go since `unprotect_id`."""
    retired: bool = False
    """Unprotected; kept so that a later protect continues its epochs and its recovery volume."""
    purged: bool = False
    """Retired, and nothing is left of its journal and recovery volume."""
    previous: str = ""
    """What it was before StartProtect, should that fail: "", retired or promoted."""
    previous_path: str = ""
    """Its `path` then."""
    promotion: str = ""
    """The promotion that has started on it and has not ended."""
    command_id: str = ""
    """The command at work on it (protect, unprotect, resync), for the events that answer."""
    sync_paused: bool = False
    """Sync stands still, this one and any later one, until the operator says otherwise."""
    sync_rate_bytes_per_second: int = 0
    """Limit of what sync reads; 0: none."""
    history_short: bool = False
    """The byte limit has cut the window below what was asked, and it is not that long again."""
    sync_priority: int = 0
    """Higher goes first where an agent has more syncs than it runs at a time."""

    @property
    def live(self) -> bool:
        """Protected or on the way there or back: neither retired nor promoted."""
        return not self.retired and self.state != "promoted"


@dataclass(slots=True)
class Checkpoint:
    """A named checkpoint."""

    name: str
    volumes: list[str]
    group: str | None
    agent: str
    kind: str
    state: str = "requested"
    """requested, created, expired (no volume has it any more), failed, deleted."""
    offsets: dict[str, int] = field(default_factory=dict)
    captured_at: int = 0
    deadline_at: int = 0
    """The hub gives up after this; 0: never."""
    reason: str = ""
    event_id: str = ""
    command_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    """What the operator noted."""
    expired: list[str] = field(default_factory=list)
    """Volumes whose history window has passed it."""

    @property
    def ended(self) -> bool:
        """Nothing can be opened by it: the name may be used again."""
        return self.state in ("failed", "expired", "deleted")


@dataclass(slots=True)
class Fot:
    """A fail-over test."""

    name: str
    volumes: list[str]
    group: str | None
    diskbox: str
    point_kind: str
    point_value: str
    read_only: bool
    qmp: str | None
    state: str = "requested"
    """requested, started, stopping, stopped, failed."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """ViewItem as dicts, once started."""
    reason: str = ""
    stop_id: str = ""
    """The FotStopRequested, or FotAttachFailed, at work."""
    agent: str = ""
    """Who attaches the views to the VM behind `qmp`."""
    redirect: str = ""
    """due, attached, done; empty without `qmp`, or before the views are open."""
    deadline_at: int = 0
    """The hub gives up waiting for the start after this; 0: never."""
    event_id: str = ""
    command_id: str = ""

    @property
    def ended(self) -> bool:
        """Nothing is served and nothing will be."""
        return self.state in ("stopped", "failed")

    @property
    def redirected(self) -> bool:
        """A VM has the views as disks, or may have: it lets go before they close."""
        return self.redirect in ("due", "attached")


@dataclass(slots=True)
class Promotion:
    """A promote, or its plan."""

    name: str
    volumes: list[str]
    group: str | None
    diskbox: str
    point_kind: str
    point_value: str
    dry_run: bool
    to: str | None
    state: str = "requested"
    """requested, planned, started, promoted, failed."""
    plans: list[dict[str, Any]] = field(default_factory=list)
    """PlanItem as dicts, once planned; what was done, once promoted."""
    detached: list[str] = field(default_factory=list)
    """Volumes that no agent captures since PromoteStarted."""
    reason: str = ""
    deadline_at: int = 0
    """The hub gives up waiting for the plan after this; 0: never."""
    event_id: str = ""
    command_id: str = ""

    @property
    def ended(self) -> bool:
        """Nothing more will be done: promoted, failed, or a dry run that was planned."""
        return self.state in ("promoted", "failed") or (self.dry_run and self.state == "planned")

    @property
    def final(self) -> bool:
        """It moves the recovery volume and ends protection: neither a dry run nor a copy."""
        return not self.dry_run and self.to is None


def message(error: str) -> str:
    """The one line of an `error` field; the field itself if it is not the JSON of an error."""
    try:
        return from_json(error).message
    except (ValueError, TypeError, AttributeError):
        return error
