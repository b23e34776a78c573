"""What the hub decides about fail-over tests and promotes; pure."""

from __future__ import annotations

from rephub.core.errors import ConflictError, NotFoundError, PointNotAvailableError, UsageError
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import POINT_KINDS, fulfilled, listed, make, not_moving, one_of, targets
from rephub.projections.entities import Fot, Promotion, Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

PLAN_SECONDS_MAX = 120
"""A plan reads an index, not data: a diskbox that does not answer by then is down."""


def check_point(
    catalogue: Catalogue, command: cmd.StartFot | cmd.Promote | cmd.Failover, volumes: list[Volume]
) -> None:
    """What can be said of a point without the journal: the diskbox says the rest."""
    one_of(command.point_kind, POINT_KINDS, "kind of point")
    if command.point_kind in ("offset", "time") and not _is_number(command.point_value):
        raise UsageError(f"bad {command.point_kind} {command.point_value!r}", hint="a number from 0")
    if command.point_kind == "offset" and len(volumes) > 1:
        raise UsageError(
            f"the volumes of group {command.group} have no offset in common",
            hint="use --checkpoint, --time or --latest",
        )
    if command.point_kind == "checkpoint":
        checkpoint = catalogue.checkpoints.get(check_name(command.point_value, "checkpoint"))
        # The diskbox says of one that expired which point is the nearest.
        if checkpoint is not None and checkpoint.state not in ("created", "expired"):
            raise NotFoundError(
                f"checkpoint {checkpoint.name} is {checkpoint.state}", hint="rephub checkpoint list"
            )
    for volume in volumes:
        if volume.synced_epoch == 0:
            raise PointNotAvailableError(
                f"volume {volume.name} has no point yet: its first sync is not complete",
                hint=f"rephub wait {volume.name} --state protected",
                nearest_offset=None,
                state=volume.state,
            )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def start_fot(catalogue: Catalogue, command: cmd.StartFot, now: int) -> ev.Record:
    """Ask the diskbox for views.

    Raises:
        UsageError, NotFoundError, ConflictError: the target or the point is wrong, the id is taken.
        PointNotAvailableError: never synced.
    """
    check_name(command.fot, "fail-over test")
    if command.fot in catalogue.fots:
        raise ConflictError(f"fail-over test {command.fot} exists already", hint="rephub fot list")
    volumes = targets(catalogue, command.volume, command.group, one_diskbox=True)
    check_point(catalogue, command, volumes)
    agent = agent_beside(catalogue, volumes[0].diskbox) if command.qmp else None
    return make(
        catalogue,
        ev.FotRequested,
        now,
        command.id,
        command.fot,
        command_id=command.id,
        fot=command.fot,
        volumes=tuple(volume.name for volume in volumes),
        group=command.group,
        diskbox=volumes[0].diskbox,
        point_kind=command.point_kind,
        point_value=command.point_value,
        read_only=command.read_only,
        qmp=command.qmp,
        agent=agent,
        deadline_at=command.deadline_at,
    )


def agent_beside(catalogue: Catalogue, diskbox: str) -> str:
    """The agent that gives the views to a VM: on the diskbox's host, because they are behind unix sockets.

    Raises:
        NotFoundError: none announced itself there.
    """
    host = catalogue.diskboxes[diskbox].host
    found = sorted(agent.name for agent in catalogue.agents.values() if agent.host == host)
    if not found:
        raise NotFoundError(
            f"no agent on {host}, the host of diskbox {diskbox}, to reach the recovery VM",
            hint="start `rephub agent` there, or start the VM from the URI without --qmp",
        )
    return found[0]


def stop_fot(catalogue: Catalogue, command: cmd.StopFot, now: int) -> ev.Record:
    """Ask the diskbox to end a test.

    Raises:
        NotFoundError: unknown test; the hint lists those that are open.
    """
    fot = _test(catalogue, command.fot)
    if fot.ended or fot.state == "stopping":
        return fulfilled(catalogue, command, now, {"fot": fot.name, "ended": fot.ended})
    return make(
        catalogue, ev.FotStopRequested, now, command.id, fot.name, command_id=command.id, fot=fot.name
    )


def _test(catalogue: Catalogue, name: str) -> Fot:
    fot = catalogue.fots.get(check_name(name, "fail-over test"))
    if fot is None:
        open_fots = [other.name for other in catalogue.fots.values() if not other.ended]
        raise NotFoundError(f"no fail-over test {name}", hint=listed(open_fots, "open fail-over tests"))
    return fot


def set_hydration(catalogue: Catalogue, command: cmd.SetHydration, now: int) -> ev.Record:
    """Change how fast a test's part of the journal is copied.

    Raises:
        NotFoundError: unknown test; the hint lists those that are open.
        ConflictError: it is over.
        UsageError: a negative rate, or no change at all.
    """
    fot = _test(catalogue, command.fot)
    if fot.ended:
        raise ConflictError(f"fail-over test {fot.name} is {fot.state}", hint="rephub fot list")
    if command.stopped is None and command.rate_bytes_per_second is None:
        raise UsageError("neither a rate nor a stop", hint="--rate, --stop or --resume")
    rate = fot.hydration_rate if command.rate_bytes_per_second is None else command.rate_bytes_per_second
    if rate is not None and rate < 0:
        raise UsageError(f"a rate of {rate} bytes a second")
    stopped = fot.hydration_stopped if command.stopped is None else command.stopped
    return make(
        catalogue,
        ev.HydrationSet,
        now,
        command.id,
        fot.name,
        command_id=command.id,
        fot=fot.name,
        stopped=stopped,
        rate_bytes_per_second=rate,
    )


