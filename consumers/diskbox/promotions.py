"""Promote: plan, copy, or fence and apply exactly up to a point. Every step may be repeated after a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.copying import copy_view
from rephub.consumers.diskbox.fence import fence
from rephub.consumers.diskbox.fots import Fots, projector_of, resolve_point
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.signals import Signal
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume, Owns, always
from rephub.core.errors import ConflictError, DeadlineError, PointNotAvailableError, UnavailableError
from rephub.core.journal.port import JournalStore
from rephub.core.targets import is_ours_to_delete
from rephub.projections.entities import Checkpoint, Promotion
from rephub.projections.points import Resolved
from rephub.schemas.events import PlanItem

log = logging.getLogger(__name__)

DETACH_SECONDS = 15.0
"""How long the agent may take to let go; then it is fenced all the same: it may be dead."""
APPLY_SECONDS = 4 * 3600.0
"""Deadline of applying: 20 GiB of history take minutes on a slow disk."""


class Promotions:
    """The promotions of one diskbox.

    Args:
        store: of the journals, for fences.
        volumes: by name; shared with the diskbox.
        fots: the open tests.
        detach_seconds: see DETACH_SECONDS.
        owns: asks the log whether a volume is still this diskbox's; see `ownership.py`.
    """

    def __init__(
        self,
        store: JournalStore,
        volumes: Mapping[str, BoxVolume],
        fots: Fots,
        *,
        detach_seconds: float = DETACH_SECONDS,
        owns: Owns = always,
    ) -> None:
        self._owns = owns
        self._store = store
        self._volumes = volumes
        self._fots = fots
        self._detach_seconds = detach_seconds
        self.progress: dict[str, tuple[int, int]] = {}
        """By volume that is promoted or copied now: bytes done and in all."""

    async def plan(self, promotion: Promotion, checkpoints: Mapping[str, Checkpoint]) -> tuple[PlanItem, ...]:
        """What would be applied and what would be lost; unless it is a dry run, the points are pinned.

        Raises:
            ConflictError: a fail-over test pins a lower point.
            RephubError: the point cannot be opened.
        """
        points = await resolve_point(
            self._volumes, promotion.volumes, promotion.point_kind, promotion.point_value, checkpoints
        )
        if promotion.to is None:
            for name, (_, resolved) in points.items():
                self._check_tests(name, resolved.offset)
        if not promotion.dry_run:
            for projector, resolved in points.values():
                projector.pin(holder(promotion), resolved.offset)
        return tuple(
            plan_item(projector, resolved, None if promotion.to is None else str(target(promotion, name)))
            for name, (projector, resolved) in points.items()
        )

    def _check_tests(self, volume: str, offset: int) -> None:
        for name in self._fots.of_volume(volume):
            pinned = self._fots.open[name].views[volume].offset
            if pinned < offset:
                raise ConflictError(
                    f"fail-over test {name} holds {volume} at offset {pinned}, below {offset}",
                    hint=f"rephub fot stop {name}", fot=name, volume=volume,
                )  # fmt: skip

    def pin_again(self, promotion: Promotion, box: BoxVolume) -> None:
        """After a restart, before the projector runs: hold what the plan promised of its volume."""
        if promotion.ended:
            return
        for plan in promotion.plans:
            projector = box.projector
            if (
                plan["volume"] == box.name
                and projector is not None
                and projector.floor_offset <= plan["offset"]
            ):
                projector.pin(holder(promotion), plan["offset"])

    def wake(self, promotion: Promotion) -> None:
        """It is to be given up: let whoever waits for its volumes look."""
        for name in promotion.volumes:
            box = self._volumes.get(name)
            if box is not None and box.projector is not None:
                box.projector.changed.notify()

    def unpin(self, promotion: str) -> None:
        """The promotion ended one way or the other."""
        for box in self._volumes.values():
            if box.projector is not None:
                box.projector.unpin(f"promote:{promotion}")

    async def copy(self, promotion: Promotion) -> None:
        """Write the copies that were asked for.

        Raises:
            RephubError: no copy of this promotion is left half-made.
        """
        for plan in promotion.plans:
            projector = projector_of(self._volumes, plan["volume"])
            check_floor(projector, plan)
            view = View(projector, plan["offset"], None)

            def step_done(done_bytes: int, view: View = view, volume: str = plan["volume"]) -> None:
                _check_wanted(promotion)
                self.progress[volume] = done_bytes, view.size_bytes

            try:
                await copy_view(view, target(promotion, plan["volume"]), step_done)
            finally:
                self.progress.pop(plan["volume"], None)

    async def carry_out(self, promotion: Promotion, detached: Callable[[], bool], changed: Signal) -> None:
        """Fence, apply exactly, mark: all volumes or none.

        Args:
            promotion: started.
            detached: whether all agents have let go.
            changed: notified when that may have changed.

        Raises:
            RephubError: not promoted; the projectors go on as before.
        """

        def let_go() -> bool:
            return detached() or bool(promotion.cancel_id)

        try:
            await changed.wait_for(let_go, self._detach_seconds, "the agent lets go")
        except DeadlineError:
            log.warning("promotion=%s agent=silent it is fenced all the same", promotion.name)
        boxes = [
            (self._volumes[plan["volume"]], plan)
            for plan in promotion.plans
            if plan["volume"] in self._volumes
        ]
        pending = [(box, plan) for box, plan in boxes if not _is_done(box, promotion)]
        try:
            # Once a volume is marked, it is too late for all of them.
            wanted = _check_wanted if len(pending) == len(boxes) else _go_on
            wanted(promotion)
            for box, plan in pending:
                projector = projector_of(self._volumes, box.name)
                check_floor(projector, plan)
                await self._check_ours(box.name)
                await fence(self._store, projector, promotion.name, "promote")
            for box, plan in pending:
                await self._apply(promotion, projector_of(self._volumes, box.name), plan["offset"], wanted)
            # From here on it is too late to give up.
            for box, plan in pending:
                await box.mark_promoted(promotion.name, plan["offset"])
        except BaseException:
            for box, _ in pending:
                await _undo(box)
            raise
        for box, _ in pending:
            await self.let_go(box)

    async def _apply(
        self, promotion: Promotion, projector: Projector, offset: int, wanted: Callable[[Promotion], None]
    ) -> None:
        """Apply exactly; `status` shows how far it is. Raises: as `Projector.apply_exactly`, ConflictError: cancelled."""
        seen = projector.applier.applied_offset
        total = projector.index.count(seen, offset)[1]
        self.progress[projector.volume] = 0, total

        def look() -> bool:
            nonlocal seen
            applied = projector.applier.applied_offset
            if applied != seen:
                # Counting costs milliseconds, and this is asked often.
                seen = applied
                self.progress[projector.volume] = total - projector.index.count(applied, offset)[1], total
            return wanted is _check_wanted and bool(promotion.cancel_id)

        try:
            await projector.apply_exactly(offset, APPLY_SECONDS, look)
        finally:
            self.progress.pop(projector.volume, None)
        wanted(promotion)

    async def _check_ours(self, volume: str) -> None:
        """A fence takes the agent's epoch: not after another diskbox took the volume over. Raises UnavailableError."""
        if not await self._owns(volume):
            raise UnavailableError(f"volume {volume} is on another diskbox")

    async def let_go(self, box: BoxVolume) -> None:
        """Close a promoted device or export, for whoever uses it now, unless tests still look at it.

        A device is held exclusively, and many NBD servers serve one client at a time; a file excludes nobody.
        """
        position = box.position
        if position is None or not position.promoted or is_ours_to_delete(position.path):
            return
        if not self._fots.of_volume(box.name):
            await box.close()


