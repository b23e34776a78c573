"""What an event or an alert says, in one line for a person, and which volumes it is about; pure."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from rephub.core.units import format_bytes, format_duration
from rephub.schemas import alerts
from rephub.schemas import events as ev

EventRecord = ev.Record | alerts.Record

TEXTS: dict[type[Any], str] = {
    alerts.AlertRaised: "alert, {severity}: {text}",
    alerts.AlertCleared: "alert over: {text}",
    ev.AgentAnnounced: "agent {agent} is there, on {host}",
    ev.CaptureDetached: "{volume}: the agent has left QEMU as it was, epoch {epoch} is over",
    ev.CaptureLost: "{volume}: writes do not reach the journal any more: {reason}",
    ev.CheckpointCreated: "checkpoint {checkpoint} is made ({kind}-consistent) of {offsets:names}",
    ev.CheckpointDeleted: "checkpoint {checkpoint} is forgotten",
    ev.CheckpointExpired: "{volume}: the history window has passed checkpoint {checkpoint}",
    ev.CheckpointFailed: "checkpoint {checkpoint} was not made: {error:error}",
    ev.CheckpointRequested: "checkpoint {checkpoint} is asked for, of {volumes:names}",
    ev.CommandFulfilled: "a command asked for what was so already",
    ev.CommandRejected: "a command was refused: {error:error}",
    ev.CommitRequested: "fail-over {failover} is to become permanent",
    ev.ComparisonAccepted: "{volume}: diskbox {diskbox} compares with the protected disk",
    ev.DiskboxAnnounced: "diskbox {diskbox} is there, on {host}, with room for {capacity} volumes",
    ev.DiskboxDrainRequested: "diskbox {diskbox}: drain {drain:onoff}",
    ev.DiskboxFailed: "no new diskbox {diskbox}: {error:error}",
    ev.DiskboxLost: "diskbox {diskbox} is lost: {reason}",
    ev.DiskboxRequested: "all diskboxes are full, a new one is asked for: {diskbox}",
    ev.ExtentsCompared: "{volume}: {compared_bytes:bytes} compared, {differing_bytes:bytes} differ",
    ev.ExtentsDigested: "{volume}: digests of {digested_bytes:bytes} are in the journal",
    ev.FailoverAttachFailed: "fail-over {failover}: the VM could not get its disks: {error:error}",
    ev.FailoverAttached: "fail-over {failover}: the VM has its disks",
    ev.FailoverCloseRequested: "fail-over {failover} is to be served no longer",
    ev.FailoverClosed: "fail-over {failover} is served no longer: {reason}",
    ev.FailoverCommitted: "fail-over {failover} is permanent, protection of {plans:names} has ended",
    ev.FailoverDetached: "fail-over {failover}: the VM has let go of its disks",
    ev.FailoverDrained: "fail-over {failover}: {drained:names} at rest, all that was written is acked",
    ev.FailoverFailed: "fail-over {failover} came to nothing: {error:error}",
    ev.FailoverFolded: "fail-over {failover}: all up to the point is in the recovery volumes",
    ev.FailoverOpened: "fail-over {failover} is open: {views:points}",
    ev.FailoverPlanned: "fail-over {failover} is planned: {plans:points}",
    ev.FailoverRequested: "fail-over {failover} of {volumes:names} is asked for",
    ev.FailoverResumed: "fail-over {failover}: the VM that was stopped runs again",
    ev.FailoverRolledBack: "fail-over {failover} is undone: {reason}",
    ev.FailoverStarted: "fail-over {failover}: the old epochs end",
    ev.FilterAttached: "{volume}: writes are captured in epoch {epoch}, from offset {offset}: {reason}",
    ev.FotAttachFailed: "test {fot}: the VM could not get its disks: {error:error}",
    ev.FotAttached: "test {fot}: the VM has its disks",
    ev.FotDetached: "test {fot}: the VM has let go of its disks",
    ev.FotFailed: "test {fot} did not open: {error:error}",
    ev.FotRequested: "test {fot} of {volumes:names} is asked for",
    ev.FotScratchFull: "test {fot}: the scratch of {volume} is full at {scratch_bytes:bytes}, writes are refused",
    ev.FotStarted: "test {fot} is open: {views:points}",
    ev.FotStopRequested: "test {fot} is to end",
    ev.FotStopped: "test {fot} has ended: {reason}",
    ev.HistoryRestored: "{volume}: history is as long as asked again, {window_seconds:duration}",
    ev.HistorySet: "history of {volumes:names} is changed",
    ev.HistoryShortened: "{volume}: history is {window_seconds:duration} and not {asked_seconds:duration}, because of its limit of {limit_bytes:bytes}",
    ev.HubStarted: "hub {hub} took over, hub epoch {hub_epoch}",
    ev.HydrationSet: "test {fot}: the pace of its hydration is changed",
    ev.MoveCopied: "move {move}: the copy of {volume} is complete",
    ev.MoveFailed: "move {move} came to nothing: {error:error}",
    ev.MoveRequested: "move {move}: {volumes:names} from {previous_diskbox} to {diskbox} is asked for",
    ev.MoveServed: "move {move}: {volume} stands still to be copied",
    ev.PauseFailed: "{volume}: was not paused: {error:error}",
    ev.PauseRequested: "{volume}: is to be paused",
    ev.PromoteCancelRequested: "promote {promotion} is to be given up",
    ev.PromoteFailed: "promote {promotion} failed: {error:error}",
    ev.PromotePlanned: "promote {promotion} is planned: {plans:points}",
    ev.PromoteRequested: "promote {promotion} of {volumes:names} is asked for",
    ev.PromoteStarted: "promote {promotion} has begun",
    ev.Promoted: "promote {promotion} is done: {plans:points}",
    ev.ProtectFailed: "{volume}: protection did not start: {error:error}",
    ev.ProtectRequested: "{volume}: protection of node {node} is asked for",
    ev.RecoveryVolumeCreated: "{volume}: diskbox {diskbox} holds its recovery volume, {size_bytes:bytes}",
    ev.RecoveryVolumeReleased: "{volume}: its recovery volume is let go",
    ev.ResumeRequested: "{volume}: is to be captured again after a pause",
    ev.ResyncRequested: "{volume}: is to be attached anew and copied",
    ev.RollbackRequested: "fail-over {failover} is to be undone: {reason}",
    ev.StartProtect: "{volume}: agent {agent} and diskbox {diskbox} are to protect it",
    ev.SyncPaceSet: "{volume}: the pace of its sync is changed",
    ev.SyncRequested: "{volume}: is to be synced",
    ev.UnprotectRequested: "{volume}: protection is to end",
    ev.Unprotected: "{volume}: protection has ended",
    ev.VerifyCompleted: "{volume}: verified {compared_bytes:bytes}, {differing_bytes:bytes} differed, {repaired_bytes:bytes} repaired",
    ev.VerifyFailed: "{volume}: verify has no result: {error:error}",
    ev.VerifyRequested: "{volume}: is to be verified",
    ev.VmAnnounced: "agent {agent} sees VM {vm}, QEMU {version}",
    ev.VmProbeFailed: "agent {agent} finds no VM at {qmp}: {error:error}",
    ev.VmProbeRequested: "agent {agent} is to look for a VM at {qmp}",
    ev.VolumePaused: "{volume}: paused at offset {offset}, QEMU notes what is written",
    ev.VolumePlaced: "{volume}: goes to diskbox {diskbox}, because {previous_diskbox} is lost",
    ev.VolumeResized: "{volume}: has a new size, {size_bytes:bytes}",
    ev.VolumeResumed: "{volume}: events are applied again",
    ev.VolumeStopped: "{volume}: stopped at offset {offset}: {error:error}",
    ev.VolumeSyncCompleted: "{volume}: in sync, points are good from offset {offset}",
    ev.VolumeSyncStarted: "{volume}: sync has begun ({mode}, {total_bytes:bytes})",
    ev.VolumesMoved: "move {move} is done",
}
CHAINS = ("fot", "failover", "promotion", "move", "verify", "run", "checkpoint")
"""Fields with the id of something that goes on over several events; not all of those name its volumes."""


def _message(error: str) -> str:
    """Of an error that travelled as JSON; what is none is shown as it is."""
    try:
        return str(json.loads(error)["message"])
    except (ValueError, KeyError, TypeError):
        return error


def _names(items: Iterable[Any]) -> str:
    return ", ".join(item if isinstance(item, str) else item.volume for item in items) or "nothing"


def _points(items: Iterable[Any]) -> str:
    return ", ".join(f"{item.volume} at offset {item.offset}" for item in items) or "nothing"


FORMS: dict[str, Callable[[Any], str]] = {
    "bytes": format_bytes,
    "duration": format_duration,
    "error": _message,
    "names": _names,
    "points": _points,
    "onoff": lambda value: "on" if value else "off",
}
"""How a field may be written in TEXTS."""


class _Words(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        form = FORMS.get(format_spec)
        return super().format_field(value, format_spec) if form is None else form(value)


_WORDS = _Words()


def text_of(record: EventRecord) -> str:
    """What happened, without the time; may hold text from elsewhere as it came."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return _WORDS.vformat(TEXTS[type(record)], (), values)


class Concerned:
    """Which volumes a record is about; remembers what earlier ones said of the same test, fail-over, promote or move."""

    def __init__(self) -> None:
        self.volumes: set[str] = set()
        """All that were ever named."""
        self._chains: dict[tuple[str, str], frozenset[str]] = {}

    def apply(self, record: EventRecord) -> frozenset[str]:
        """The volumes of the record; records come in the order of their topic."""
        found = _named(record)
        self.volumes |= found
        for field in CHAINS:
            chain = getattr(record, field, None)
            if isinstance(chain, str):
                known = self._chains.get((field, chain), frozenset())
                self._chains[field, chain] = known | found
                # What is said of one volume of several is not said of the others.
                found = found or known
        return found


def _named(record: EventRecord) -> frozenset[str]:
    if isinstance(record, alerts.RECORDS):
        return frozenset({record.subject} if record.subject_kind == "volume" else ())
    found = {getattr(record, "volume", ""), *getattr(record, "volumes", ()), *getattr(record, "offsets", ())}
    for field in ("views", "plans", "drained"):
        found |= {item.volume for item in getattr(record, field, ())}
    return frozenset(found - {""})
