"""How the events about fail-over tests and promotions change the catalogue; see `fold.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections.entities import Fot, Promotion, message, plain
from rephub.projections.failover import Failover
from rephub.projections.states import next_state
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue

ENDED_MAX = 1000
"""Ended tests, and ended promotions, that the catalogue remembers at least."""
ENDED_SLACK = 200
"""More than that many beyond it, and the oldest are forgotten: looking for them at each end would cost most of a replay."""


def _fot_requested(catalogue: Catalogue, event: ev.FotRequested) -> None:
    if event.fot in catalogue.fots:
        raise ConflictError(f"fail-over test {event.fot} exists")
    catalogue.fots[event.fot] = Fot(
        name=event.fot,
        volumes=list(event.volumes),
        group=event.group,
        diskbox=event.diskbox,
        point_kind=event.point_kind,
        point_value=event.point_value,
        read_only=event.read_only,
        qmp=event.qmp,
        agent=event.agent or "",
        deadline_at=event.deadline_at or 0,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _fot(catalogue: Catalogue, name: str, *states: str) -> Fot:
    """The test, if it is in one of the states. Raises ConflictError."""
    fot = catalogue.fots.get(name)
    if fot is None or fot.state not in states:
        raise ConflictError(f"fail-over test {name} is {fot.state if fot else 'unknown'}")
    return fot


def _fot_started(catalogue: Catalogue, event: ev.FotStarted) -> None:
    """A test whose stop was asked for meanwhile stays `stopping`."""
    fot = _fot(catalogue, event.fot, "requested", "stopping")
    if fot.state == "requested":
        fot.state = "started"
        fot.redirect = "due" if fot.agent else ""
    fot.views = [plain(view) for view in event.views]


def _fot_failed(catalogue: Catalogue, event: ev.FotFailed) -> None:
    fot = _fot(catalogue, event.fot, "requested", "started", "stopping")
    fot.state, fot.reason = "failed", message(event.error)
    prune(catalogue.fots)


def _redirected(catalogue: Catalogue, name: str, *redirects: str) -> Fot:
    """The test, if its VM is at one of these; ended or not. Raises ConflictError."""
    fot = catalogue.fots.get(name)
    if fot is None or fot.redirect not in redirects:
        raise ConflictError(
            f"the VM of fail-over test {name} is {fot.redirect or 'none' if fot else 'unknown'}"
        )
    return fot


def _fot_attached(catalogue: Catalogue, event: ev.FotAttached) -> None:
    _redirected(catalogue, event.fot, "due").redirect = "attached"


def _fot_attach_failed(catalogue: Catalogue, event: ev.FotAttachFailed) -> None:
    """Nothing of the test is left in the VM: the diskbox stops it."""
    fot = _redirected(catalogue, event.fot, "due")
    fot.redirect = "done"
    if fot.state == "started":
        fot.state, fot.stop_id, fot.reason = "stopping", event.id, message(event.error)


def _fot_detached(catalogue: Catalogue, event: ev.FotDetached) -> None:
    _redirected(catalogue, event.fot, "due", "attached").redirect = "done"


def _fot_stop_requested(catalogue: Catalogue, event: ev.FotStopRequested) -> None:
    fot = _fot(catalogue, event.fot, "requested", "started")
    fot.state, fot.stop_id = "stopping", event.id


def _fot_stopped(catalogue: Catalogue, event: ev.FotStopped) -> None:
    fot = _fot(catalogue, event.fot, "requested", "started", "stopping")
    fot.state, fot.reason = "stopped", event.reason
    prune(catalogue.fots)


def _hydration_set(catalogue: Catalogue, event: ev.HydrationSet) -> None:
    fot = _fot(catalogue, event.fot, "requested", "started", "stopping")
    fot.hydration_stopped, fot.hydration_rate = event.stopped, event.rate_bytes_per_second
    fot.hydration_id = event.id


def _scratch_full(catalogue: Catalogue, event: ev.FotScratchFull) -> None:
    fot = _fot(catalogue, event.fot, "started", "stopping")
    if event.volume not in fot.full:
        fot.full.append(event.volume)


def _promote_requested(catalogue: Catalogue, event: ev.PromoteRequested) -> None:
    if event.promotion in catalogue.promotions:
        raise ConflictError(f"promotion {event.promotion} exists")
    catalogue.promotions[event.promotion] = Promotion(
        name=event.promotion,
        volumes=list(event.volumes),
        group=event.group,
        diskbox=event.diskbox,
        point_kind=event.point_kind,
        point_value=event.point_value,
        dry_run=event.dry_run,
        to=event.to,
        deadline_at=event.deadline_at or 0,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _promotion(catalogue: Catalogue, name: str, *states: str) -> Promotion:
    """The promotion, if it is in one of the states. Raises ConflictError."""
    promotion = catalogue.promotions.get(name)
    if promotion is None or promotion.state not in states:
        raise ConflictError(f"promotion {name} is {promotion.state if promotion else 'unknown'}")
    return promotion


def _promote_planned(catalogue: Catalogue, event: ev.PromotePlanned) -> None:
    promotion = _promotion(catalogue, event.promotion, "requested")
    promotion.state = "planned"
    promotion.plans = [plain(plan) for plan in event.plans]
    if promotion.ended:
        prune(catalogue.promotions)


def _promote_started(catalogue: Catalogue, event: ev.PromoteStarted) -> None:
    promotion = _promotion(catalogue, event.promotion, "planned")
    volumes = [catalogue.volumes.get(name) for name in promotion.volumes]
    if not promotion.final or any(
        volume is None or not volume.live or volume.failover or volume.move for volume in volumes
    ):
        raise ConflictError(f"promotion {event.promotion} cannot start")
    promotion.state = "started"
    for volume in volumes:
        if volume is not None:
            volume.promotion = volume.taken_by = promotion.name
            volume.resync_id = volume.pause_id = volume.resume_id = ""
            # The bitmaps of a pause are the agent's to remove; who lost capture may be gone with his QEMU.
            if not volume.attached and not volume.paused_at:
                promotion.detached.append(volume.name)


def _promoted(catalogue: Catalogue, event: ev.Promoted) -> None:
    promotion = _promotion(catalogue, event.promotion, "planned", "started")
    if promotion.dry_run or (promotion.final and promotion.state != "started"):
        raise ConflictError(f"promotion {event.promotion} has not started")
    if promotion.final:
        volumes = [catalogue.volumes[name] for name in promotion.volumes]
        targets = [next_state(volume.state, "promoted") for volume in volumes]
        for volume, state in zip(volumes, targets, strict=True):
            volume.state, volume.since_at, volume.reason = state, event.at, ""
            volume.attached = False
            volume.gap_at = volume.paused_at = 0
            volume.bitmap = {}
            volume.promotion = volume.stopped = ""
    promotion.state = "promoted"
    promotion.plans = [plain(plan) for plan in event.plans]
    prune(catalogue.promotions)


def _promote_cancel_requested(catalogue: Catalogue, event: ev.PromoteCancelRequested) -> None:
    _promotion(catalogue, event.promotion, "requested", "planned", "started").cancel_id = event.id


def _promote_failed(catalogue: Catalogue, event: ev.PromoteFailed) -> None:
    """The agents attach anew by themselves where they have let go."""
    promotion = _promotion(catalogue, event.promotion, "requested", "planned", "started")
    promotion.state, promotion.reason = "failed", message(event.error)
    for name in promotion.volumes:
        volume = catalogue.volumes.get(name)
        if volume is not None and volume.promotion == promotion.name:
            volume.promotion = ""
    prune(catalogue.promotions)


def prune(entities: dict[str, Fot] | dict[str, Promotion] | dict[str, Failover]) -> None:
    """Forget the oldest that ended: people ask for the last ones, and the snapshot stays small."""
    if len(entities) <= ENDED_MAX + ENDED_SLACK:
        return
    ended = [name for name, entity in entities.items() if entity.ended]
    for name in ended[:-ENDED_MAX]:
        del entities[name]


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.FotRequested: _fot_requested,
    ev.FotStarted: _fot_started,
    ev.FotFailed: _fot_failed,
    ev.FotAttached: _fot_attached,
    ev.FotAttachFailed: _fot_attach_failed,
    ev.FotDetached: _fot_detached,
    ev.FotStopRequested: _fot_stop_requested,
    ev.FotStopped: _fot_stopped,
    ev.HydrationSet: _hydration_set,
    ev.FotScratchFull: _scratch_full,
    ev.PromoteRequested: _promote_requested,
    ev.PromotePlanned: _promote_planned,
    ev.PromoteStarted: _promote_started,
    ev.Promoted: _promoted,
    ev.PromoteFailed: _promote_failed,
    ev.PromoteCancelRequested: _promote_cancel_requested,
}
