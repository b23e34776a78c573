"""The worker processes as the control process sees them: start, calls, heartbeat, end.

A worker that is silent for `watchdog_seconds` is killed: its sockets close, QEMU's jobs end with an error, the guests
go on. A worker that ended is started anew at once; its volumes are attached again by their keepers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from rephub.agent.ipc import Channel, Document
from rephub.core.config import Settings
from rephub.core.errors import RephubError, UnavailableError, from_dict

START_SECONDS = 20.0
"""A worker imports its libraries in one or two seconds; a loaded machine takes longer."""

RESTART_SECONDS = 0.5
"""Pause before a worker that ended is started again."""

WATCH_SECONDS = 0.25
"""How often silence is looked at."""

PAUSE_SECONDS_MAX = 1.0
"""If the control process itself stood still for longer, silence says nothing about the workers."""

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}
"""Keeps glibc from giving each batch's memory back and fetching it again: 1.6–2 times less CPU at 64 KiB."""

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who answers for a volume in the control process."""

    def lost(self, epoch: int, error: RephubError) -> None:
        """The worker has lost capture in this epoch."""

    def synced(self, epoch: int, offset: int) -> None:
        """Sync of this epoch is complete and acked."""


class WorkerProcess:
    """One worker.

    Args:
        number: for the log.
        settings: of the agent.
    """

    def __init__(self, number: int, settings: Settings) -> None:
        self.number = number
        self._settings = settings
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._owners: dict[str, Owner] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        """Newest figures by volume."""
        self.on_marked: dict[str, Callable[[], None]] = {}
        """By checkpoint: called once its markers are in all queues, acked or not."""
        self.heard_at = time.monotonic()
        self.ready = False

    @property
    def pid(self) -> int:
        """Of the process; 0 while there is none."""
        return self._process.pid if self._process else 0

    @property
    def load(self) -> int:
        """Volumes it holds."""
        return len(self._owners)

    async def run(self) -> None:
        """Start the process, serve its messages until it ends, and tell its owners.

        Raises:
            RephubError: it did not start.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the library's signature
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "rephub.agent.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | ALLOCATOR,
            )
        process = self._process
        channel = Channel(ours, _no_calls, self._notice)
        await channel.open()
        serving = asyncio.create_task(channel.run())
        try:
            await channel.call("configure", START_SECONDS, settings=self._settings.model_dump(mode="json"))
            self._channel, self.ready, self.heard_at = channel, True, time.monotonic()
            await serving
        finally:
            self.ready, self._channel = False, None
            channel.close()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            self.kill()
            code = await process.wait()
            self._ended(code)

    def adopt(self, volume: str, owner: Owner) -> None:
        """From now on this worker's news of the volume go to the owner."""
        self._owners[volume] = owner

    def forget(self, volume: str) -> None:
        """The volume is not with this worker any more."""
        self._owners.pop(volume, None)
        self.figures.pop(volume, None)

    async def call(self, op: str, seconds: float, **fields: Any) -> Document:
        """Ask the worker; see `Channel.call`."""
        if self._channel is None:
            raise UnavailableError(f"worker {self.number} is not running", hint="it is being started")
        return await self._channel.call(op, seconds, **fields)

    def kill(self) -> None:
        """SIGKILL: frees the guests behind a worker that hangs."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing was heard for so long; START_SECONDS limits the start."""
        return self.ready and time.monotonic() - self.heard_at > seconds

    def _notice(self, notice: str, fields: Document) -> None:
        self.heard_at = time.monotonic()
        if notice == "stats":
            self.figures = fields["volumes"]
            return
        if notice == "marked":
            if marked := self.on_marked.get(fields["checkpoint"]):
                marked()
            return
        owner = self._owners.get(fields["volume"])
        if owner and notice == "lost":
            owner.lost(fields["epoch"], from_dict(fields["error"]))
        elif owner and notice == "synced":
            owner.synced(fields["epoch"], fields["offset"])

    def _ended(self, code: int) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.figures = {}
        if self._owners:
            log.error("worker ended", extra={"worker": self.number, "how": how, "volumes": len(self._owners)})
        for owner in list(self._owners.values()):
            # Epoch 0: whatever it held.
            owner.lost(0, UnavailableError(f"the agent's worker process ended ({how})"))


class WorkerPool:
    """All workers of the agent.

    Args:
        settings: of the agent.
    """

    def __init__(self, settings: Settings) -> None:
        self._watchdog_seconds = settings.agent.watchdog_seconds
        self._workers = [WorkerProcess(number, settings) for number in range(settings.agent.workers)]
        self._groups: dict[str, tuple[WorkerProcess, set[str]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def ready(self) -> bool:
        """All workers take calls."""
        return all(worker.ready for worker in self._workers)

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def start(self) -> None:
        """Start all workers and the watchdog."""
        self._tasks = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """End all workers; detach their volumes before."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def take(self, group: str, volume: str, owner: Owner) -> WorkerProcess:
        """The worker for a volume: the one that has its group, else the least loaded.

        Groups stay together, so that a checkpoint's markers enter all queues in one loop turn.
        """
        worker, members = self._choose(group)
        members.add(volume)
        self._groups[group] = (worker, members)
        worker.adopt(volume, owner)
        return worker

    def check(self, group: str) -> None:
        """Raise UnavailableError unless the worker that `take` would choose takes calls."""
        worker, _ = self._choose(group)
        if not worker.ready:
            raise UnavailableError(f"worker {worker.number} of the agent is starting")

    def _choose(self, group: str) -> tuple[WorkerProcess, set[str]]:
        return self._groups.get(group) or (min(self._workers, key=lambda item: item.load), set())

    def give_back(self, group: str, volume: str) -> None:
        """The volume is detached."""
        if group not in self._groups:
            return
        worker, members = self._groups[group]
        worker.forget(volume)
        members.discard(volume)
        if not members:
            del self._groups[group]

    async def throttle(self, volumes: list[str], *, on: bool) -> None:
        """Switch throttling of these volumes, wherever they are; a worker that does not answer is the watchdog's."""
        calls = [worker.call("throttle", 1.0, volumes=volumes, on=on) for worker in self._workers]
        await asyncio.gather(*calls, return_exceptions=True)

    async def _keep(self, worker: WorkerProcess) -> None:
        while not self._stopping:
            try:
                await worker.run()
            except RephubError as exc:
                log.error("worker did not start", extra={"worker": worker.number, "error": exc.message})
            await asyncio.sleep(RESTART_SECONDS)

    async def _watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            paused, before = now - before > PAUSE_SECONDS_MAX, now
            if paused:
                # We stood still: let what is in the sockets be read first.
                for worker in self._workers:
                    worker.heard_at = max(worker.heard_at, now)
                continue
            for worker in self._workers:
                if worker.is_silent(self._watchdog_seconds):
                    log.error(
                        "worker is silent and is killed", extra={"worker": worker.number, "pid": worker.pid}
                    )
                    worker.heard_at = now
                    worker.kill()


async def _no_calls(op: str, _fields: Document) -> Document:
    raise UnavailableError(f"the control process serves no calls ({op})")
