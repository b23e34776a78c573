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
    state: str = "ready"
    """One of `fleet_states.AGENT`."""
    probes: dict[str, str] = field(default_factory=dict)
    """Monitors that the hub asked about and that have not answered: path → id of the asking event."""
    peer: str = ""
    """Where other agents reach it: unix:PATH or tcp:HOST:PORT; empty: an older version."""
    vms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By monitor path: {"vm", "version", "pid", "nodes": [{"node", "device", "size_bytes", …}]}."""


@dataclass(slots=True)
class Diskbox:
    """A diskbox that announced itself."""

    name: str
    host: str
    pid: int
    url: str
    capacity: int
    announced_id: str = ""
    """Its newest DiskboxAnnounced."""
    state: str = "ready"
    """One of `fleet_states.DISKBOX`."""
    lost_id: str = ""
    """The DiskboxLost that made it lost; empty while it is not."""
    off: bool = False
    """While lost: it surely writes no more, its NBD targets may be taken over."""
    drain_id: str = ""
    """The DiskboxDrainRequested that made it draining."""
    failed_id: str = ""
    """While lost or draining: the newest DiskboxFailed or MoveFailed, after which its volumes wait a while."""
    failed_at: int = 0
    """When that was, in microseconds since the Unix epoch."""

    @property
    def lost(self) -> bool:
        """Whether its volumes go to others."""
        return self.state == "lost"


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
    failback: str | None = None
    """The committed fail-over that it goes back from: the recovery volume is the disk of before."""


@dataclass(slots=True)
class Volume:
    """A protected volume. `state` is one of the states of the contract (`states.py`)."""

    name: str
    group: str
    agent: str
    diskbox: str
    qmp: str
    node: str
    """Node name when capture was attached last; before that, as it was resolved at the protect."""
    size_bytes: int
    ack: str
    overload: str
    history_seconds: int
    history_bytes: int
    recovery: str | None
    """Where the operator wants the recovery volume, None: the diskbox decides."""
    seed: str | None
    by_device: str = ""
    """Device by which the node was named in the protect; empty: by its node name."""
    device: str = ""
    """Device that the node was in when capture was attached last; empty: none, or not known."""
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
    failback: str = ""
    """The committed fail-over that this protection goes back from; the sync compares."""
    differs: str = ""
    """What a verify found; empty once repaired, found equal, or copied anew."""
    sync_mode: str = ""
    """Of the newest sync that began."""
    to_compare: bool = False
    """The next sync compares: what the recovery volume holds is nearly the disk, and nobody knows what differs."""
    whole: bool = False
    """The recovery volume was complete once in this protection: only what was written since may be missing."""
    resync_id: str = ""
    """Event that asks for a new attachment and was not answered by FilterAttached."""
    pause_id: str = ""
    """Event that asks for a pause and was not answered by VolumePaused or PauseFailed."""
    pause_deadline_at: int = 0
    """The hub gives up waiting for the pause after this; 0: never."""
    paused_at: int = 0
    """Since when capture is paused, in microseconds since the Unix epoch; 0: it is not."""
    resume_id: str = ""
    """Event that ends the pause and was not answered by FilterAttached."""
    bitmap: dict[str, Any] = field(default_factory=dict)
    """The chain of dirty bitmaps that the newest attachment, or pause, left in QEMU: {"name", "persistent", "image", "epoch",
    "offset", "based"}. If `based`, the journal up to its newest record (at least `offset`) and what it says is dirty are
    all of the volume; else it says only what was written since it began. Empty: there is none."""
    start_id: str = ""
    """The StartProtect that began this protection."""
    placed_id: str = ""
    """The VolumePlaced that gave it to its diskbox; empty: StartProtect did."""
    placed_from: str = ""
    """The lost diskbox from which it came then."""
    placed_at: int = 0
    """When that was, in microseconds since the Unix epoch."""
    move: str = ""
    """The move that is at work on it."""
    needs_full: bool = False
    """Its recovery volume is lost or new: only a full sync that began after it was made completes it."""
    made_offset: int = -1
    """First journal offset that its new recovery volume takes in: an attachment that began before is unknown there."""
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
    failover: str = ""
    """The fail-over that has started on it and is neither committed nor undone."""
    taken_by: str = ""
    """The promotion or fail-over that started on it last, ended or not: its fence ends older attachments."""
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
    def taken(self) -> bool:
        """A promotion or a fail-over is at work on it: nobody captures it."""
        return bool(self.promotion or self.failover)

    @property
    def recovery_id(self) -> str:
        """The event that asked for its recovery volume: a position with another one is of an older life."""
        return self.placed_id or self.start_id

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
    hydration_stopped: bool = False
    hydration_rate: int | None = None
    """Bytes a second; 0: no limit; None: nobody has said, the diskbox's own."""
    hydration_id: str = ""
    """The HydrationSet that said so."""
    full: list[str] = field(default_factory=list)
    """Volumes whose scratch has been at its limit."""

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
    cancel_id: str = ""
    """The PromoteCancelRequested that was too late, or waits for the diskbox."""
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


