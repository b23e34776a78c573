"""Fail-over tests: views with scratch, served over NBD until they are stopped.

All volumes of a test open or none. A pin is set in the same loop turn in which the point is resolved, so the floor cannot
pass in between. A test outlives its process: the next one pins its points again before anything is applied, and serves
the same bytes at the same socket, or says that it is over.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.files import short_name, storage_errors
from rephub.consumers.diskbox.hydrator import Hydrator, Pace
from rephub.consumers.diskbox.kept import Kept, kept_upto
from rephub.consumers.diskbox.overlay import Overlay
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.errors import ConflictError, NotFoundError, RequestError, StorageError
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import unix_uri
from rephub.projections.entities import Checkpoint, Fot
from rephub.projections.points import Resolved, check_available, listed_in, resolve_checkpoint, resolve_group
from rephub.schemas.events import ViewItem

log = logging.getLogger(__name__)


@dataclass(slots=True)
class OpenFot:
    """A test that is served."""

    name: str
    server: NbdServer
    directory: Path
    socket: Path
    pace: Pace
    views: dict[str, View] = field(default_factory=dict)
    pinned: list[Projector] = field(default_factory=list)
    items: tuple[ViewItem, ...] = ()

    def status(self) -> list[dict[str, Any]]:
        """Its views, for `/status`."""
        return [
            {
                "fot": self.name, "volume": item.volume, "offset": item.offset, "uri": item.uri,
                **self.views[item.volume].status(), "rate_bytes_per_second": self.pace.bytes_per_second,
            }
            for item in self.items
        ]  # fmt: skip


def projector_of(volumes: Mapping[str, BoxVolume], name: str) -> Projector:
    """The running projector of a volume.

    Raises:
        NotFoundError: no such recovery volume here.
        ConflictError: it is promoted or released.
    """
    box = volumes.get(name)
    if box is None:
        raise NotFoundError(f"this diskbox has no recovery volume of {name}", volume=name)
    if box.position is not None and box.position.promoted:
        raise ConflictError(
            f"{name} is promoted to offset {box.position.promoted['offset']}",
            hint=f"its data are in {box.position.path}",
        )
    if box.projector is None:
        raise ConflictError(f"{name} is not projected now", volume=name)
    return box.projector


async def resolve_point(
    volumes: Mapping[str, BoxVolume],
    names: list[str],
    kind: str,
    value: str,
    checkpoints: Mapping[str, Checkpoint],
) -> dict[str, tuple[Projector, Resolved]]:
    """The point of each volume, after everything in its journal was read. No loop turn passes after the answer is made.

    A checkpoint that the window has lost is known from the catalogue: the error then names the nearest good offset.

    Raises:
        RephubError: see `points.resolve_group` and `projector_of`.
    """
    projectors = {name: projector_of(volumes, name) for name in names}
    await asyncio.gather(*(projector.catch_up() for projector in projectors.values()))
    timelines = {name: projector.timeline for name, projector in projectors.items()}
    known = checkpoints.get(value) if kind == "checkpoint" else None
    if known is not None and known.state in ("created", "expired") and set(names) <= known.offsets.keys():
        resolved = resolve_checkpoint(timelines, known)
    else:
        resolved = resolve_group(timelines, kind, value, listed_in(checkpoints, strictly=len(names) > 1))
    return {name: (projectors[name], resolved[name]) for name in names}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a test may cost; `scratch_bytes` is also what may be kept for one of its views."""

    scratch_bytes: int
    hydrate_bytes_per_second: int
    """0: no limit."""
    save: bool
    """When the history's limit forces the floor past a test: save what is overwritten, or end the test."""


