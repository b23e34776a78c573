"""What the hub has to write because of what is, not because of what just happened; pure.

Repeating is harmless: an event's id follows from its cause, and a cause that was answered is due no more. So a hub
that was killed between an event and its reaction finishes after its restart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError, from_json
from rephub.projections import decide_compare, decide_failover, decide_volume
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import expired, make, too_late
from rephub.projections.decide_points import pinned_below
from rephub.projections.entities import Agent, PendingProtect, Promotion, Volume
from rephub.projections.placement import overflow
from rephub.projections.reactions_fleet import of_fleet
from rephub.schemas import events as ev

NOBODY: Mapping[str, str] = MappingProxyType({})


def pending(
    catalogue: Catalogue,
    now: int,
    silent: Collection[str] = (),
    gone: Mapping[str, str] = NOBODY,
    lost_seconds: float = 0.0,
) -> list[ev.Record]:
    """The events that are due.

    Args:
        catalogue: folded up to the head.
        now: microseconds since the Unix epoch; decides about deadlines alone.
        silent: diskboxes that do not answer; nothing is placed there.
        gone: those that have been silent for `lost_seconds` and are lost by that, with their announcement.
        lost_seconds: that limit.

    Returns:
        Events to append, in order; at most one StartProtect, DiskboxRequested, or group of VolumePlaced, because each
        changes where the next one may go.
        Fold them and ask again until nothing is due.
    """
    due: list[ev.Record] = list(of_fleet(catalogue, now, silent, gone, lost_seconds))
    if due:
        return due
    for waiting in catalogue.protects.values():
        due += _of_protect(catalogue, waiting, now, silent)
        if due and isinstance(due[-1], ev.StartProtect | ev.DiskboxRequested):
            break
    for volume in catalogue.volumes.values():
        due += _of_volume(catalogue, volume, now)
        due += _late_pause(catalogue, volume, now)
    due += _given_up(catalogue, now)
    for promotion in catalogue.promotions.values():
        due += _of_promotion(catalogue, promotion, now)
    due += decide_failover.pending(catalogue, now)
    return due + decide_compare.pending(catalogue, now)


def _of_protect(
    catalogue: Catalogue, waiting: PendingProtect, now: int, silent: Collection[str]
) -> Iterator[ev.Record]:
    """Ask every agent that was not asked yet; begin, or give up, once it is known where the VM is."""
    try:
        agent = _agent_of(catalogue, waiting, now)
        if agent is not None:
            start = decide_volume.start(catalogue, waiting, agent, now, silent)
            if start is None:
                yield from overflow(catalogue, waiting, now, silent)
            else:
                yield start
            return
    except RephubError as error:
        yield make(
            catalogue,
            ev.ProtectFailed,
            now,
            waiting.event_id,
            waiting.volume,
            command_id=waiting.command_id or None,
            volume=waiting.volume,
            error=error.to_json(),
        )
        return
    for name in catalogue.agents:
        if name not in waiting.asked:
            yield make(
                catalogue,
                ev.VmProbeRequested,
                now,
                waiting.event_id,
                name,
                command_id=waiting.command_id or None,
                agent=name,
                qmp=waiting.qmp,
            )


def _agent_of(catalogue: Catalogue, waiting: PendingProtect, now: int) -> Agent | None:
    """The agent that sees the VM and its node; None while that is not known.

    Raises:
        RephubError: all agents answered and none sees it, or the deadline is over.
    """
    missing: NotFoundError | None = None
    for name in sorted(waiting.announced):
        agent = catalogue.agents[name]
        try:
            decide_volume.find_node(agent, waiting)
        except NotFoundError as error:
            missing = error
        else:
            return agent
    answered = len(waiting.announced) + len(waiting.errors)
    late = expired(waiting.deadline_at, now)
    if not late and (not waiting.asked or answered < len(catalogue.agents)):
        return None
    if missing is not None:
        raise missing
    if waiting.errors:
        raise from_json(waiting.errors[min(waiting.errors)])
    silent = sorted(set(waiting.asked) - waiting.errors.keys())
    raise too_late(f"agent {', '.join(silent) or '(none)'} did not answer about monitor {waiting.qmp}")


def _of_volume(catalogue: Catalogue, volume: Volume, now: int) -> Iterator[ev.Record]:
    if volume.unprotect_id:
        box = catalogue.diskboxes.get(volume.diskbox)
        if volume.detached and (volume.released or (box is not None and box.lost)):
            yield make(
                catalogue,
                ev.Unprotected,
                now,
                volume.unprotect_id,
                volume.name,
                command_id=volume.command_id or None,
                volume=volume.name,
                purged=volume.purge,
            )
    elif volume.live and volume.attached and volume.sync_epoch < volume.epoch and not volume.taken:
        yield make(
            catalogue,
            ev.SyncRequested,
            now,
            volume.attachment_id,
            volume.name,
            command_id=volume.command_id or None,
            volume=volume.name,
            epoch=volume.epoch,
        )


def _late_pause(catalogue: Catalogue, volume: Volume, now: int) -> Iterator[ev.Record]:
    """A pause that the agent did not answer by its deadline."""
    if volume.pause_id and expired(volume.pause_deadline_at, now):
        yield make(
            catalogue,
            ev.PauseFailed,
            now,
            volume.pause_id,
            volume.name,
            command_id=volume.command_id or None,
            volume=volume.name,
            error=too_late(f"agent {volume.agent} did not pause volume {volume.name}").to_json(),
        )


def _given_up(catalogue: Catalogue, now: int) -> Iterator[ev.Record]:
    """Requests that nobody answered by their deadline."""
    for checkpoint in catalogue.checkpoints.values():
        if checkpoint.state == "requested" and expired(checkpoint.deadline_at, now):
            yield make(
                catalogue,
                ev.CheckpointFailed,
                now,
                checkpoint.event_id,
                checkpoint.name,
                command_id=checkpoint.command_id or None,
                checkpoint=checkpoint.name,
                error=too_late(
                    f"agent {checkpoint.agent} did not mark checkpoint {checkpoint.name}"
                ).to_json(),
            )
    for fot in catalogue.fots.values():
        if fot.state == "started" and fot.redirect == "due" and expired(fot.deadline_at, now):
            yield make(
                catalogue,
                ev.FotAttachFailed,
                now,
                fot.event_id,
                fot.name,
                command_id=fot.command_id or None,
                fot=fot.name,
                agent=fot.agent,
                error=too_late(f"agent {fot.agent} did not attach fail-over test {fot.name}").to_json(),
            )
        if fot.state == "requested" and expired(fot.deadline_at, now):
            yield make(
                catalogue,
                ev.FotFailed,
                now,
                fot.event_id,
                fot.name,
                command_id=fot.command_id or None,
                fot=fot.name,
                error=too_late(f"diskbox {fot.diskbox} did not open fail-over test {fot.name}").to_json(),
            )


def _of_promotion(catalogue: Catalogue, promotion: Promotion, now: int) -> Iterator[ev.Record]:
    """Begin what is planned; give up on a plan that does not come, or that something forbids by now."""
    error: RephubError | None = None
    if promotion.cancel_id and (
        promotion.state == "requested" or (promotion.state == "planned" and promotion.final)
    ):
        error = ConflictError("the promote was cancelled", hint="nothing was changed")
    elif promotion.state == "requested" and expired(promotion.deadline_at, now):
        error = too_late(f"diskbox {promotion.diskbox} did not plan the promote")
    elif promotion.state == "planned" and promotion.final:
        error = pinned_below(catalogue, promotion) or _unfit(catalogue, promotion)
        if error is None:
            yield make(
                catalogue,
                ev.PromoteStarted,
                now,
                promotion.event_id,
                promotion.name,
                command_id=promotion.command_id or None,
                promotion=promotion.name,
            )
    if error is not None:
        yield make(
            catalogue,
            ev.PromoteFailed,
            now,
            promotion.event_id,
            promotion.name,
            command_id=promotion.command_id or None,
            promotion=promotion.name,
            error=error.to_json(),
        )


def _unfit(catalogue: Catalogue, promotion: Promotion) -> RephubError | None:
    """Why a planned promote cannot begin any more."""
    for name in promotion.volumes:
        volume = catalogue.volumes.get(name)
        if volume is None or not volume.live:
            return NotFoundError(f"no volume {name} is protected any more", hint="rephub status")
        if volume.unprotect_id or volume.taken:
            return ConflictError(
                f"volume {name} is being unprotected or promoted otherwise",
                hint="rephub status",
                state=volume.state,
            )
    if promotion.diskbox not in catalogue.diskboxes:
        return UnavailableError(f"diskbox {promotion.diskbox} is not there", hint="rephub status")
    return None
