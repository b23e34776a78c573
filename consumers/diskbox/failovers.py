"""Fail-overs: fence, serve the point with a durable overlay, fold the journal behind the running VM, commit or undo.

Every step looks first whether it was done, so that a diskbox that was killed at any of them goes on where it was:

1. plan: resolve, pin → `FailoverPlanned`.
2. open: fence each journal, then serve → `FailoverOpened`. A VM may write from here on.
3. fold: the events up to the point go into the recovery volume, beside the VM → `FailoverFolded`.
4. commit: the position is marked, so that nobody takes the recovery volume for the journal's any more; then writes go
   through to it, and the overlay is folded into it → `FailoverCommitted`. The VM runs from the recovery volume alone.
5. or undo: the overlay is discarded, the pins go, and the projectors trail the head again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.applier import CrashPoint, go_on
from rephub.consumers.diskbox.failover_view import FailoverView, RecoveryBase
from rephub.consumers.diskbox.fence import fence
from rephub.consumers.diskbox.files import short_name, storage_errors
from rephub.consumers.diskbox.fots import projector_of, resolve_point
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.promotions import check_floor, plan_item
from rephub.consumers.diskbox.recovery import RecoveryVolume
from rephub.consumers.diskbox.recovery_targets import open_target
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume, Owns, always
from rephub.core.errors import ConflictError, IntegrityError, NotFoundError, RephubError, UnavailableError
from rephub.core.journal.port import JournalStore
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import unix_uri
from rephub.projections.entities import Checkpoint
from rephub.projections.failover import HELD, Failover
from rephub.projections.points import Resolved
from rephub.projections.view import BLOCK_BYTES
from rephub.schemas.events import PlanItem, ViewItem

log = logging.getLogger(__name__)

CRASH_POINTS = (
    "fo_before_fence", "fo_after_fence", "fo_after_overlay", "fo_served", "fo_folding", "fo_folded", "fo_before_mark",
    "fo_after_mark", "fo_written_through", "fo_half_moved", "fo_moved", "fo_before_undo", "fo_after_shut", "fo_after_undo",
)  # fmt: skip
"""Where a test may let the process die."""

FOLD_LOOK_SECONDS = 1.0
"""How often a fold looks whether it is still wanted."""


@dataclass(slots=True)
class OpenFailover:
    """A fail-over that is served."""

    name: str
    server: NbdServer
    directory: Path
    socket: Path
    views: dict[str, FailoverView] = field(default_factory=dict)
    recoveries: dict[str, RecoveryVolume] = field(default_factory=dict)
    """Recovery volumes that are this fail-over's own since its commit."""
    items: tuple[ViewItem, ...] = ()
    plans: tuple[PlanItem, ...] = ()


