"""How the events about fail-overs change the catalogue; see `fold.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections import fold_points
from rephub.projections.entities import Volume, message, plain
from rephub.projections.failover import FAILOVER, Failover
from rephub.projections.fold_volume import move
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue


def _requested(catalogue: Catalogue, event: ev.FailoverRequested) -> None:
    if event.failover in catalogue.failovers:
        raise ConflictError(f"fail-over {event.failover} exists")
    catalogue.failovers[event.failover] = Failover(
        name=event.failover,
        volumes=list(event.volumes),
        group=event.group,
        diskbox=event.diskbox,
        point_kind=event.point_kind,
        point_value=event.point_value,
        dry_run=event.dry_run,
        planned=event.planned,
        qmp=event.qmp,
        agent=event.agent or "",
        rollback_seconds=event.rollback_seconds or 0,
        state=FAILOVER.first,
        deadline_at=event.deadline_at or 0,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _failover(catalogue: Catalogue, name: str, fact: str) -> tuple[Failover, str]:
    """The fail-over, and its state after the fact. Raises ConflictError: there is none, or it is forbidden."""
    failover = catalogue.failovers.get(name)
    if failover is None:
        raise ConflictError(f"no fail-over {name}")
    return failover, FAILOVER.next_state(name, failover.state, fact)


def _volumes(catalogue: Catalogue, failover: Failover) -> list[Volume]:
    """Those that it has taken."""
    found = [catalogue.volumes.get(name) for name in failover.volumes]
    return [volume for volume in found if volume is not None and volume.failover == failover.name]


def _drained(catalogue: Catalogue, event: ev.FailoverDrained) -> None:
    failover, state = _failover(catalogue, event.failover, "drained")
    for item in event.drained:
        if item.volume in failover.volumes:
            fields = plain(item)
            del fields["volume"]
            failover.drained[item.volume] = fields | {"agent": event.agent}
    if failover.drained.keys() == set(failover.volumes):
        failover.state = state


def _planned(catalogue: Catalogue, event: ev.FailoverPlanned) -> None:
    failover, state = _failover(catalogue, event.failover, "planned")
    failover.state = state
    failover.plans = [plain(plan) for plan in event.plans]
    _prune(catalogue)


def _started(catalogue: Catalogue, event: ev.FailoverStarted) -> None:
    failover, state = _failover(catalogue, event.failover, "started")
    volumes = [catalogue.volumes.get(name) for name in failover.volumes]
    if failover.dry_run or any(
        volume is None or not volume.live or volume.taken or volume.move for volume in volumes
    ):
        raise ConflictError(f"fail-over {event.failover} cannot start")
    for volume in volumes:
        assert volume is not None
        move(volume, "failed_over", event.at, "fail-over under way")
        volume.failover = volume.taken_by = failover.name
        volume.resync_id = volume.pause_id = volume.resume_id = ""
    failover.state = state


def _opened(catalogue: Catalogue, event: ev.FailoverOpened) -> None:
    """One whose end was asked for meanwhile goes on to it."""
    found = catalogue.failovers.get(event.failover)
    if found is not None and found.state == "rolling_back":
        return
    failover, state = _failover(catalogue, event.failover, "opened")
    failover.state = state
    failover.views = [plain(view) for view in event.views]
    failover.plans = [plain(plan) for plan in event.plans]
    failover.opened_at = event.at
    failover.redirect = "due" if failover.agent else ""
    offsets = {view["volume"]: view["offset"] for view in failover.views}
    for volume in _volumes(catalogue, failover):
        volume.reason = f"runs from offset {offsets.get(volume.name)}, not protected: commit or roll back"


def _redirected(catalogue: Catalogue, name: str, *redirects: str) -> Failover:
    """The fail-over, if its VM is at one of these; ended or not. Raises ConflictError."""
    failover = catalogue.failovers.get(name)
    if failover is None or failover.redirect not in redirects:
        raise ConflictError(f"the VM of fail-over {name} is {failover.redirect if failover else 'unknown'}")
    return failover


def _attached(catalogue: Catalogue, event: ev.FailoverAttached) -> None:
    _redirected(catalogue, event.failover, "due").redirect = "attached"


def _attach_failed(catalogue: Catalogue, event: ev.FailoverAttachFailed) -> None:
    """The views stay: in a disaster an operator starts the VM otherwise."""
    failover = _redirected(catalogue, event.failover, "due")
    failover.redirect, failover.reason = "done", message(event.error)


def _detached(catalogue: Catalogue, event: ev.FailoverDetached) -> None:
    _redirected(catalogue, event.failover, "due", "attached").redirect = "done"


def _folded(catalogue: Catalogue, event: ev.FailoverFolded) -> None:
    failover = catalogue.failovers.get(event.failover)
    if failover is None or failover.state not in ("opened", "committing"):
        raise ConflictError(f"fail-over {event.failover} is not open")
    failover.folded = True


def _commit_requested(catalogue: Catalogue, event: ev.CommitRequested) -> None:
    failover, state = _failover(catalogue, event.failover, "commit")
    failover.state = state
    failover.commit_id, failover.close = event.id, event.close
    for volume in _volumes(catalogue, failover):
        volume.reason = "commit under way"


def _committed(catalogue: Catalogue, event: ev.FailoverCommitted) -> None:
    failover, state = _failover(catalogue, event.failover, "committed")
    failover.state = state
    failover.plans = [plain(plan) for plan in event.plans]
    failover.folded = True
    for volume in _volumes(catalogue, failover):
        move(volume, "promoted", event.at, "")
        volume.attached, volume.bitmap = False, {}
        volume.paused_at = 0
        volume.failover = volume.stopped = ""


def _rollback_requested(catalogue: Catalogue, event: ev.RollbackRequested) -> None:
    failover, state = _failover(catalogue, event.failover, "rollback")
    if failover.final:
        raise ConflictError(f"fail-over {event.failover} is being committed")
    failover.state = state
    failover.end_id, failover.reason = event.id, event.reason
    for volume in _volumes(catalogue, failover):
        volume.reason = f"rollback under way: {event.reason}"


def _give_back(catalogue: Catalogue, failover: Failover, at: int, reason: str) -> None:
    """Its volumes are protected as before; the agents attach anew by themselves."""
    for volume in _volumes(catalogue, failover):
        if volume.paused_at:
            move(volume, "given_back_paused", at, reason)
        else:
            move(volume, "given_back", at, volume.stopped or volume.differs or reason)
        volume.failover = ""
    _prune(catalogue)


def _rolled_back(catalogue: Catalogue, event: ev.FailoverRolledBack) -> None:
    failover, state = _failover(catalogue, event.failover, "rolled_back")
    failover.state = state
    _give_back(catalogue, failover, event.at, "the fail-over was rolled back")


def _failed(catalogue: Catalogue, event: ev.FailoverFailed) -> None:
    failover, state = _failover(catalogue, event.failover, "failed")
    failover.state = state
    failover.reason = message(event.error)
    _give_back(catalogue, failover, event.at, f"the fail-over failed: {failover.reason}")


def _close_requested(catalogue: Catalogue, event: ev.FailoverCloseRequested) -> None:
    failover, state = _failover(catalogue, event.failover, "close")
    failover.state = state
    failover.end_id = event.id


def _closed(catalogue: Catalogue, event: ev.FailoverClosed) -> None:
    failover, state = _failover(catalogue, event.failover, "closed")
    failover.state = state
    failover.reason = event.reason
    _prune(catalogue)


def _resumed(catalogue: Catalogue, event: ev.FailoverResumed) -> None:
    failover = catalogue.failovers.get(event.failover)
    if failover is None or not failover.to_resume:
        raise ConflictError(f"nothing was stopped for fail-over {event.failover}")
    failover.resumed.append(event.agent)


def _prune(catalogue: Catalogue) -> None:
    fold_points.prune(catalogue.failovers)


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.FailoverRequested: _requested,
    ev.FailoverDrained: _drained,
    ev.FailoverPlanned: _planned,
    ev.FailoverStarted: _started,
    ev.FailoverOpened: _opened,
    ev.FailoverAttached: _attached,
    ev.FailoverAttachFailed: _attach_failed,
    ev.FailoverDetached: _detached,
    ev.FailoverFolded: _folded,
    ev.CommitRequested: _commit_requested,
    ev.FailoverCommitted: _committed,
    ev.RollbackRequested: _rollback_requested,
    ev.FailoverRolledBack: _rolled_back,
    ev.FailoverFailed: _failed,
    ev.FailoverCloseRequested: _close_requested,
    ev.FailoverClosed: _closed,
    ev.FailoverResumed: _resumed,
}
