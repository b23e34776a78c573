"""Checkpoints of groups: named ones that the hub asks for, and periodic ones by the clock.

All members of a group are in one worker, which puts the markers into their queues within one loop turn. One that is to
be app-consistent freezes the guests first; if that fails it is made all the same, says `crash`, and why. Of a group over
several agents there are named ones only (`crossing.py`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping
from typing import Any

from rephub.agent.crossing import Crossing
from rephub.agent.freezer import Freezer
from rephub.agent.hold_side import HoldSide
from rephub.agent.keeper import Keeper
from rephub.agent.parts import Parts
from rephub.agent.worker_limits import CHECKPOINT_SECONDS_MAX
from rephub.agent.workers import WorkerProcess
from rephub.core.errors import ConflictError, NotFoundError, RephubError
from rephub.projections.catalogue import Checkpoint
from rephub.schemas import events as ev

CALL_SECONDS = CHECKPOINT_SECONDS_MAX + 2.0

log = logging.getLogger(__name__)


class Checkpoints:
    """Makes the checkpoints of this agent's volumes.

    Args:
        parts: of the process.
        keepers: by volume.
    """

    def __init__(self, parts: Parts, keepers: Mapping[str, Keeper]) -> None:
        self._parts = parts
        self._keepers = keepers
        self._freezer = Freezer(parts.vms, parts.settings.agent_dir, parts.settings.agent.freeze_seconds)
        self.side = HoldSide(self._worker)
        self._taken: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Begin what the catalogue asks for and what is not begun."""
        requested = {
            checkpoint.event_id: checkpoint
            for checkpoint in self._parts.catalogue.checkpoints.values()
            if checkpoint.state == "requested" and checkpoint.agent == self._parts.settings.agent.id
        }
        # What is no longer requested is answered: its id need not be remembered.
        self._taken &= requested.keys()
        for event_id, checkpoint in requested.items():
            if event_id not in self._taken:
                self._taken.add(event_id)
                self._start(self._named(checkpoint))

    async def run(self) -> None:
        """Make periodic checkpoints until cancelled."""
        self._freezer.recover()
        seconds = self._parts.settings.agent.checkpoint_seconds
        if not seconds:
            return
        while True:
            await asyncio.sleep(seconds)
            for group, volumes in self._groups().items():
                self._start(self._periodic(group, volumes))

    async def stop(self) -> None:
        """End what is under way; the hub's deadlines answer for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._freezer.stop()

    def _groups(self) -> dict[str, list[str]]:
        """Groups whose members are all ours and consistent."""
        catalogue, agent = self._parts.catalogue, self._parts.settings.agent.id
        found = {}
        for group in {volume.group for volume in catalogue.live_volumes()}:
            members = catalogue.group_members(group)
            if all(member.agent == agent and self._is_consistent(member.name) for member in members):
                found[group] = [member.name for member in members]
        return found

    def _is_consistent(self, volume: str) -> bool:
        keeper = self._keepers.get(volume)
        return keeper is not None and keeper.is_consistent

    async def _named(self, checkpoint: Checkpoint) -> None:
        emit = self._parts.announcer.emit
        cause: dict[str, Any] = {
            "cause_id": checkpoint.event_id,
            "command_id": checkpoint.command_id,
            "checkpoint": checkpoint.name,
        }
        try:
            answer, warning = await self._answer(checkpoint)
        except RephubError as exc:
            emit(ev.CheckpointFailed, checkpoint.name, **cause, error=exc.to_json())
            return
        emit(
            ev.CheckpointCreated,
            checkpoint.name,
            **cause,
            kind=answer["kind"],
            offsets=answer["offsets"],
            captured_at=answer["captured_at"],
            warning=warning or None,
            hold_ms=answer.get("hold_ms"),
        )

    async def _answer(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
        """The worker's answer and a warning, which is empty if all went as asked."""
        fields: dict[str, Any] = {
            "checkpoint": checkpoint.name,
            "group": checkpoint.group or "",
            "periodic": False,
        }
        members = self._by_agent(checkpoint.volumes)
        if members.keys() - {self._parts.settings.agent.id}:
            return await self._across(members, **fields), ""
        if checkpoint.kind != "app":
            return await self._mark(checkpoint.volumes, **fields, kind="crash"), ""
        # No guest is frozen for a checkpoint that cannot be.
        worker = self._worker(checkpoint.volumes)
        catalogue = self._parts.catalogue
        frozen = await self._freezer.freeze(catalogue.volumes[name].qmp for name in checkpoint.volumes)
        warning = f"not app-consistent: {frozen.failure.message}" if frozen.failure else ""
        try:
            worker.on_marked[checkpoint.name] = frozen.thaw
            if frozen.failure:
                answer = await self._mark(checkpoint.volumes, **fields, kind="crash")
            else:
                answer = await self._mark(checkpoint.volumes, frozen.until, **fields, kind="app")
                if answer["kind"] != "app":
                    warning = (
                        "not app-consistent: the limit of the freeze was over before the markers were made"
                    )
        finally:
            worker.on_marked.pop(checkpoint.name, None)
            late = await frozen.thawed()
        warning = "; ".join(filter(None, (warning, late)))
        if warning:
            log.warning("checkpoint", extra={"checkpoint": checkpoint.name, "warning": warning})
        return answer, warning

    def _by_agent(self, volumes: list[str]) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for name in volumes:
            volume = self._parts.catalogue.volumes.get(name)
            if volume is None:
                raise NotFoundError(f"volume {name} is not protected any more", hint="rephub status")
            members.setdefault(volume.agent, []).append(name)
        return members

    async def _across(self, members: dict[str, list[str]], **fields: Any) -> dict[str, Any]:
        """A checkpoint of volumes that several agents capture; this one coordinates."""
        agents = self._parts.catalogue.agents
        settings = self._parts.settings.agent
        addresses = {name: agents[name].peer for name in members if name in agents}
        crossing = Crossing(settings.id, self.side, members, addresses, settings.hold_max_ms)
        answer = await crossing.mark(fields | {"kind": "crash"})
        log.info("checkpoint", extra={"checkpoint": fields["checkpoint"], "hold_ms": answer["hold_ms"]})
        return answer

    async def _periodic(self, group: str, volumes: list[str]) -> None:
        now = dt.datetime.now(dt.UTC)
        name = f"auto-{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"
        try:
            await self._mark(volumes, checkpoint=name, group=group, kind="crash", periodic=True)
        except RephubError as exc:
            # The next one comes in a few seconds; a gap says why there is none.
            log.info("no periodic checkpoint", extra={"group": group, "error": exc.message})

    async def _mark(
        self, volumes: list[str], frozen_until: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        worker = self._worker(volumes)
        answer = await worker.call(
            "checkpoint", CALL_SECONDS, volumes=volumes, fields=fields, frozen_until=frozen_until
        )
        for volume in volumes:
            if not self._is_consistent(volume):
                raise ConflictError(
                    f"volume {volume} lost capture while the checkpoint was made",
                    hint="ask again once it is protected",
                )
        return answer

    def _worker(self, volumes: list[str]) -> WorkerProcess:
        """The one worker that has them all.

        Raises:
            NotFoundError: no such volume here.
            ConflictError: one is not consistent now, or they are not together.
        """
        workers = []
        for volume in volumes:
            keeper = self._keepers.get(volume)
            if keeper is None:
                raise NotFoundError(f"volume {volume} is not with agent {self._parts.settings.agent.id}")
            worker = keeper.worker
            if worker is None or not keeper.is_consistent:
                raise ConflictError(
                    f"volume {volume} is not consistent now: {keeper.reason or 'not attached'}",
                    hint=f"rephub wait {volume} --state protected",
                )
            workers.append(worker)
        if any(worker is not workers[0] for worker in workers):
            raise ConflictError(
                "the volumes are of different groups: no instant is common to them",
                hint="make a checkpoint of one volume or of one group",
            )
        return workers[0]

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