@dataclass(slots=True)
class Comparison:
    """A comparison of a recovery volume with its protected volume, in rounds.

    In each round the agent journals digests of some extents (`digesting`) and the diskbox compares them (`comparing`).
    Round 1 is of the whole volume, beside the guest. What seems to differ there may be a write on its way to the
    journal: round 2 looks at it exactly. With `repair` the agent copies what differs first in round 3.

    The sync of mode "compare" is one as well (`sync`): one round of the whole volume, and the agent copies what is only suspected too
    (`copying`), because a copy does no harm. A round that fails is begun anew, at last a full copy takes its place.
    """

    name: str
    volume: str
    epoch: int
    """Of the attachment; when it ends, so does this."""
    repair: bool
    rate_bytes: int | None
    deadline_at: int
    """The hub gives up after this."""
    requested_at: int
    sync: bool = False
    """It is the sync of the epoch, not a verify."""
    state: str = "requested"
    """requested, digesting, comparing, copying (sync), compared (verify), completed, failed."""
    round: int = 1
    extents: list[list[int]] = field(default_factory=list)
    """What the round is about; empty: the whole volume."""
    last_offset: int = -1
    """Journal offset of the round's last digest."""
    digested_bytes: int = 0
    """Of the round."""
    compared_bytes: int = 0
    """Of round 1."""
    skipped_bytes: int = 0
    repaired_bytes: int = 0
    found: list[list[int]] = field(default_factory=list)
    """What differs for sure, repaired or not."""
    found_bytes: int = 0
    equal: bool = False
    reason: str = ""
    event_id: str = ""
    command_id: str = ""

    @property
    def ended(self) -> bool:
        """Nobody has anything to do for it."""
        return self.state in ("completed", "failed")

    @property
    def exact(self) -> bool:
        """The round's digests hold at their offsets for sure: no write is on its way while they are made."""
        return self.round > 1 and not self.sync

    @property
    def copies(self) -> bool:
        """The round begins with a copy of its extents."""
        return self.round > 2 and not self.sync


@dataclass(slots=True)
class Move:
    """Recovery volumes on their way to another diskbox; protection and history stay whole."""

    name: str
    volumes: list[str]
    diskbox: str
    """Where to."""
    previous: str
    """Where from: it has the volumes until the move is `moved`."""
    state: str = "requested"
    """requested, moved, failed."""
    served: dict[str, dict[str, str]] = field(default_factory=dict)
    """By volume: {"uri", "position"} of the old diskbox, which stands still there."""
    copied: dict[str, str] = field(default_factory=dict)
    """By volume: the path on the new diskbox, which follows the journal."""
    reason: str = ""
    event_id: str = ""
    command_id: str = ""

    @property
    def ended(self) -> bool:
        """Nothing more will be done."""
        return self.state != "requested"


def plain(item: Any) -> dict[str, Any]:
    """The fields of a record whose fields are no records; a tenth of the cost of `asdict`, which copies deeply."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def message(error: str) -> str:
    """The one line of an `error` field; the field itself if it is not the JSON of an error."""
    return from_json(error).message
