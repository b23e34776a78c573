"""Gives the views of fail-over tests to recovery VMs as disks, and takes them away again; `redirect.py` has the steps.

The catalogue says what is due. Nothing is remembered: names in QEMU follow from the test's, so a process that was
restarted finds what the one before it left.
"""

from __future__ import annotations

import asyncio
import logging

from rephub.agent import redirect
from rephub.agent.parts import Parts
from rephub.core.errors import NotFoundError, RephubError
from rephub.projections.catalogue import Fot
from rephub.schemas import events as ev

log = logging.getLogger(__name__)


class _Visitor:
    """Who looks at a VM without holding any of its volumes: see `vms.User`."""

    name = ""

    def vm_gone(self) -> None:
        """The command under way fails by itself."""


class Redirects:
    """All tests that this agent attaches; one task each.

    Args:
        parts: of the process.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: set[tuple[str, str]] = set()
        """Test and event type that were emitted and are not folded yet."""

    def look(self) -> None:
        """Begin what the catalogue asks for and what is not begun."""
        fots = self._parts.catalogue.fots
        self._told = {item for item in self._told if item[0] in fots and fots[item[0]].redirected}
        for fot in fots.values():
            if fot.agent == self._parts.settings.agent.id and fot.redirected and fot.name not in self._tasks:
                if fot.state != "started":
                    self._begin(fot, ev.FotDetached)
                elif fot.redirect == "due":
                    self._begin(fot, ev.FotAttached)

    async def stop(self) -> None:
        """End what is under way; VMs keep the disks they have, and the next process goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, fot: Fot, what: type[ev.Record]) -> None:
        if (fot.name, what.__name__) in self._told:
            return
        work = self._attach(fot) if what is ev.FotAttached else self._detach(fot)
        task = self._tasks[fot.name] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[fot.name]
            if task.cancelled():
                return
            if (exc := task.exception()) is not None:
                log.error("redirect failed", exc_info=exc, extra={"fot": fot.name})
                return
            self._told.add((fot.name, what.__name__))
            # What was asked for meanwhile, for example a stop.
            self.look()

        task.add_done_callback(ended)

    async def _attach(self, fot: Fot) -> None:
        disks = redirect.disks(fot.name, fot.views, read_only=fot.read_only)
        assert fot.qmp is not None
        visitor, vms = _Visitor(), self._parts.vms
        try:
            vm = await vms.get(fot.qmp, visitor)
            try:
                async with vms.changing(vm):
                    await redirect.detach(vm, disks)
                    await redirect.attach(vm, disks)
                if not fot.redirected:
                    # The hub gave up meanwhile: the view closes.
                    async with vms.changing(vm):
                        await redirect.detach(vm, disks)
                    return
            finally:
                vms.give_back(fot.qmp, visitor)
        except RephubError as exc:
            log.warning("recovery VM not attached", extra={"fot": fot.name, "error": exc.message})
            self._emit(ev.FotAttachFailed, fot, error=exc.to_json())
            return
        log.info("recovery VM attached", extra={"fot": fot.name, "monitor": fot.qmp})
        self._emit(ev.FotAttached, fot)

    async def _detach(self, fot: Fot) -> None:
        disks = redirect.disks(fot.name, fot.views, read_only=fot.read_only)
        assert fot.qmp is not None
        visitor, vms = _Visitor(), self._parts.vms
        warning = None
        try:
            vm = await vms.get(fot.qmp, visitor)
            try:
                async with vms.changing(vm):
                    await redirect.detach(vm, disks)
            finally:
                vms.give_back(fot.qmp, visitor)
        except NotFoundError:
            log.info("the recovery VM is gone", extra={"fot": fot.name, "monitor": fot.qmp})
        except RephubError as exc:
            # Bounded: the test ends all the same, and the guest sees errors on a disk that it did not let go.
            warning = f"the disk of {fot.name} may still be in the VM: {exc.message}"
            log.warning("recovery VM not detached", extra={"fot": fot.name, "error": exc.message})
        self._emit(ev.FotDetached, fot, warning=warning)

    def _emit(self, what: type[ev.Record], fot: Fot, **fields: str | None) -> None:
        self._parts.announcer.emit(
            what,
            fot.name,
            cause_id=fot.event_id,
            command_id=fot.command_id,
            fot=fot.name,
            agent=self._parts.settings.agent.id,
            **fields,
        )