class Fots:
    """The tests of one diskbox.

    Args:
        directory: for scratches, `fots/`.
        socket_directory: for sockets; short.
        limits: of each.
        volumes: by name; shared with the diskbox.
    """

    def __init__(
        self, directory: Path, socket_directory: Path, limits: Limits, volumes: Mapping[str, BoxVolume]
    ) -> None:
        self._directory = directory
        self._socket_directory = socket_directory
        self._limits = limits
        self._volumes = volumes
        self.open: dict[str, OpenFot] = {}
        self.full: dict[tuple[str, str], int] = {}
        """(test, volume) whose scratch refused a write: the limit in bytes."""
        self.forced: dict[str, str] = {}
        """Tests that cannot go on because the history's limit takes what they show: the reason. They are never opened again."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `full` or `forced` has grown."""

    def remove_leftovers(self, tests: Iterable[Fot]) -> None:
        """Delete the scratches of a former process, but for those of the tests. Raises StorageError."""
        kept = {short_name(fot.name) for fot in tests}
        with storage_errors("clean", self._directory):
            if self._directory.exists():
                for directory in self._directory.iterdir():
                    if directory.name not in kept:
                        shutil.rmtree(directory)

    def pin_again(self, fot: Fot, box: BoxVolume) -> None:
        """After a restart, before the projector runs: hold the point that a test shows of its volume."""
        projector = box.projector
        for view in fot.views:
            if (
                view["volume"] == box.name
                and projector is not None
                and projector.floor_offset
                <= (
                    held := max(
                        view["offset"], kept_upto(self._directory / short_name(fot.name), box.name) or 0
                    )
                )
            ):
                # It gives way again once it is open.
                projector.pin(_holder(fot.name), held)

    def unpin(self, fot: Fot) -> None:
        """A test that is not open holds nothing."""
        for name in fot.volumes:
            box = self._volumes.get(name)
            if box is not None and box.projector is not None:
                box.projector.unpin(_holder(fot.name))

    async def start(self, fot: Fot, checkpoints: Mapping[str, Checkpoint]) -> tuple[ViewItem, ...]:
        """Open all views of a test and serve them.

        Raises:
            RephubError: nothing is open, nothing is left.
        """
        points = await resolve_point(self._volumes, fot.volumes, fot.point_kind, fot.point_value, checkpoints)
        for projector, resolved in points.values():
            projector.pin(_holder(fot.name), resolved.offset)
        return await self._serve(fot, points, again=False)

    async def resume(self, fot: Fot) -> None:
        """Serve a test of a former process again: the same socket, and the same bytes.

        Raises:
            UnavailableError: Kafka is away; try again.
            RephubError: it cannot be as it was; nothing is open.
        """
        points = {}
        for view in fot.views:
            name = view["volume"]
            projector = projector_of(self._volumes, name)
            await projector.catch_up()
            if projector.floor_offset <= view["offset"]:
                check_available(projector.timeline, view["offset"])
            points[name] = projector, Resolved(view["offset"], view["captured_at"], view["checkpoint"])
        await self._serve(fot, points, again=True)

    async def _serve(
        self, fot: Fot, points: Mapping[str, tuple[Projector, Resolved]], *, again: bool
    ) -> tuple[ViewItem, ...]:
        """The points are pinned. Raises: as `start` and `resume`."""
        digest = short_name(fot.name)
        socket = self._socket_directory / f"fot-{digest}"
        pace = Pace(self._limits.hydrate_bytes_per_second)
        opened = OpenFot(fot.name, NbdServer(), self._directory / digest, socket, pace)
        opened.pinned = [projector for projector, _ in points.values()]
        try:
            with storage_errors("create", opened.directory):
                opened.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in points:
                opened.views[name] = await self._view(fot, opened, name, points[name], again=again)
                opened.server.add_export(opened.views[name])
            await opened.server.listen_unix(socket)
        except BaseException:
            await self._close(opened)
            raise
        opened.items = tuple(
            ViewItem(
                volume=name, offset=resolved.offset, captured_at=resolved.captured_at, checkpoint=resolved.checkpoint,
                uri=unix_uri(socket, name),
            )
            for name, (_, resolved) in points.items()
        )  # fmt: skip
        self.open[fot.name] = opened
        for name, (projector, _) in points.items():
            self._give_way_for(opened, name, projector)
        return opened.items

    async def _view(
        self, fot: Fot, opened: OpenFot, name: str, point: tuple[Projector, Resolved], *, again: bool
    ) -> View:
        """A view with its files; nothing is left open if it fails."""
        projector, resolved = point
        directory, offset, limit = opened.directory, resolved.offset, self._limits.scratch_bytes
        identity: dict[str, Any] = {"fot": fot.name, "volume": name, "offset": offset}
        if projector.floor_offset <= offset:
            identity["point"] = await projector.source.identity_at(offset)
        kept = Kept(projector, directory, name, offset, limit, identity)
        if again:
            kept.reopen()
        scratch: Overlay | None = None
        try:
            if projector.floor_offset > kept.upto:
                check_available(projector.timeline, offset)
            if again and not fot.read_only:
                scratch = Overlay.reopen(directory, name, limit, identity, durable=False)
            elif not fot.read_only:
                scratch = Overlay.create(directory, name, kept.size_bytes, limit, identity, durable=False)
        except BaseException:
            kept.close()
            raise
        view = View(projector, offset, scratch, kept)
        view.on_full = lambda: self._note_full(fot.name, name, limit)
        view.hydrator = Hydrator(
            projector, offset, kept.size_bytes, directory / f"{name}.hydrated", opened.pace
        )
        return view

    def _note_full(self, fot: str, volume: str, limit: int) -> None:
        if (fot, volume) not in self.full:
            self.full[fot, volume] = limit
            self.on_change()

    def _give_way_for(self, opened: OpenFot, name: str, projector: Projector) -> None:
        """From now on the view lets the floor pass its point, or ends, when the history's limit forces that."""
        view = opened.views[name]
        kept = view.kept
        assert kept is not None

        def is_over() -> bool:
            return self.open.get(opened.name) is not opened

        async def give_way(floor_offset: int) -> None:
            if is_over():
                return
            problem = "the history's limit was reached, and pins_at_limit is end"
            if self._limits.save:
                try:
                    await view.keep_upto(floor_offset)
                except (StorageError, RequestError) as exc:
                    # That Kafka is away (UnavailableError) is no reason to end a test: it is tried again.
                    await projector.reader.next_offset()
                    problem = f"the history's limit was reached: {exc.message}"
                else:
                    if is_over():  # its pin is gone, and is not to come back
                        return
                    log.info(
                        "fot=%s volume=%s kept=%d upto=%d", opened.name, name, kept.kept_bytes, kept.upto
                    )
                    projector.pin(_holder(opened.name), kept.upto, give_way)
                    return
            if opened.name not in self.forced:
                log.warning("fot=%s volume=%s ends: %s", opened.name, name, problem)
                self.forced[opened.name] = problem
                self.on_change()

        projector.pin(_holder(opened.name), kept.upto, give_way)

    async def hydrate(self, fot: Fot) -> None:
        """Copy what the open test needs of the journal beside it, as fast as is asked for."""
        opened = self.open.get(fot.name)
        if opened is None:
            return
        rate = fot.hydration_rate
        opened.pace.bytes_per_second = self._limits.hydrate_bytes_per_second if rate is None else rate
        opened.pace.stopped = fot.hydration_stopped
        for view in opened.views.values():
            assert view.hydrator is not None
            if fot.hydration_stopped:
                await view.hydrator.stop()
            else:
                view.hydrator.start()

    async def stop(self, name: str) -> None:
        """Close a test, delete its scratch, let its pins go; no error if it is not open."""
        opened = self.open.pop(name, None)
        if opened is not None:
            await self._close(opened)
            for volume in opened.views:
                self.full.pop((name, volume), None)

    async def shut_all(self) -> None:
        """The process ends: tests and their scratches wait for the next one."""
        while self.open:
            _, opened = self.open.popitem()
            await opened.server.close()
            for view in opened.views.values():
                await view.close(discard=False)

    async def _close(self, opened: OpenFot) -> None:
        await opened.server.close()
        for view in opened.views.values():
            await view.close(discard=True)
        shutil.rmtree(opened.directory, ignore_errors=True)
        for projector in opened.pinned:
            projector.unpin(_holder(opened.name))

    def of_volume(self, volume: str) -> list[str]:
        """Names of the open tests that show a volume."""
        return [name for name, opened in self.open.items() if volume in opened.views]


def _holder(name: str) -> str:
    """The name of a test's pins."""
    return f"fot:{name}"
