"""What is to be done about a volume: the catalogue compared with what this process holds. Pure.

Nobody reacts to "an event arrived": after each fold, and whenever something happened here, `next_action` says what is
missing. Doing it and asking again leads to `Action.NONE`, from any state, also after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rephub.core.errors import FencedError, RephubError
from rephub.projections.catalogue import Catalogue, Volume


class Action(Enum):
    """The next step."""

    NONE = "none"
    REPORT_LOST = "report_lost"
    """Say that capture is lost: by us, or by an agent process before us."""
    ATTACH = "attach"
    DETACH = "detach"
    """Let go of what we hold, cleanly."""
    RELEASE = "release"
    """We hold nothing: make sure that QEMU holds nothing of ours either, and say so."""
    PACE = "pace"
    """Tell the worker how fast sync is to be, or that it stands still."""
    PAUSE = "pause"
    """Let go cleanly, with bitmaps left in QEMU."""
    REFUSE_PAUSE = "refuse_pause"
    """Say that a pause cannot be: nothing is held that could be paused."""
    SYNC = "sync"
    TIDY = "tidy"
    """Sync is over: QEMU's NBD server is given back."""
    ROTATE = "rotate"
    """Begin a new record of writes in QEMU, so that the older ones can go."""
    RECONNECT = "reconnect"
    """Capture is on, the monitor is not."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sync is to run."""

    running: bool = True
    bytes_per_second: int | None = None


@dataclass(slots=True)
class Held:
    """What this process holds of a volume."""

    epoch: int
    attachment_id: str
    offset: int
    """Of its EpochStarted."""
    sync_begun: bool = False
    taken_by: str = ""
    """`Volume.taken_by` when it was attached: a later one has fenced it, though nobody may have noticed."""
    compares: bool = False
    """The sync that was begun is one of mode "compare"."""
    synced_offset: int | None = None
    source_open: bool = False
    """QEMU exports the volume for sync."""
    pace: Pace = Pace()
    """What the worker was told last."""


@dataclass(slots=True)
class Local:
    """What this process knows about a volume beside the catalogue."""

    held: Held | None = None
    lost: RephubError | None = None
    """Why capture of `held` ended by itself."""
    last_epoch: int = 0
    """Newest epoch that this process attached, or reported on."""
    gave_up: str = ""
    """The StartProtect that this process answered with ProtectFailed."""
    fenced: str = ""
    """`key_of` the volume when a newer epoch took over: no new attempt until somebody asks."""
    released: str = ""
    """`key_of` the request that CaptureDetached has answered."""
    paused: str = ""
    """The pause_id that this process has answered."""
    resynced: str = ""
    """The resync_id that the attachment at hand answers."""
    rotation_due: bool = False
    """Enough was written, and acked, since the newest record in QEMU began."""
    connected: bool = True
    turn: bool = True
    """Its sync is among those that run now (`decide_sync.turns`)."""


def key_of(volume: Volume) -> str:
    """Identity of what is asked about the volume now."""
    return f"{volume.start_id}/{volume.resync_id}/{volume.unprotect_id}/{volume.taken_by}"


def wants_release(catalogue: Catalogue, volume: Volume) -> bool:
    """Whether somebody waits for CaptureDetached."""
    promotion = catalogue.promotions.get(volume.promotion)
    if promotion is not None and volume.name not in promotion.detached:
        return True
    return bool(volume.unprotect_id) and not volume.detached


def wanted_pace(volume: Volume, local: Local) -> Pace:
    """How the volume's sync is to run now."""
    return Pace(local.turn and not volume.sync_paused, volume.sync_rate_bytes_per_second or None)


def next_action(  # noqa: PLR0911 - one return per row of the table
    catalogue: Catalogue, volume: Volume, agent: str, local: Local
) -> Action:
    """The next step for a volume.

    Args:
        catalogue: the fold so far.
        volume: its entry there.
        agent: name of this agent.
        local: what this process holds.
    """
    mine = volume.agent == agent
    wants = mine and catalogue.wants_capture(volume)
    held = local.held
    if held is not None:
        if local.lost is not None:
            return Action.REPORT_LOST
        tidy = held.source_open and held.synced_offset is not None
        if mine and volume.pause_id:
            # Answered: what the answer says is not folded yet.
            return Action.NONE if volume.pause_id == local.paused else Action.TIDY if tidy else Action.PAUSE
        asked = volume.resync_id and volume.resync_id != local.resynced
        if not wants or asked or volume.taken_by != held.taken_by:
            return Action.DETACH
        if not local.connected:
            return Action.RECONNECT
        due = catalogue.wants_sync(volume) and volume.epoch == held.epoch
        pace = wanted_pace(volume, local)
        if due and held.synced_offset is None and held.pace != pace:
            return Action.PACE
        if due and (not held.sync_begun or (held.compares and not volume.to_compare)):
            return Action.SYNC if pace.running else Action.NONE
        return Action.TIDY if tidy else Action.ROTATE if local.rotation_due else Action.NONE
    if not mine:
        return Action.NONE
    if volume.pause_id and volume.pause_id != local.paused:
        return Action.REFUSE_PAUSE
    if volume.attached and volume.epoch > local.last_epoch:
        # Attached by a process of this agent that is no more.
        return Action.RELEASE if wants_release(catalogue, volume) else Action.REPORT_LOST
    if wants:
        refused = local.gave_up == volume.start_id and not volume.attached_before
        return Action.NONE if refused or local.fenced == key_of(volume) else Action.ATTACH
    if wants_release(catalogue, volume) and local.released != key_of(volume):
        return Action.RELEASE
    return Action.NONE


def is_final(error: RephubError) -> bool:
    """Whether attaching again by ourselves would be wrong."""
    return isinstance(error, FencedError)
