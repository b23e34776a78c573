"""What an attachment is held by in the control process: its names in QEMU, its worker, its memory; and the ways to both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from rephub.agent import attach, source
from rephub.agent.ipc import Document
from rephub.agent.memory import Memory
from rephub.agent.parts import Parts
from rephub.agent.plan import Held
from rephub.agent.vm import Vm
from rephub.agent.vms import User
from rephub.agent.workers import Owner, WorkerProcess
from rephub.core.errors import RephubError, UnavailableError
from rephub.projections.catalogue import Volume

OPEN_SECONDS = 25.0
"""The worker connects to Kafka, which has a deadline of its own below this."""

DRAIN_SECONDS = 12.0
"""Acks of what is queued: a little more than a batch's own deadline."""

CLOSE_SECONDS = 5.0
"""Beyond the drain."""

JOB_ENDS = {
    "BLOCK_JOB_ERROR": "QEMU reports an error of the mirror",
    "BLOCK_JOB_COMPLETED": "the mirror ended",
    "BLOCK_JOB_CANCELLED": "somebody cancelled the mirror",
}

log = logging.getLogger(__name__)


class Keeper(User, Owner, Protocol):
    """Who holds: is told of losses."""


class Grip:
    """One attachment.

    Args:
        volume: as the catalogue had it when the attachment was made.
        parts: of the process.
        keeper: is told when capture ends.
    """

    def __init__(self, volume: Volume, parts: Parts, keeper: Keeper) -> None:
        self.volume = volume
        self.held = Held(0, uuid.uuid4().hex, -1, taken_by=volume.taken_by)
        self.size_bytes = volume.size_bytes
        self.parts = parts
        self.keeper = keeper
        self.node = volume.node
        """Name of the node that is attached."""
        self.device = ""
        """What it is in; empty: nothing."""
        self.names = attach.names(volume.node, 0)
        self.server_path = source.own_path(parts.settings, volume.qmp)
        self.source: source.Source | None = None
        """QEMU's export of the volume, while a sync or a verify reads it."""
        self.memory = Memory(volume, self.held.attachment_id)
        self.worker: WorkerProcess | None = None

    async def vm(self) -> Vm:
        """The QEMU, connected.

        Raises:
            RephubError: it cannot be reached.
        """
        return await self.parts.vms.get(self.volume.qmp, self.keeper)

    def changing(self, vm: Vm) -> AbstractAsyncContextManager[None]:
        """Alone with the QEMU, and nothing of its volumes held back: for commands that drain."""
        return self.parts.vms.changing(vm)

    async def call(self, op: str, **fields: Any) -> Document:
        """Ask the worker about the volume.

        Raises:
            RephubError: what it raised, that it does not answer, or that there is none.
        """
        worker = self.worker
        if worker is None:
            raise UnavailableError(f"volume {self.volume.name} is not attached")
        return await worker.call(op, DRAIN_SECONDS, volume=self.volume.name, epoch=self.held.epoch, **fields)

    async def close_worker(self, drain_seconds: float) -> None:
        """As `close`; nothing if there is no worker."""
        if self.worker:
            await self.close(self.worker, drain_seconds)

    async def close(self, worker: WorkerProcess, drain_seconds: float) -> Document:
        """End capture in the worker, after so many seconds at most for the acks of what is queued.

        Raises:
            UnavailableError: not all was acked; it is off all the same.
        """
        return await worker.call(
            "close",
            drain_seconds + CLOSE_SECONDS,
            volume=self.volume.name,
            epoch=self.held.epoch,
            drain_seconds=drain_seconds,
        )

    async def give_up(self) -> None:
        """Capture is off: what was not acked is dropped."""
        with contextlib.suppress(RephubError):
            await self.close_worker(0)
        self.forget()

    def forget(self) -> None:
        """Nothing is attached any more."""
        self.worker = None
        self.parts.pool.give_back(self.volume.group, self.volume.name)
        self.parts.vms.give_back(self.volume.qmp, self.keeper)


async def drain(vm: Vm) -> None:
    """Return once every write that QEMU had begun is done, answered by us included.

    A transaction without actions drains all block nodes (QEMU 7.2 and 10.0).
    """
    await vm.execute("transaction", {"actions": []}, seconds=DRAIN_SECONDS)


async def step_back(step: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run a step of the way back; its failure must not hide why there is a way back."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await step()
    except (RephubError, TimeoutError) as exc:
        log.warning("could not undo", extra={"error": str(exc)})
