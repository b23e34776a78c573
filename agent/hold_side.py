"""One agent's side of a checkpoint that spans several: what it does when the coordinator, which may be itself, asks.

Steps, in their order: `check`, `hold`, `mark`, `release`; `drop` instead of any that did not come to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from rephub.agent.ipc import Document
from rephub.agent.worker_limits import CHECKPOINT_SECONDS_MAX
from rephub.agent.workers import WorkerProcess
from rephub.core.errors import UnavailableError, UsageError

STEP_SECONDS = 1.0
"""One step of a worker; far beyond the limit of a hold, which is over by then in any case."""

HOLDS_MAX = 64
"""Under way at once."""

KEPT_SECONDS = 30.0
"""Longer than any checkpoint takes."""


class HoldSide:
    """Answers a coordinator.

    Args:
        worker_of: the one worker that has all these volumes, consistent now; raises RephubError if there is none.
    """

    def __init__(self, worker_of: Callable[[list[str]], WorkerProcess]) -> None:
        self._worker_of = worker_of
        self._holds: dict[str, tuple[WorkerProcess, list[str]]] = {}

    def holds(self, volumes: Iterable[str]) -> bool:
        """Whether answers to writes of any of these volumes are held now, or may be."""
        wanted = set(volumes)
        return any(wanted.intersection(held) for _worker, held in self._holds.values())

    async def serve(self, op: str, fields: Document) -> Document:
        """Do one step.

        Raises:
            RephubError: it could not be done, or what was done before counts for nothing: the checkpoint is void.
        """
        steps: dict[str, Callable[..., Awaitable[Document]]] = {
            "check": self._check,
            "hold": self._hold,
            "mark": self._mark,
            "release": self._release,
            "drop": self._drop,
        }
        if op not in steps:
            raise UsageError(f"unknown step {op!r} of a checkpoint")
        try:
            return await steps[op](**fields)
        except TypeError as exc:
            raise UsageError(f"step {op!r}: {exc}") from exc

    async def _check(self, volumes: list[str]) -> Document:
        self._worker_of(volumes)
        return {}

    async def _hold(self, hold: str, volumes: list[str], limit_ms: float) -> Document:
        if len(self._holds) >= HOLDS_MAX:
            raise UnavailableError("too many checkpoints are under way", hint="ask again")
        worker = self._worker_of(volumes)
        self._holds[hold] = worker, volumes
        # A coordinator that is gone never comes back for its own; the worker has let go long since.
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._holds.pop, hold, None)
        return await worker.call("hold", STEP_SECONDS, hold=hold, volumes=volumes, limit_ms=limit_ms)

    async def _mark(self, hold: str, fields: dict[str, Any]) -> Document:
        worker, _volumes = self._get(hold)
        return await worker.call("hold_mark", STEP_SECONDS, hold=hold, fields=fields)

    async def _release(self, hold: str) -> Document:
        worker, volumes = self._get(hold)
        try:
            answer = await worker.call("hold_release", CHECKPOINT_SECONDS_MAX + STEP_SECONDS, hold=hold)
        finally:
            self._holds.pop(hold, None)
        if self._worker_of(volumes) is not worker:
            raise UnavailableError("the worker is another one by now", hint="ask again")
        return answer

    async def _drop(self, hold: str) -> Document:
        if hold in self._holds:
            worker, _volumes = self._holds.pop(hold)
            await worker.call("hold_drop", STEP_SECONDS, hold=hold)
        return {}

    def _get(self, hold: str) -> tuple[WorkerProcess, list[str]]:
        if hold not in self._holds:
            raise UnavailableError("this hold is unknown: the agent was restarted", hint="ask again")
        return self._holds[hold]
