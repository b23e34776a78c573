"""The control process: follows the events, keeps every volume as the catalogue wants it, says how things are."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
import uuid
from typing import Any, cast

from rephub.agent.announce import Announcer
from rephub.agent.checkpoints import Checkpoints
from rephub.agent.draining import Draining
from rephub.agent.keeper import Keeper
from rephub.agent.metrics import AgentCollector
from rephub.agent.parts import Parts
from rephub.agent.peers import PeerServer
from rephub.agent.probes import Probes
from rephub.agent.redirects import Redirects
from rephub.agent.samples import AgentSamples
from rephub.agent.vms import Vms
from rephub.agent.watch import Watch
from rephub.agent.workers import WorkerPool
from rephub.core.bitmap.port import BitmapStore
from rephub.core.codec import ControlRecord
from rephub.core.config import Settings
from rephub.core.control.follow import follow
from rephub.core.control.port import ControlLog
from rephub.core.errors import IntegrityError, RephubError, UnavailableError
from rephub.core.http import StatusServer
from rephub.core.journal.port import JournalStore
from rephub.core.metrics import DaemonCollector, registry_with
from rephub.core.names import EVENTS_TOPIC, agent_lease_key
from rephub.projections import decide_sync
from rephub.projections.catalogue import Catalogue
from rephub.schemas import events as ev

LEASE_SECONDS = 1.0
LEASE_TTL_SECONDS = 4.0
"""A silent agent shows as `gap` within 5 s."""

FLUSH_SECONDS = 3.0
"""How long a stop waits for its last events to be written."""

RETRY_SECONDS = 1.0
"""Pause before the control log is tried again."""

log = logging.getLogger(__name__)


class Agent:
    """A RepAgent.

    Args:
        settings: of the agent.
        control: the control log.
        journals: the volumes' journals.
        bitmaps: acks and leases.
    """

    def __init__(
        self, settings: Settings, control: ControlLog, journals: JournalStore, bitmaps: BitmapStore
    ) -> None:
        self._settings = settings
        self._control = control
        self._bitmaps = bitmaps
        pool, catalogue = WorkerPool(settings), Catalogue()
        vms, announcer = Vms(pool), Announcer(control, settings.agent.id)
        self.parts = Parts(
            settings=settings,
            catalogue=catalogue,
            pool=pool,
            vms=vms,
            announcer=announcer,
            watch=Watch(settings, catalogue, vms, announcer),
            journals=journals,
            bitmaps=bitmaps,
        )
        self.keepers: dict[str, Keeper] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._checkpoints = Checkpoints(self.parts, self.keepers)
        self._peers = PeerServer(settings, self._checkpoints.side.serve)
        self._probes = Probes(self.parts)
        self._redirects = Redirects(self.parts)
        self._draining = Draining(self.parts, self.keepers)
        self._samples = AgentSamples(settings, self.status, self._group_of)
        self._tasks: list[asyncio.Task[None]] = []
        self._folded = False
        self._peer = ""
        metrics = registry_with(
            AgentCollector(self.status), DaemonCollector(settings.state_dir, self._samples.publisher)
        )
        self._server = StatusServer(settings.agent.host, settings.agent.port, self.status, registry=metrics)

    async def start(self) -> str:
        """Start everything; returns the status URL at once, `ready` follows in `/status`.

        Raises:
            UnavailableError: the status address, or that for other agents, is taken.
        """
        self._settings.agent_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._peer = await self._peers.start()
        url = await self._server.start()
        self.parts.pool.start()
        self._tasks = [
            asyncio.create_task(self._follow(url)),
            asyncio.create_task(self._renew_lease(url)),
            asyncio.create_task(self._checkpoints.run()),
            asyncio.create_task(self.parts.watch.run(self._checkpoints.side.holds)),
            asyncio.create_task(self._samples.publisher.run()),
        ]
        return url

    async def stop(self) -> None:
        """Detach everything cleanly, say so, and end; bounded."""
        await _cancel(self._tasks)
        await self._peers.stop()
        await self._checkpoints.stop()
        await self._probes.stop()
        await self._redirects.stop()
        await self._draining.stop()
        await _cancel(list(self._runs.values()))
        announcing = asyncio.create_task(self.parts.announcer.run())
        await asyncio.gather(*(keeper.stop("the agent was stopped") for keeper in self.keepers.values()))
        if not await self.parts.announcer.flush(FLUSH_SECONDS):
            log.warning("last events were not written; the next start says them")
        await _cancel([announcing])
        await self.parts.pool.stop()
        await self.parts.vms.close()
        await self._server.stop()
        try:
            await self._bitmaps.drop(agent_lease_key(self._settings.agent.id))
        except UnavailableError as exc:
            log.debug("lease not dropped", extra={"error": exc.message})

    def status(self) -> dict[str, Any]:
        """The `/status` document."""
        return {
            "kind": "agent",
            "id": self._settings.agent.id,
            "pid": os.getpid(),
            "ready": self._folded and self.parts.pool.ready,
            "at": time.time_ns() // 1000,
            "workers": self.parts.pool.pids(),
            "volumes": {
                name: keeper.status() for name, keeper in sorted(self.keepers.items()) if self._shown(name)
            },
        }

    def _group_of(self, name: str) -> str:
        volume = self.parts.catalogue.volumes.get(name)
        return volume.group if volume is not None else ""

    def _shown(self, name: str) -> bool:
        volume = self.parts.catalogue.volumes.get(name)
        return self.keepers[name].local.held is not None or (volume is not None and volume.live)

    async def _follow(self, url: str) -> None:
        """Fold events and act on them; starts over where it was if the log is away."""
        catalogue = self.parts.catalogue
        announcing: asyncio.Task[None] | None = None
        while True:
            try:
                await self._control.start()
                if announcing is None:
                    self._announce(url)
                    announcing = asyncio.create_task(self.parts.announcer.run())
                    self._tasks.append(announcing)
                await follow(
                    self._control, EVENTS_TOPIC, catalogue.next_offset, self._fold, self._after_batch
                )
            except IntegrityError:
                log.exception("the event log is not the one that was followed")
                os._exit(1)
            except RephubError as exc:
                log.warning("the control log is away", extra={"error": exc.message})
            await asyncio.sleep(RETRY_SECONDS)

    def _announce(self, url: str) -> None:
        self.parts.announcer.emit(
            ev.AgentAnnounced,
            self._settings.agent.id,
            cause_id=str(uuid.uuid4()),
            agent=self._settings.agent.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            url=url,
            peer=self._peer,
        )

    def _fold(self, offset: int, record: ControlRecord) -> None:
        # The topic holds events alone; a command would be a mistake that the fold ignores and counts.
        self.parts.catalogue.apply(offset, cast("ev.Record", record))

    async def _after_batch(self) -> None:
        self._folded = True
        agent = self._settings.agent.id
        for name, volume in self.parts.catalogue.volumes.items():
            if volume.agent == agent and name not in self.keepers:
                keeper = self.keepers[name] = Keeper(name, self.parts)
                self._runs[name] = asyncio.create_task(keeper.run())
        turns = decide_sync.turns(self.parts.catalogue, agent, self._settings.agent.syncs_max)
        for name, keeper in self.keepers.items():
            keeper.local.turn = name in turns
            keeper.wake()
        self._probes.look()
        self._redirects.look()
        self._draining.look()
        self._checkpoints.look()

    async def _renew_lease(self, url: str) -> None:
        key = agent_lease_key(self._settings.agent.id)
        value = json.dumps({"pid": os.getpid(), "url": url})
        while True:
            try:
                await self._bitmaps.renew_lease(key, value, LEASE_TTL_SECONDS)
            except UnavailableError as exc:
                log.debug("lease not renewed", extra={"error": exc.message})
            await asyncio.sleep(LEASE_SECONDS)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
