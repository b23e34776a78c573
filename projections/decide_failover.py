"""What the hub decides about fail-overs: run from a point, make that permanent, or undo it; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError, UsageError
from rephub.core.names import check_name
from rephub.core.targets import target_kind
from rephub.projections import decide_volume
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import expired, fulfilled, listed, make, not_moving, targets, too_late
from rephub.projections.decide_points import PLAN_SECONDS_MAX, agent_beside, check_point
from rephub.projections.entities import Volume
from rephub.projections.failover import Failover
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def failover(catalogue: Catalogue, command: cmd.Failover, now: int) -> ev.Record:
    """Ask for a plan, a planned one for a drain first; what follows is in `pending`.

    Raises:
        UsageError, NotFoundError, ConflictError: the target or the point is wrong, or busy.
        PointNotAvailableError: never synced.
    """
    running = None if command.dry_run else _running(catalogue, command.volume, command.group)
    if running is not None and running.state in ("opened", "committing"):
        return fulfilled(catalogue, command, now, answer(running))
    if command.rollback_seconds is not None and command.rollback_seconds <= 0:
        raise UsageError("a fail-over cannot be rolled back at once", hint="for example --rollback-after 1h")
    volumes = targets(catalogue, command.volume, command.group, one_diskbox=True)
    check_point(catalogue, command, volumes)
    for volume in volumes:
        not_moving(volume)
        if command.planned and (volume.state != "protected" or not volume.attached):
            raise ConflictError(
                f"volume {volume.name} is {volume.state}: a move needs all of it captured",
                hint=f"rephub wait {volume.name} --state protected; without its VM: rephub failover",
                state=volume.state,
            )
    names = {volume.name for volume in volumes}
    for other in catalogue.failovers.values():
        if not command.dry_run and not other.ended and not other.views and names & set(other.volumes):
            raise ConflictError(
                f"another fail-over of volume {', '.join(sorted(names & set(other.volumes)))} is under way",
                hint="wait until it is done, or rephub rollback cancels it",
            )
    return make(
        catalogue,
        ev.FailoverRequested,
        now,
        command.id,
        command.id,
        command_id=command.id,
        failover=f"fo-{command.id}",
        volumes=tuple(volume.name for volume in volumes),
        group=command.group,
        diskbox=volumes[0].diskbox,
        point_kind=command.point_kind,
        point_value=command.point_value,
        dry_run=command.dry_run,
        planned=command.planned,
        qmp=command.qmp,
        agent=agent_beside(catalogue, volumes[0].diskbox) if command.qmp else None,
        rollback_seconds=command.rollback_seconds,
        deadline_at=min(command.deadline_at, now + PLAN_SECONDS_MAX * 1_000_000),
    )


def answer(found: Failover) -> dict[str, Any]:
    """What `failover`, `commit` and `rollback` answer of one that is there."""
    return {
        "failover": found.name,
        "state": found.state,
        "plans": found.plans,
        "views": found.views,
        "closed": found.state == "closed",
    }


def _named(volume: str | None, group: str | None) -> str:
    if (volume is None) == (group is None):
        raise UsageError("not exactly one of volume and group is named", hint="name a volume, or a group")
    return check_name(volume or str(group), "volume" if volume is not None else "group")


def _newest(catalogue: Catalogue, volume: str | None, group: str | None) -> Failover | None:
    """The newest fail-over of the target that is more than a plan."""
    name = _named(volume, group)
    for found in reversed(catalogue.failovers.values()):
        if not found.dry_run and (found.group == name if group is not None else name in found.volumes):
            return found
    return None


def _running(catalogue: Catalogue, volume: str | None, group: str | None) -> Failover | None:
    found = _newest(catalogue, volume, group)
    return None if found is None or found.ended else found


def _to_end(catalogue: Catalogue, volume: str | None, group: str | None) -> Failover:
    """The fail-over that a commit or a rollback means: of exactly what it named, as its volumes are one instant.

    Raises:
        NotFoundError: there is none.
        ConflictError: it is of a group, and only one volume of it was named.
    """
    found = _newest(catalogue, volume, group)
    if found is None:
        open_ones = [one.group or one.volumes[0] for one in catalogue.failovers.values() if not one.ended]
        what = f"volume {volume}" if volume is not None else f"group {group}"
        raise NotFoundError(f"{what} is not failed over", hint=listed(open_ones, "fail-overs"))
    if volume is not None and len(found.volumes) > 1:
        raise ConflictError(
            f"volume {volume} was failed over together with group {found.group}",
            hint=f"--group {found.group}",
        )
    return found


def commit(catalogue: Catalogue, command: cmd.Commit, now: int) -> ev.Record:
    """Let what the recovered VM wrote go into the recovery volumes; there is no way back from here.

    Raises:
        UsageError, NotFoundError: the target is wrong, or not failed over.
        ConflictError: it is not open, or a test looks at a point below it.
    """
    found = _to_end(catalogue, command.volume, command.group)
    if found.state == "committed" and command.close:
        return make(
            catalogue,
            ev.FailoverCloseRequested,
            now,
            command.id,
            found.name,
            command_id=command.id,
            failover=found.name,
        )
    if found.state in ("committing", "committed", "closing", "closed"):
        return fulfilled(catalogue, command, now, answer(found))
    if found.state != "opened":
        raise ConflictError(
            f"the fail-over of {', '.join(found.volumes)} is {found.state.replace('_', ' ')}",
            hint="rephub status",
            state=found.state,
        )
    blocked = _looked_at(catalogue, found)
    if blocked is not None:
        raise blocked
    return make(
        catalogue,
        ev.CommitRequested,
        now,
        command.id,
        found.name,
        command_id=command.id,
        failover=found.name,
        close=command.close,
    )


def _looked_at(catalogue: Catalogue, found: Failover) -> ConflictError | None:
    """A test sees the volumes as they were; the commit is about to write to them."""
    for fot in catalogue.fots.values():
        if not fot.ended and set(fot.volumes) & set(found.volumes):
            return ConflictError(
                f"fail-over test {fot.name} looks at what the commit would change",
                hint=f"rephub fot stop {fot.name}",
                fot=fot.name,
            )
    return None


def rollback(catalogue: Catalogue, command: cmd.Rollback, now: int) -> ev.Record:
    """Discard what the recovered VM wrote and replicate as before; cancels one that is not open yet.

    Raises:
        UsageError, NotFoundError: the target is wrong, or not failed over.
        ConflictError: it is committed.
    """
    found = _to_end(catalogue, command.volume, command.group)
    if found.state in ("rolling_back", "rolled_back", "failed"):
        return fulfilled(catalogue, command, now, answer(found))
    if found.final:
        raise ConflictError(
            f"the fail-over of {', '.join(found.volumes)} is committed",
            hint=f"rephub failback {found.group or found.volumes[0]} goes back with what was written since",
            state=found.state,
        )
    return _roll_back(catalogue, found, now, command.id, command.id, "asked for")


def _roll_back(
    catalogue: Catalogue, found: Failover, now: int, cause_id: str, command_id: str, reason: str
) -> ev.RollbackRequested:
    return make(
        catalogue,
        ev.RollbackRequested,
        now,
        cause_id,
        found.name,
        command_id=command_id or None,
        failover=found.name,
        reason=reason,
    )


def failback(
    catalogue: Catalogue, command: cmd.Failback, now: int, silent: Collection[str] = ()
) -> ev.Record:
    """Protect the recovered VM, on the terms of before, with the disk of before as the recovery volume.

    Raises:
        UsageError, NotFoundError, ConflictError, UnavailableError: as `decide_volume.protect`.
        ConflictError: the volume's newest fail-over is not committed.
    """
    found = _to_end(catalogue, command.volume, None)
    if found.state not in ("committed", "closing", "closed"):
        raise ConflictError(
            f"the fail-over of {command.volume} is {found.state.replace('_', ' ')}",
            hint=f"rephub commit {command.volume} first: there is nothing to go back from",
            state=found.state,
        )
    old = catalogue.volumes[command.volume]
    protect = cmd.Protect(
        id=command.id,
        at=command.at,
        source=command.source,
        deadline_at=command.deadline_at,
        volume=command.volume,
        group=old.group,
        qmp=command.qmp,
        node=command.node,
        ack=old.ack,
        overload=old.overload,
        history_seconds=old.history_seconds,
        history_bytes=old.history_bytes,
        recovery=command.recovery,
        seed=command.recovery if target_kind(command.recovery) == "file" else None,
    )
    return decide_volume.protect(catalogue, protect, now, silent, failback=found.name)


def pending(catalogue: Catalogue, now: int) -> Iterator[ev.Record]:
    """What is due of all fail-overs."""
    for found in catalogue.failovers.values():
        if not found.ended:
            yield from _of_failover(catalogue, found, now)


def _of_failover(catalogue: Catalogue, found: Failover, now: int) -> Iterator[ev.Record]:
    error: RephubError | None = None
    head = {"command_id": found.command_id or None, "failover": found.name}
    if found.state in ("requested", "drained") and expired(found.deadline_at, now):
        who = f"diskbox {found.diskbox} did not plan" if not found.to_drain else "the agent did not drain"
        error = too_late(f"{who} the fail-over")
    elif found.state == "planned":
        error = _unfit(catalogue, found)
        if error is None:
            yield make(catalogue, ev.FailoverStarted, now, found.event_id, found.name, **head)
    elif found.state == "opened" and found.rollback_seconds:
        due_at = found.opened_at + found.rollback_seconds * 1_000_000
        if now > due_at:
            reason = f"no commit within {found.rollback_seconds} s"
            yield _roll_back(catalogue, found, now, found.event_id, found.command_id, reason)
    elif found.state == "committed" and (found.close or _is_over(catalogue, found)):
        yield make(catalogue, ev.FailoverCloseRequested, now, found.commit_id, found.name, **head)
    if error is not None:
        yield make(
            catalogue, ev.FailoverFailed, now, found.event_id, found.name, error=error.to_json(), **head
        )


def _is_over(catalogue: Catalogue, found: Failover) -> bool:
    """A later fail-over of its volumes was committed: the VM that ran from its views has been moved away."""
    later = False
    for other in catalogue.failovers.values():
        if later and other.commit_id and set(other.volumes) & set(found.volumes):
            return other.state in ("committed", "closing", "closed")
        later = later or other is found
    return False


def _unfit(catalogue: Catalogue, found: Failover) -> RephubError | None:
    """Why a planned fail-over cannot begin any more."""
    volumes: list[Volume | None] = [catalogue.volumes.get(name) for name in found.volumes]
    for name, volume in zip(found.volumes, volumes, strict=True):
        if volume is None or not volume.live:
            return NotFoundError(f"no volume {name} is protected any more", hint="rephub status")
        if volume.unprotect_id or volume.taken or volume.move:
            return ConflictError(
                f"something else is under way with volume {name}", hint="rephub status", state=volume.state
            )
    box = catalogue.diskboxes.get(found.diskbox)
    if box is None or box.lost:
        return UnavailableError(f"diskbox {found.diskbox} is not there", hint="rephub fleet list")
    return None


def failed_on_lost(catalogue: Catalogue, diskbox: str, now: int, error: str) -> Iterator[ev.Record]:
    """Fail-overs that had not opened anything yet when their diskbox was lost."""
    for found in catalogue.failovers.values():
        if found.diskbox == diskbox and not found.ended and not found.views:
            if found.state == "rolling_back":
                continue
            yield make(
                catalogue,
                ev.FailoverFailed,
                now,
                found.event_id,
                found.name,
                command_id=found.command_id or None,
                failover=found.name,
                error=error,
            )
