"""Answers the hub's questions about monitors: which VM is behind it, and what volumes it has."""

from __future__ import annotations

import asyncio
import logging

from rephub.agent import discover
from rephub.agent.parts import Parts
from rephub.core.errors import RephubError
from rephub.schemas import events as ev

log = logging.getLogger(__name__)


class Probes:
    """Probes monitors; one task each.

    Args:
        parts: of the process.
    """

    name = ""
    """Of no volume: see `vms.User`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Begin what the catalogue asks for and what is not begun."""
        agent = self._parts.catalogue.agents.get(self._parts.settings.agent.id)
        probes = agent.probes if agent else {}
        self._asked &= set(probes.values())
        for path, event_id in probes.items():
            if event_id not in self._asked:
                self._asked.add(event_id)
                task = asyncio.create_task(self._probe(path, event_id))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End what is under way; it is asked again after a restart."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def vm_gone(self) -> None:
        """The command under way fails by itself."""

    async def _probe(self, path: str, event_id: str) -> None:
        parts = self._parts
        # A user of its own: probes of one path may overlap.
        user = Probes(parts)
        try:
            vm = await parts.vms.get(path, user)
            try:
                async with vm.lock:
                    parts.watch.answer(vm, await discover.look(vm), event_id)
            finally:
                parts.vms.give_back(path, user)
        except RephubError as exc:
            parts.watch.forget(path)
            agent = parts.settings.agent.id
            parts.announcer.emit(
                ev.VmProbeFailed, path, cause_id=event_id, agent=agent, qmp=path, error=exc.to_json()
            )