class Failovers:
    """The fail-overs of one diskbox.

    Args:
        directory: for overlays, `failovers/`.
        socket_directory: for sockets; short.
        store: of the journals, for fences.
        volumes: by name; shared with the diskbox.
        fold_bytes_per_second: how fast journal and overlay go into the recovery volume; 0: no limit.
        crash_point: called with each name of CRASH_POINTS.
        owns: asks the log whether a volume is still this diskbox's; see `ownership.py`.
    """

    def __init__(
        self,
        directory: Path,
        socket_directory: Path,
        store: JournalStore,
        volumes: Mapping[str, BoxVolume],
        *,
        fold_bytes_per_second: int = 0,
        crash_point: CrashPoint = go_on,
        owns: Owns = always,
    ) -> None:
        self._directory = directory
        self._socket_directory = socket_directory
        self._store = store
        self._volumes = volumes
        self._rate = fold_bytes_per_second
        self._crash_point = crash_point
        self._owns = owns
        self.open: dict[str, OpenFailover] = {}
        self.problems: dict[str, RephubError] = {}
        """By volume: why it cannot be served, folded or committed for now."""
        self._held: set[str] = set()
        """Fail-overs that have stopped their projectors at the point."""

    def note(self, failover: Failover, problem: RephubError | None) -> None:
        """Something stands still, or, None, goes on: `status` says so."""
        for name in failover.volumes:
            if problem is None:
                self.problems.pop(name, None)
            else:
                self.problems[name] = problem

    # Before anything is served.

    async def plan(self, failover: Failover, checkpoints: Mapping[str, Checkpoint]) -> tuple[PlanItem, ...]:
        """What would be opened and lost; unless it is a dry run, the points are pinned.

        Raises:
            RephubError: the point cannot be opened.
        """
        points = await self._resolve(failover, checkpoints)
        if not failover.dry_run:
            for projector, resolved in points.values():
                projector.pin(holder(failover), resolved.offset)
        return tuple(plan_item(projector, resolved) for projector, resolved in points.values())

    async def _resolve(
        self, failover: Failover, checkpoints: Mapping[str, Checkpoint]
    ) -> dict[str, tuple[Projector, Resolved]]:
        if not failover.drained:
            return await resolve_point(
                self._volumes, failover.volumes, failover.point_kind, failover.point_value, checkpoints
            )
        points: dict[str, tuple[Projector, Resolved]] = {}
        for name in failover.volumes:
            offset = str(failover.drained[name]["offset"])
            points |= await resolve_point(self._volumes, [name], "offset", offset, checkpoints)
        return points

    def pin_again(self, failover: Failover, box: BoxVolume) -> None:
        """After a restart, before the projector runs: hold the point of its volume."""
        projector = box.projector
        if projector is None or failover.state not in (*HELD, "committing"):
            return
        for plan in failover.plans:
            if plan["volume"] == box.name and projector.floor_offset <= plan["offset"]:
                projector.pin(holder(failover), plan["offset"])

    # Serving.

    async def start(self, failover: Failover) -> OpenFailover:
        """Fence, and serve the point; after a restart only the latter.

        Raises:
            ConflictError: others take every next epoch, or a planned one would lose something.
            PointNotAvailableError: the point is gone.
            StorageError: the overlay cannot be opened, or is not the one that was served before.
            UnavailableError: Kafka is away; try again.
        """
        if failover.name in self.open:
            return self.open[failover.name]
        if failover.state == "started":
            self._crash_point("fo_before_fence")
            await self._fence(failover)
            self._crash_point("fo_after_fence")
        socket = self._socket_directory / f"fo-{short_name(failover.name)}"
        opened = OpenFailover(failover.name, NbdServer(), self._directory_of(failover.name), socket)
        try:
            with storage_errors("create", opened.directory):
                opened.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for plan in failover.plans:
                opened.views[plan["volume"]] = await self._view(failover, plan, opened)
            self._crash_point("fo_after_overlay")
            for view in opened.views.values():
                opened.server.add_export(view)
            await opened.server.listen_unix(opened.socket)
        except BaseException:
            await self._shut(opened)
            raise
        opened.items = tuple(
            ViewItem(
                volume=plan["volume"], offset=plan["offset"], captured_at=plan["captured_at"],
                checkpoint=plan["checkpoint"], uri=unix_uri(opened.socket, plan["volume"]),
            )
            for plan in failover.plans
        )  # fmt: skip
        opened.plans = tuple(self._after_the_fence(plan) for plan in failover.plans)
        self.open[failover.name] = opened
        self._crash_point("fo_served")
        return opened

    async def _fence(self, failover: Failover) -> None:
        for plan in failover.plans:
            projector = projector_of(self._volumes, plan["volume"])
            check_floor(projector, plan)
            if not await self._owns(projector.volume):
                raise UnavailableError(f"volume {projector.volume} is on another diskbox")
            await fence(self._store, projector, failover.name, "fail-over")
            lost = self._after_the_fence(plan).lost_events
            if failover.planned and lost:
                raise ConflictError(
                    f"{lost} events of {projector.volume} were written after it was drained",
                    hint="is something other than the VM writing to it? rephub move again",
                )

    def _after_the_fence(self, plan: dict[str, Any]) -> PlanItem:
        """The plan with what is lost for good; as it was, where the journal is not read any more."""
        box = self._volumes.get(plan["volume"])
        if box is None or box.projector is None:
            return PlanItem(**plan)
        return plan_item(box.projector, Resolved(plan["offset"], plan["captured_at"], plan["checkpoint"]))

    async def _view(self, failover: Failover, plan: dict[str, Any], opened: OpenFailover) -> FailoverView:
        name, offset = plan["volume"], plan["offset"]
        if self._is_committed(failover, name):
            overlay = self._overlay(opened, failover, plan, 0, {})
            recovery = await self._own_recovery(plan, name, overlay.size_bytes)
            opened.recoveries[name] = recovery
            view = FailoverView(name, offset, overlay.size_bytes, RecoveryBase(recovery, 0), overlay)
            view.write_through(recovery)
            return view
        projector = projector_of(self._volumes, name)
        check_floor(projector, plan)
        projector.pin(holder(failover), offset)
        below = View(projector, offset, None)
        above = {"point": await projector.source.identity_at(offset)}
        overlay = self._overlay(opened, failover, plan, below.size_bytes, above)
        return FailoverView(name, offset, below.size_bytes, below, overlay)

    def _is_committed(self, failover: Failover, volume: str) -> bool:
        """Whether the volume's recovery volume is this fail-over's alone: no journal is applied to it any more."""
        if failover.state in ("committed", "closing"):
            return True
        box = self._volumes.get(volume)
        return (
            box is not None
            and box.position is not None
            and box.position.promoted.get("promotion") == failover.name
        )

    def _overlay(
        self,
        opened: OpenFailover,
        failover: Failover,
        plan: dict[str, Any],
        size_bytes: int,
        above: dict[str, str],
    ) -> Overlay:
        """The one that a VM may have written to; a new one where there is none, and nothing was opened yet. Raises: as `start`."""
        identity = {"failover": failover.name, "volume": plan["volume"], "offset": plan["offset"]} | above
        try:
            return Overlay.reopen(opened.directory, plan["volume"], None, identity, durable=True)
        except NotFoundError:
            if failover.state != "started":
                raise
        return Overlay.create(opened.directory, plan["volume"], size_bytes, None, identity, durable=True)

    async def _own_recovery(self, plan: dict[str, Any], volume: str, size_bytes: int) -> RecoveryVolume:
        """The recovery volume of a committed volume, which its box does not hold."""
        box = self._volumes.get(volume)
        position = box.position if box is not None else None
        identity = position.identity if position is not None and position.path == plan["path"] else ""
        return await open_target(plan["path"], size_bytes, identity)

    # Folding, and the end.

    async def fold(self, failover: Failover, wanted: Callable[[], bool]) -> bool:
        """Let the journal up to the points go into the recovery volumes; whether it is all there.

        Args:
            failover: open.
            wanted: whether it still is.

        Raises:
            UnavailableError: a volume is not projected now; try again.
        """
        self._crash_point("fo_folding")
        self._held.add(failover.name)
        while wanted():
            left = []
            for plan in failover.plans:
                if self._is_committed(failover, plan["volume"]):
                    continue
                projector = self._projector(plan["volume"])
                projector.hold_at(plan["offset"], self._rate)
                if projector.applier.applied_offset < plan["offset"]:
                    left.append(projector)
                    if projector.timeline.is_spoiled(plan["offset"]):
                        self.note(failover, _unreadable(projector.volume))
            if not left:
                self.note(failover, None)
                self._crash_point("fo_folded")
                return True
            await left[0].changed.wait(FOLD_LOOK_SECONDS)
        return False

    def _projector(self, volume: str) -> Projector:
        try:
            return projector_of(self._volumes, volume)
        except (NotFoundError, ConflictError) as exc:
            raise UnavailableError(exc.message) from exc

    async def commit(self, failover: Failover) -> None:
        """After the fold: let what the VM wrote, and writes, go into the recovery volumes.

        Raises:
            RephubError: not done; nothing is lost, try again.
        """
        opened = self.open.get(failover.name)
        if opened is None:
            raise UnavailableError(f"fail-over {failover.name} is not open here yet")
        for plan in failover.plans:
            name = plan["volume"]
            view = opened.views[name]
            if not view.committing:
                box = self._volumes[name]
                self._crash_point("fo_before_mark")
                await box.mark_promoted(failover.name, plan["offset"])
                self._crash_point("fo_after_mark")
                opened.recoveries[name] = await box.hand_over()
                view.write_through(opened.recoveries[name])
        self._crash_point("fo_written_through")
        for view in opened.views.values():
            async for moved in view.fold():
                self._crash_point("fo_half_moved")
                if self._rate:
                    await asyncio.sleep(moved / self._rate)
        self._crash_point("fo_moved")

    async def undo(self, failover: Failover) -> None:
        """Discard what was written, and let the projectors trail the head again; no error if there is nothing."""
        self._crash_point("fo_before_undo")
        opened = self.open.pop(failover.name, None)
        if opened is not None:
            await self._shut(opened)
        self._crash_point("fo_after_shut")
        shutil.rmtree(self._directory_of(failover.name), ignore_errors=True)
        self.note(failover, None)
        for name in failover.volumes:
            box = self._volumes.get(name)
            if box is not None and box.projector is not None:
                box.projector.unpin(holder(failover))
                if failover.name in self._held:
                    # Nobody else's hold: a promote may have begun after a fail-over that came to nothing.
                    box.projector.thaw()
        self._held.discard(failover.name)
        self._crash_point("fo_after_undo")

    async def close(self, failover: Failover) -> None:
        """Serve the committed volumes no longer; nothing is left of the overlay."""
        opened = self.open.pop(failover.name, None)
        if opened is not None:
            for view in opened.views.values():
                await view.flush()
            await self._shut(opened)
        shutil.rmtree(self._directory_of(failover.name), ignore_errors=True)

    async def shut_all(self) -> None:
        """The process ends: VMs wait for the next one."""
        while self.open:
            _, opened = self.open.popitem()
            await self._shut(opened)

    async def _shut(self, opened: OpenFailover) -> None:
        await opened.server.close()
        for view in opened.views.values():
            view.overlay.close()
        for recovery in opened.recoveries.values():
            await recovery.close()

    def _directory_of(self, name: str) -> Path:
        return self._directory / short_name(name)

    def status(self) -> list[dict[str, Any]]:
        """What `/status` says of those that are served."""
        return [
            {
                "failover": opened.name,
                "volume": item.volume,
                "offset": item.offset,
                "uri": item.uri,
                "overlay_bytes": opened.views[item.volume].overlay.map.held_blocks * BLOCK_BYTES,
                "committing": opened.views[item.volume].committing,
            }
            for opened in self.open.values()
            for item in opened.items
        ]


def _unreadable(volume: str) -> IntegrityError:
    return IntegrityError(
        f"an event of {volume} below the point cannot be read any more: it cannot be folded",
        hint=f"rephub rollback {volume}, then fail over to another point",
    )


def holder(failover: Failover) -> str:
    """The name of a fail-over's pins."""
    return f"failover:{failover.name}"
