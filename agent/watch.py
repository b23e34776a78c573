"""Announces VMs: when the hub asks, and whenever a look shows something else than what was announced last.

Looked at are the QEMUs to which a protected volume keeps a connection: soon after an event that may mean another disk,
and every `agent.discover_seconds`, because QEMU sends no event for `blockdev-add`. Whoever looks for a reason of his own
(an attach, a probe) says here what he saw. Looks are under `vm.lock`, one QEMU after the other, and drain nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from rephub.agent import discover
from rephub.agent.announce import Announcer
from rephub.agent.attach import PREFIX
from rephub.agent.discover import Seen
from rephub.agent.vm import Vm
from rephub.agent.vms import Vms
from rephub.core.config import Settings
from rephub.core.errors import RephubError
from rephub.projections.catalogue import Catalogue
from rephub.schemas import events as ev

TELLING = frozenset(
    {
        "BLOCK_EXPORT_DELETED",
        "BLOCK_JOB_CANCELLED",
        "BLOCK_JOB_COMPLETED",
        "DEVICE_DELETED",
        "DEVICE_TRAY_MOVED",
        "RESET",
        "RESUME",
    }
)
"""Events of QEMU after which it may have other volumes. There is none for a device or node that comes."""

SETTLE_SECONDS = 0.2
"""After an event: an unplug is several commands of whoever does it."""

SPACING_SECONDS = 1.0
"""Between two looks at one QEMU, however many events it sends."""

LOOK_SECONDS = 10.0
"""One look; a QEMU that hangs must not keep the others from being looked at for longer."""

log = logging.getLogger(__name__)


class Watch:
    """What was announced about each VM, and who looks whether it still is so.

    Args:
        settings: of the agent.
        catalogue: the fold so far: what a process before this one announced.
        vms: the monitors in use.
        announcer: writes the events.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue, vms: Vms, announcer: Announcer) -> None:
        self._agent = settings.agent.id
        self._period = settings.agent.discover_seconds
        self._catalogue, self._vms, self._announcer = catalogue, vms, announcer
        self._told: dict[str, Seen] = {}
        self._looked_at: dict[str, float] = {}
        self._due: dict[str, float] = {}
        """Monitor → when an event's look is due."""
        self._wake = asyncio.Event()
        vms.on_event = self._heard

    def answer(self, vm: Vm, seen: Seen, event_id: str) -> None:
        """Announce to the hub, which asked: also what it knows."""
        self._told[vm.path] = seen
        self._announcer.emit(
            ev.VmAnnounced,
            vm.path,
            cause_id=event_id,
            agent=self._agent,
            qmp=vm.path,
            vm=seen.vm,
            version=seen.version,
            nodes=seen.nodes,
            pid=seen.pid,
        )

    def saw(self, vm: Vm, seen: Seen) -> None:
        """Announce if it is news."""
        self._looked_at[vm.path] = time.monotonic()
        if seen == self._last(vm.path):
            return
        log.info("VM changed", extra={"monitor": vm.path, "vm": seen.vm, "nodes": len(seen.nodes)})
        # A cause of its own: the same list may come again, and must not look like a repeat.
        self.answer(vm, seen, str(uuid.uuid4()))

    def forget(self, path: str) -> None:
        """The catalogue forgets the VM: nobody answers at this monitor."""
        self._told.pop(path, None)

    def due(self, path: str) -> bool:
        """Whether an event made a look due that was not had yet."""
        return path in self._due

    async def run(self, held: Callable[[Iterable[str]], bool]) -> None:
        """Look until cancelled.

        Args:
            held: whether answers to writes of any of these volumes are held now: their QEMU is left alone.
        """
        while True:
            self._wake.clear()
            now = time.monotonic()
            for vm in self._vms.in_use():
                if self._next_look(vm.path, now) <= now:
                    await self._look(vm, held)
            used = {vm.path for vm in self._vms.in_use()}
            self._due = {path: at for path, at in self._due.items() if path in used}
            self._looked_at = {path: at for path, at in self._looked_at.items() if path in used}
            now = time.monotonic()
            next_look = min((self._next_look(path, now) for path in used), default=float("inf"))
            with contextlib.suppress(TimeoutError):
                # Not for longer than that: a QEMU that comes into use meanwhile is not among these.
                async with asyncio.timeout(min(max(0.0, next_look - now), SPACING_SECONDS)):
                    await self._wake.wait()

    async def _look(self, vm: Vm, held: Callable[[Iterable[str]], bool]) -> None:
        """One look, unless the QEMU is at work for us; then the next is soon."""
        path = vm.path
        self._looked_at[path] = time.monotonic()
        if vm.lock.locked() or held(self._vms.volumes(path)):
            self._due[path] = time.monotonic() + SPACING_SECONDS
            return
        self._due.pop(path, None)
        try:
            async with vm.lock, asyncio.timeout(LOOK_SECONDS):
                self.saw(vm, await discover.look(vm))
        except (RephubError, TimeoutError) as exc:
            log.debug("not looked at", extra={"monitor": path, "error": str(exc)})
        except Exception:
            # Odd answers of one QEMU: the others are looked at all the same.
            log.exception("not looked at", extra={"monitor": path})

    def _next_look(self, path: str, now: float) -> float:
        """When a monitor is to be looked at; far away if nothing asks for it."""
        last = self._looked_at.setdefault(path, now)
        times = [last + (self._period or float("inf"))]
        if path in self._due:
            times.append(max(self._due[path], last + SPACING_SECONDS))
        return min(times)

    def _last(self, path: str) -> Seen | None:
        """What was announced last: by this process, else by one before it."""
        if path in self._told:
            return self._told[path]
        agent = self._catalogue.agents.get(self._agent)
        entry = agent.vms.get(path) if agent else None
        return Seen.known(entry) if entry else None

    def _heard(self, vm: Vm, name: str, data: dict[str, Any]) -> None:
        subject = str(data.get("device") or data.get("id") or "")
        # What comes and goes of ours is not shown.
        if name in TELLING and not subject.startswith(PREFIX) and vm.path not in self._due:
            self._due[vm.path] = time.monotonic() + SETTLE_SECONDS
            self._wake.set()