def plan_item(projector: Projector, resolved: Resolved, path: str | None = None) -> PlanItem:
    """What a point means: events to apply below it, events lost above it.

    Args:
        projector: of the volume; all of its journal is read.
        resolved: the point.
        path: where the volume will be; None: its recovery volume.
    """
    offset = resolved.offset
    events, length = projector.index.count(projector.applier.applied_offset, offset)
    applied_at = projector.timeline.captured_at(projector.applier.applied_offset)
    lost_events, lost_bytes = projector.index.count(offset, projector.head_offset)
    head_at = projector.timeline.captured_at(projector.head_offset) or 0
    # Markers after the point are no loss.
    lost_seconds = max(0, head_at - (resolved.captured_at or head_at)) / 1e6 if lost_events else 0.0
    return PlanItem(
        volume=projector.volume, offset=offset, captured_at=resolved.captured_at, checkpoint=resolved.checkpoint,
        path=path or projector.applier.position.path, events=events, bytes=length, lost_events=lost_events,
        lost_bytes=lost_bytes, lost_seconds=lost_seconds, applied_from_at=applied_at,
        last_checkpoint=projector.timeline.last_checkpoint(offset),
    )  # fmt: skip


def _go_on(_promotion: Promotion) -> None:
    """A cancel comes too late."""


def _check_wanted(promotion: Promotion) -> None:
    if promotion.cancel_id:
        raise ConflictError("the promote was cancelled", hint="protection goes on as before")


def holder(promotion: Promotion) -> str:
    """The name of a promotion's pins."""
    return f"promote:{promotion.name}"


def target(promotion: Promotion, volume: str) -> Path:
    """Where a copy goes: the path itself, or VOLUME.raw in it for several volumes."""
    path = Path(promotion.to or "")
    return path if len(promotion.volumes) == 1 else path / f"{volume}.raw"


def done_items(promotion: Promotion) -> tuple[PlanItem, ...]:
    """The plan as what was done."""
    return tuple(PlanItem(**plan) for plan in promotion.plans)


def _is_done(box: BoxVolume, promotion: Promotion) -> bool:
    return box.position is not None and box.position.promoted.get("promotion") == promotion.name


def check_floor(projector: Projector, plan: dict[str, Any]) -> None:
    """Raise PointNotAvailableError if the floor has passed what was planned."""
    if projector.floor_offset > plan["offset"]:
        earliest = projector.timeline.earliest_offset()
        raise PointNotAvailableError(
            f"offset {plan['offset']} of {projector.volume} is gone meanwhile", nearest_offset=earliest
        )


async def _undo(box: BoxVolume) -> None:
    if box.projector is None:
        return
    box.projector.thaw()
    applier = box.projector.applier
    if applier.position.promoted:
        await applier.update(replace(applier.position, promoted={}))
        box.position = applier.position
