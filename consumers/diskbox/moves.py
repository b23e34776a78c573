"""Moves of recovery volumes between diskboxes, both ends; the log holds how far each is.

Old end: stand still (what is applied stays as it is, the journal is read on, tests go on), serve the content by NBD, tell
the position. New end: copy, follow the journal from that position, say so once at the head. Then the hub writes
VolumesMoved: from that event on the new end has the volume, and deletes records; before it, only the old end does, and it
deletes nothing above where it stands still. Each step looks at what is there, so either end may be killed at any point.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rephub.consumers.diskbox.facts import Facts
from rephub.consumers.diskbox.files import short_name
from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.move_copy import fetch_copy
from rephub.consumers.diskbox.position import load_position
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.errors import (
    ConflictError,
    DeadlineError,
    IndeterminateError,
    ProtocolError,
    RephubError,
    UnavailableError,
)
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import tcp_uri, unix_uri
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Move
from rephub.projections.window import History
from rephub.schemas import events as ev

log = logging.getLogger(__name__)

STAND_STILL_SECONDS = 60.0
"""What was intended to be applied is at most one rise of the floor."""


class MoveEndedError(Exception):
    """The move was cancelled, or failed at its other end."""


@dataclass(slots=True)
class _Served:
    server: NbdServer
    projector: Projector


class Moves:
    """Both ends of all moves at one diskbox.

    Args:
        diskbox: name of this diskbox.
        life: of this process.
        directory: `volumes/`.
        sockets: for sockets; short.
        host: address to serve on; empty: a unix socket.
        catalogue, volumes, jobs, facts: of the daemon.
        make_box: a BoxVolume for a name.
        run: lets the projector of one run.
    """

    def __init__(
        self,
        diskbox: str,
        life: str,
        directory: Path,
        sockets: Path,
        host: str,
        catalogue: Catalogue,
        volumes: dict[str, BoxVolume],
        jobs: Jobs,
        facts: Facts,
        make_box: Callable[[str], BoxVolume],
        run: Callable[[BoxVolume], None],
    ) -> None:
        self._diskbox, self._life = diskbox, life
        self._directory, self._sockets, self._host = directory, sockets, host
        self._catalogue, self._volumes = catalogue, volumes
        self._jobs, self._facts = jobs, facts
        self._make_box, self._run = make_box, run
        self._serving: dict[tuple[str, str], _Served] = {}
        self._told: set[tuple[str, str]] = set()
        self.incoming: dict[str, BoxVolume] = {}
        """Copies that follow the journal and are not ours yet."""
        self.progress: dict[str, tuple[int, int]] = {}
        """By volume: (done, total) bytes of the copy at work."""

    def round(self) -> None:
        """Do what is missing at either end."""
        for move in self._catalogue.moves.values():
            if move.ended:
                continue
            for name in move.volumes:
                box = self._volumes.get(name)
                if move.previous == self._diskbox and box is not None and box.projector is not None:
                    self._jobs.once(("serve", move.name, name), partial(self._serve, move, name))
                ready = name in move.served and not self._jobs.is_running("discard", name)
                if move.diskbox == self._diskbox and ready:
                    self._jobs.once(("fetch", move.name, name), partial(self._fetch, move, name))
        for move_name, name in list(self._serving):
            if self._is_over(move_name):
                self._jobs.once(("unserve", move_name, name), partial(self._unserve, move_name, name))
        for name, box in list(self.incoming.items()):
            if self._catalogue.volumes[name].diskbox == self._diskbox:
                self._volumes[name] = self.incoming.pop(name)
                log.info("volume=%s moved_here=yes", name)
            elif not self.expects(name):
                del self.incoming[name]
                self._jobs.once(("drop", name, box.position.start_id if box.position else ""), box.close)

    def _is_over(self, name: str) -> bool:
        move = self._catalogue.moves.get(name)
        return move is None or move.ended

    def _move_of(self, volume: str) -> Move | None:
        found = self._catalogue.volumes.get(volume)
        return self._catalogue.moves.get(found.move) if found is not None and found.move else None

    def expects(self, volume: str) -> bool:
        """Whether the volume is on its way to here."""
        move = self._move_of(volume)
        return move is not None and move.diskbox == self._diskbox and not move.ended

    def is_serving(self, move: str, volume: str) -> bool:
        """Whether this process serves the volume and has said where."""
        return (move, volume) in self._told

    def hold(self, box: BoxVolume) -> None:
        """Before its projector runs: a volume that is about to leave stands still, also after a restart."""
        move = self._move_of(box.name)
        if move is not None and move.previous == self._diskbox and not move.ended and box.projector:
            box.projector.freeze()

    async def close(self) -> None:
        """End serving and following; the log knows where to go on."""
        for served in self._serving.values():
            await served.server.close()
        for box in self.incoming.values():
            await box.close()

    # the old end

    async def _serve(self, move: Move, name: str) -> None:
        projector = self._volumes[name].projector
        if projector is None or move.ended:
            return
        try:
            offset = await projector.stand_still(STAND_STILL_SECONDS)
        except DeadlineError as exc:
            raise UnavailableError(exc.message) from exc
        except UnavailableError:
            raise
        except RephubError as exc:
            await self._failed(move, exc)
            return
        projector.pin(_holder(move), offset)
        server = NbdServer()
        server.add_export(View(projector, offset, None))
        uri = await self._listen(server, move, name)
        position = json.dumps(projector.applier.position.applied.to_dict())
        self._serving[move.name, name] = _Served(server, projector)
        await self._facts.tell(
            ev.MoveServed, f"{self._life}:{move.event_id}", name, move.command_id,
            move=move.name, volume=name, uri=uri, position=position,
        )  # fmt: skip
        self._told.add((move.name, name))

    async def _listen(self, server: NbdServer, move: Move, name: str) -> str:
        if self._host:
            return tcp_uri(self._host, await server.listen_tcp(self._host), name)
        digest = short_name(f"{move.name}/{name}")
        path = self._sockets / f"move-{digest}"
        await server.listen_unix(path)
        return unix_uri(path, name)

    async def _unserve(self, move_name: str, name: str) -> None:
        self._told.discard((move_name, name))
        served = self._serving.pop((move_name, name), None)
        if served is None:
            return
        await served.server.close()
        served.projector.unpin(f"move:{move_name}")
        served.projector.thaw()

    # the new end

    async def _fetch(self, move: Move, name: str) -> None:
        try:
            await self._fetch_all(move, name)
        except MoveEndedError:
            log.info("volume=%s move=ended", name)
        except (UnavailableError, IndeterminateError):
            raise
        except (DeadlineError, ProtocolError) as exc:
            raise UnavailableError(exc.message) from exc
        except RephubError as exc:
            await self._failed(move, exc)
        finally:
            self.progress.pop(name, None)

    async def _fetch_all(self, move: Move, name: str) -> None:
        if name not in self.incoming:
            await self._copy(move, name)
            volume = self._catalogue.volumes[name]
            box = self._make_box(name)
            await box.open(History(volume.history_seconds, volume.history_bytes))
            _check(move)
            self.incoming[name] = box
            self._run(box)
        box = self.incoming[name]
        if box.projector is None or box.position is None:
            raise ConflictError(f"the copy of volume {name} cannot follow its journal")
        await box.projector.catch_up()
        await self._facts.tell(
            ev.MoveCopied, move.event_id, name, move.command_id,
            move=move.name, volume=name, path=box.position.path,
        )  # fmt: skip

    async def _copy(self, move: Move, name: str) -> None:
        directory = self._directory / name
        old = await asyncio.to_thread(load_position, directory)
        if old is not None and old.ready and old.start_id == move.event_id:
            return
        if old is not None and (old.promoted or old.retired):
            raise ConflictError(
                f"diskbox {self._diskbox} has a finished copy of {name} already", path=str(directory)
            )
        served = move.served[name]
        there = self._catalogue.diskboxes[move.previous].host
        if served["uri"].startswith("nbd+unix:") and there != socket.gethostname():
            raise ConflictError(
                f"diskbox {move.previous} on {there} serves moves on a unix socket only",
                hint="set diskbox.move_host there",
            )

        def progress(done: int, total: int) -> None:
            self.progress[name] = done, total
            _check(move)

        await fetch_copy(directory, name, move.event_id, served, progress)
        if move.served[name]["position"] != served["position"]:
            raise UnavailableError(
                f"diskbox {move.previous} moved on meanwhile: the copy of {name} is made anew"
            )

    async def _failed(self, move: Move, error: RephubError) -> None:
        with contextlib.suppress(MoveEndedError):
            _check(move)
            await self._facts.tell(
                ev.MoveFailed, move.event_id, move.name, move.command_id,
                move=move.name, error=error.to_json(),
            )  # fmt: skip


def _check(move: Move) -> None:
    if move.ended:
        raise MoveEndedError


def _holder(move: Move) -> str:
    return f"move:{move.name}"
