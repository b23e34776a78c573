"""A planned move of protected VMs: stop the VM, let all that it wrote be acked, say where that ends.

If the move comes to nothing, the VM runs again. A process that was restarted drains again, which finds the VM stopped
already: that it ran before is in a note, written before it is stopped, until the event says so. If the move has failed
meanwhile, the VMs in the note run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from rephub.agent.grip import drain
from rephub.agent.keeper import Keeper
from rephub.agent.note import Note
from rephub.agent.parts import Parts
from rephub.agent.vm import DRAIN_SECONDS, Vm, find, tolerated
from rephub.core.errors import ConflictError, NotFoundError, RephubError
from rephub.infra.files import storage_error
from rephub.projections.catalogue import Failover
from rephub.schemas import events as ev

ACK_SECONDS = 30.0
"""How long the last writes may take to be acked; then the move fails and the VM runs on."""

log = logging.getLogger(__name__)


class Draining:
    """All moves of this agent's volumes; one task each.

    Args:
        parts: of the process.
        keepers: by volume.
    """

    name = ""
    """Of no volume: see `vms.User`."""

    def __init__(self, parts: Parts, keepers: Mapping[str, Keeper]) -> None:
        self._parts = parts
        self._keepers = keepers
        self._note = stopped_note(parts.settings.agent_dir)
        self._noted = self._note.read()
        """By fail-over: monitors of VMs that ran before it stopped them, as long as no event has said so."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: set[tuple[str, str]] = set()
        """Fail-over and event type that were emitted, and may not be folded yet."""

    def vm_gone(self) -> None:
        """The command under way fails by itself."""

    def look(self) -> None:
        """Begin what the catalogue asks for and what is not begun."""
        failovers = self._parts.catalogue.failovers
        self._told = {item for item in self._told if item[0] in failovers}
        for found in failovers.values():
            if found.name in self._tasks:
                continue
            if found.to_drain and self._mine(found):
                self._begin(found, ev.FailoverDrained)
            elif found.to_resume and self._stopped(found):
                self._begin(found, ev.FailoverResumed)
            elif found.name in self._noted and any(
                item["agent"] == self._parts.settings.agent.id for item in found.drained.values()
            ):
                self._forget(found.name)
            elif found.name in self._noted and found.ended:
                self._spawn(found, self._undo(found.name), "undone")

    async def stop(self) -> None:
        """End what is under way; the next process goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _mine(self, found: Failover) -> list[str]:
        """Its volumes that this agent has and has not drained."""
        agent, volumes = self._parts.settings.agent.id, self._parts.catalogue.volumes
        return [name for name in found.volumes if name not in found.drained and volumes[name].agent == agent]

    def _stopped(self, found: Failover) -> list[str]:
        """Its volumes whose VM this agent stopped and has not let run again."""
        agent = self._parts.settings.agent.id
        if agent in found.resumed:
            return []
        return [name for name, item in found.drained.items() if item["stopped"] and item["agent"] == agent]

    def _begin(self, found: Failover, what: type[ev.Record]) -> None:
        if (found.name, what.__name__) in self._told:
            return
        work = self._drain(found) if what is ev.FailoverDrained else self._resume(found)
        self._spawn(found, work, what.__name__)

    def _spawn(self, found: Failover, work: Coroutine[Any, Any, None], what: str) -> None:
        task = self._tasks[found.name] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[found.name]
            if task.cancelled():
                return
            if (exc := task.exception()) is not None:
                log.error("move failed", exc_info=exc, extra={"failover": found.name})
            self._told.add((found.name, what))
            # What was asked for meanwhile: for example a rollback.
            self.look()

        task.add_done_callback(ended)

    async def _drain(self, found: Failover) -> None:
        names = self._mine(found)
        ran: dict[str, bool] = {}
        try:
            for qmp in self._monitors(names):
                ran[qmp] = await self._stop_vm(qmp, found.name)
            items = tuple([await self._at_rest(name, stopped=ran) for name in names])
        except RephubError as exc:
            log.warning("not drained", extra={"failover": found.name, "error": exc.message})
            for qmp, running in ran.items():
                if running:
                    await self._let_run(qmp)
            if found.name in self._noted:
                self._forget(found.name)
            self._emit(ev.FailoverFailed, found, error=exc.to_json())
            return
        log.info("drained", extra={"failover": found.name, "volumes": ",".join(names)})
        self._emit(ev.FailoverDrained, found, agent=self._parts.settings.agent.id, drained=items)

    def _monitors(self, names: list[str]) -> list[str]:
        return list(dict.fromkeys(self._parts.catalogue.volumes[name].qmp for name in names))

    async def _at_rest(self, name: str, stopped: dict[str, bool]) -> ev.DrainedItem:
        """Where the volume's journal ends, once all is acked. Raises RephubError: capture is not whole."""
        keeper = self._keepers.get(name)
        worker, held = (keeper.worker, keeper.local.held) if keeper else (None, None)
        if keeper is None or worker is None or held is None or not keeper.is_consistent:
            raise ConflictError(
                f"volume {name} is not captured completely", hint=f"rephub wait {name} --state protected"
            )
        position = await worker.call("position", ACK_SECONDS, volume=name, epoch=held.epoch, acked=True)
        if not keeper.is_consistent:
            raise ConflictError(
                f"capture of volume {name} was lost while it was drained", hint="rephub status"
            )
        volume = self._parts.catalogue.volumes[name]
        return ev.DrainedItem(
            volume=name,
            offset=position["acked_offset"],
            captured_at=time.time_ns() // 1000,
            stopped=stopped[volume.qmp],
            image=await self._image(volume.qmp, volume.node),
        )

    async def _image(self, qmp: str, node: str) -> str | None:
        """What the node writes to; None: QEMU does not say."""
        vm = await self._parts.vms.get(qmp, self)
        try:
            found = find(await vm.execute("query-named-block-nodes", {"flat": True}), "node-name", node)
        finally:
            self._parts.vms.give_back(qmp, self)
        return found.get("file") if found else None

    def _remember(self, failover: str, qmp: str) -> None:
        """Note that a VM ran when the move began. Raises StorageError."""
        noted = self._noted | {failover: [*self._noted.get(failover, []), qmp]}
        try:
            self._note.write(noted)
        except OSError as exc:
            raise storage_error(exc, self._note.path, "cannot write") from exc
        self._noted = noted

    def _forget(self, failover: str) -> None:
        del self._noted[failover]
        try:
            self._note.write(self._noted)
        except OSError as exc:
            log.warning("a note cannot be written", extra={"path": str(self._note.path), "reason": str(exc)})

    async def _undo(self, failover: str) -> None:
        """The move has failed before an event said what was stopped for it."""
        for qmp in self._noted[failover]:
            await self._let_run(qmp)
        self._forget(failover)

    async def _stop_vm(self, qmp: str, failover: str) -> bool:
        """Stop the guest and wait for all its writes; whether it ran when the move began. Raises RephubError."""
        vms = self._parts.vms
        vm = await vms.get(qmp, self)
        try:
            async with vms.changing(vm):
                running = await _is_running(vm)
                if running:
                    self._remember(failover, qmp)
                    await vm.execute("stop", seconds=DRAIN_SECONDS)
                else:
                    running = qmp in self._noted.get(failover, [])
                try:
                    await drain(vm)
                except RephubError:
                    if running:
                        await vm.execute("cont")
                    raise
        finally:
            vms.give_back(qmp, self)
        return running

    async def _let_run(self, qmp: str) -> str | None:
        """Let the VM run again; why it does not, or None."""
        vms = self._parts.vms
        try:
            vm = await vms.get(qmp, self)
            try:
                async with vms.changing(vm):
                    if not await _is_running(vm):
                        await vm.execute("cont")
            finally:
                vms.give_back(qmp, self)
        except NotFoundError as exc:
            log.info("the VM is gone", extra={"monitor": qmp})
            return exc.message
        except RephubError as exc:
            log.warning("the VM does not run again", extra={"monitor": qmp, "error": exc.message})
            return f"the VM at {qmp} may still be stopped: {exc.message}"
        return None

    async def _resume(self, found: Failover) -> None:
        warnings = [await self._let_run(qmp) for qmp in self._monitors(self._stopped(found))]
        told = "; ".join(warning for warning in warnings if warning)
        self._emit(ev.FailoverResumed, found, agent=self._parts.settings.agent.id, warning=told or None)

    def _emit(self, what: type[ev.Record], found: Failover, **fields: object) -> None:
        agent = self._parts.settings.agent.id
        self._parts.announcer.emit(
            what,
            f"{found.name}/{agent}",
            cause_id=found.event_id,
            command_id=found.command_id,
            failover=found.name,
            **fields,
        )


def stopped_note(directory: Path) -> Note[dict[str, list[str]]]:
    """Monitors of VMs that ran before a move stopped them, by fail-over."""

    def is_sound(found: Any) -> bool:
        return isinstance(found, dict) and all(
            isinstance(monitors, list) and all(isinstance(monitor, str) for monitor in monitors)
            for monitors in found.values()
        )

    return Note(directory / "stopped.json", is_sound, dict)


async def _is_running(vm: Vm) -> bool:
    """Whether the guest runs; a storage daemon has none."""
    async with tolerated("not been found", "not found"):
        return bool((await vm.execute("query-status"))["running"])
    return False
