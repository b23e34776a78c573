"""Gives the views of fail-over tests and fail-overs to recovery VMs as disks, and takes them away again.

`redirect.py` has the steps. The catalogue says what is due. Nothing is remembered: names in QEMU follow from the test's, so
a process that was restarted finds what the one before it left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from rephub.agent import redirect
from rephub.agent.attach import PREFIX
from rephub.agent.parts import Parts
from rephub.core.errors import NotFoundError, RephubError
from rephub.projections.catalogue import Catalogue, Failover, Fot
from rephub.projections.failover import SERVED
from rephub.schemas import events as ev

log = logging.getLogger(__name__)

FAILOVER_PREFIX = "disk-"
"""Of a recovered VM's disks: no name of ours, because they are to be protected in their turn."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """A test or a fail-over whose views a VM has, or is to have."""

    of: Fot | Failover

    @property
    def key(self) -> tuple[str, str]:
        """Of what kind it is, and its name."""
        return ("fot" if isinstance(self.of, Fot) else "failover"), self.of.name

    @property
    def is_up(self) -> bool:
        """The VM is to have the views."""
        return self.of.state == "started" if isinstance(self.of, Fot) else self.of.state in SERVED

    @property
    def disks(self) -> list[redirect.Disk]:
        """The views as disks."""
        if isinstance(self.of, Fot):
            return redirect.disks(self.of.name, self.of.views, read_only=self.of.read_only, prefix=PREFIX)
        return redirect.disks(self.of.name, self.of.views, read_only=False, prefix=FAILOVER_PREFIX)

    @property
    def attached(self) -> type[ev.Record]:
        """What says that the VM has them."""
        return ev.FotAttached if isinstance(self.of, Fot) else ev.FailoverAttached

    @property
    def attach_failed(self) -> type[ev.Record]:
        """What says that it cannot have them."""
        return ev.FotAttachFailed if isinstance(self.of, Fot) else ev.FailoverAttachFailed

    @property
    def detached(self) -> type[ev.Record]:
        """What says that it has let go."""
        return ev.FotDetached if isinstance(self.of, Fot) else ev.FailoverDetached


def redirects_of(catalogue: Catalogue, agent: str) -> Iterator[Redirect]:
    """Those that an agent has something to do with."""
    items: list[Fot | Failover] = [*catalogue.fots.values(), *catalogue.failovers.values()]
    for item in items:
        if item.agent == agent and item.redirected:
            yield Redirect(item)


class _Visitor:
    """Who looks at a VM without holding any of its volumes: see `vms.User`."""

    name = ""

    def vm_gone(self) -> None:
        """The command under way fails by itself."""


class Redirects:
    """All tests and fail-overs that this agent attaches; one task each.

    Args:
        parts: of the process.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._told: set[tuple[tuple[str, str], str]] = set()
        """What was attached or detached and is not folded yet."""

    def look(self) -> None:
        """Begin what the catalogue asks for and what is not begun."""
        found = {
            item.key: item for item in redirects_of(self._parts.catalogue, self._parts.settings.agent.id)
        }
        self._told = {item for item in self._told if item[0] in found}
        for key, item in found.items():
            if key not in self._tasks:
                if not item.is_up:
                    self._begin(item, item.detached)
                elif item.of.redirect == "due":
                    self._begin(item, item.attached)

    async def stop(self) -> None:
        """End what is under way; VMs keep the disks they have, and the next process goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, item: Redirect, what: type[ev.Record]) -> None:
        if (item.key, what.__name__) in self._told:
            return
        work = self._attach(item) if what is item.attached else self._detach(item)
        task = self._tasks[item.key] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[item.key]
            if task.cancelled():
                return
            if (exc := task.exception()) is not None:
                log.error("redirect failed", exc_info=exc, extra={"of": item.of.name})
                return
            self._told.add((item.key, what.__name__))
            # What was asked for meanwhile, for example a stop.
            self.look()

        task.add_done_callback(ended)

    async def _attach(self, item: Redirect) -> None:
        disks, qmp = item.disks, item.of.qmp
        assert qmp is not None
        visitor, vms = _Visitor(), self._parts.vms
        try:
            vm = await vms.get(qmp, visitor)
            try:
                async with vms.changing(vm):
                    await redirect.detach(vm, disks)
                    await redirect.attach(vm, disks)
                if not item.of.redirected:
                    # The hub gave up meanwhile: the view closes.
                    async with vms.changing(vm):
                        await redirect.detach(vm, disks)
                    return
            finally:
                vms.give_back(qmp, visitor)
        except RephubError as exc:
            log.warning("recovery VM not attached", extra={"of": item.of.name, "error": exc.message})
            self._emit(item, item.attach_failed, error=exc.to_json())
            return
        log.info("recovery VM attached", extra={"of": item.of.name, "monitor": qmp})
        self._emit(item, item.attached)

    async def _detach(self, item: Redirect) -> None:
        disks, qmp = item.disks, item.of.qmp
        assert qmp is not None
        visitor, vms = _Visitor(), self._parts.vms
        warning = None
        try:
            vm = await vms.get(qmp, visitor)
            try:
                async with vms.changing(vm):
                    await redirect.detach(vm, disks)
            finally:
                vms.give_back(qmp, visitor)
        except NotFoundError:
            log.info("the recovery VM is gone", extra={"of": item.of.name, "monitor": qmp})
        except RephubError as exc:
            # Bounded: the view closes all the same, and the guest sees errors on a disk that it did not let go.
            warning = f"the disk of {item.of.name} may still be in the VM: {exc.message}"
            log.warning("recovery VM not detached", extra={"of": item.of.name, "error": exc.message})
        self._emit(item, item.detached, warning=warning)

    def _emit(self, item: Redirect, what: type[ev.Record], **fields: str | None) -> None:
        kind, name = item.key
        self._parts.announcer.emit(
            what,
            name,
            cause_id=item.of.event_id,
            command_id=item.of.command_id,
            agent=self._parts.settings.agent.id,
            **{kind: name},
            **fields,
        )