def promote(catalogue: Catalogue, command: cmd.Promote, now: int) -> ev.Record:
    """Ask the diskbox for a plan; what follows is in `reactions.py`.

    Raises:
        UsageError, NotFoundError, ConflictError: the target or the point is wrong, or another promote is under way.
        PointNotAvailableError: never synced.
    """
    final = not command.dry_run and command.to is None
    done = _done_already(catalogue, command) if final else None
    if done is not None:
        return fulfilled(catalogue, command, now, {"promotion": done.name, "plans": done.plans})
    volumes = targets(catalogue, command.volume, command.group, one_diskbox=True)
    check_point(catalogue, command, volumes)
    if command.to is not None:
        if not command.to.startswith("/"):
            raise UsageError(
                f"--to {command.to!r} is not an absolute path",
                hint="diskboxes have their own working directory",
            )
        if command.to in {volume.path for volume in catalogue.volumes.values() if not volume.purged}:
            raise ConflictError(f"{command.to} is a recovery volume", hint="choose another path for --to")
    names = {volume.name for volume in volumes}
    for volume in volumes:
        not_moving(volume)
    if final:
        for other in catalogue.promotions.values():
            if other.final and not other.ended and names & set(other.volumes):
                raise ConflictError(
                    f"another promote of volume {', '.join(sorted(names & set(other.volumes)))} is under way",
                    hint="wait until it is done: rephub status",
                )
    return make(
        catalogue,
        ev.PromoteRequested,
        now,
        command.id,
        command.id,
        command_id=command.id,
        promotion=command.id,
        volumes=tuple(volume.name for volume in volumes),
        group=command.group,
        diskbox=volumes[0].diskbox,
        point_kind=command.point_kind,
        point_value=command.point_value,
        dry_run=command.dry_run,
        to=command.to,
        deadline_at=min(command.deadline_at, now + PLAN_SECONDS_MAX * 1_000_000),
    )


def cancel_promote(catalogue: Catalogue, command: cmd.CancelPromote, now: int) -> ev.Record:
    """Give up a promote that is under way, also a copy; one that is done stays done.

    Raises:
        UsageError: not exactly one target.
        NotFoundError: none is under way.
    """
    if (command.volume is None) == (command.group is None):
        raise UsageError("not exactly one of volume and group is named", hint="name a volume, or a group")
    for found in reversed(catalogue.promotions.values()):
        if found.ended or found.dry_run:
            continue
        if found.group == command.group if command.group is not None else found.volumes == [command.volume]:
            if found.cancel_id:
                return fulfilled(catalogue, command, now, {"promotion": found.name, "state": found.state})
            return make(
                catalogue,
                ev.PromoteCancelRequested,
                now,
                command.id,
                found.name,
                command_id=command.id,
                promotion=found.name,
            )
    raise NotFoundError(f"no promote of {command.volume or command.group} is under way", hint="rephub status")


def _done_already(catalogue: Catalogue, command: cmd.Promote) -> Promotion | None:
    """The promotion that did just what the command asks for, if its volumes are still as it left them."""
    for promotion in reversed(catalogue.promotions.values()):
        if not promotion.final or promotion.state != "promoted" or promotion.group != command.group:
            continue
        if command.group is None and promotion.volumes != [command.volume]:
            continue
        volumes = [catalogue.volumes.get(name) for name in promotion.volumes]
        if any(volume is None or volume.retired or volume.state != "promoted" for volume in volumes):
            continue
        same = (promotion.point_kind, promotion.point_value) == (command.point_kind, command.point_value)
        offset = command.point_kind == "offset" and [str(plan["offset"]) for plan in promotion.plans] == [
            command.point_value
        ]
        if same or offset:
            return promotion
    return None


def pinned_below(catalogue: Catalogue, promotion: Promotion) -> ConflictError | None:
    """The error that stops a promote: a test looks at a point below the one that is to become permanent."""
    offsets = {plan["volume"]: plan["offset"] for plan in promotion.plans}
    for fot in catalogue.fots.values():
        if fot.ended or not set(fot.volumes) & offsets.keys():
            continue
        seen = {view["volume"]: view["offset"] for view in fot.views}
        lower = [name for name in fot.volumes if name in offsets and seen.get(name, -1) < offsets[name]]
        if lower:
            at = f"at offset {seen[lower[0]]}" if lower[0] in seen else "whose point is not known yet"
            return ConflictError(
                f"fail-over test {fot.name} {at} uses volume {lower[0]}, promote would go to {offsets[lower[0]]}",
                hint=f"rephub fot stop {fot.name}",
                fot=fot.name,
            )
    return None
