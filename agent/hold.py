"""One attachment as the control process holds it: epoch, worker, filter in QEMU, source for sync; from take to let-go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from rephub.agent import attach, discover, epochs, matching, source
from rephub.agent.attachment import AttachmentSpec
from rephub.agent.epochs import Hint
from rephub.agent.grip import DRAIN_SECONDS, JOB_ENDS, OPEN_SECONDS, Grip, Keeper, drain, step_back
from rephub.agent.parts import Parts
from rephub.agent.plan import Pace
from rephub.agent.rotation import Rotation
from rephub.agent.vm import Vm
from rephub.core.config import socket_path
from rephub.core.errors import RephubError, UnavailableError
from rephub.projections.catalogue import Volume

SYNC_SECONDS = 30.0
"""The worker begins, and reads the bitmaps before: some 1,000 requests for 1 TiB."""

REASON_SECONDS = 0.2
"""After QEMU said that the mirror failed: a worker that ended, or says why it failed, is the better reason."""

log = logging.getLogger(__name__)


class Hold(Grip):
    """An attachment; `take` makes one.

    Args:
        volume: as the catalogue had it when the attachment was made.
        parts: of the process.
        keeper: is told when capture ends.
    """

    def __init__(self, volume: Volume, parts: Parts, keeper: Keeper) -> None:
        super().__init__(volume, parts, keeper)
        self.taken_at = time.monotonic()
        self.rotation = Rotation(self)
        self.reason = ""
        """As it stands in the journal."""

    @classmethod
    async def take(cls, volume: Volume, parts: Parts, keeper: Keeper, hints: list[Hint], reason: str) -> Hold:
        """Attach: take an epoch, open capture in a worker, put the filter into QEMU.

        Args:
            volume: what to attach.
            parts: of the process.
            keeper: is told when capture ends.
            hints: offsets at which an epoch was known.
            reason: why; stands in the journal.

        Raises:
            RephubError: why not; QEMU and worker are as they were (an epoch may be used up).
        """
        hold = cls(volume, parts, keeper)
        vm = await parts.vms.get(volume.qmp, keeper)
        try:
            async with parts.vms.changing(vm):
                await hold._prepare(vm)
            # Kafka may take its time: QEMU is not held meanwhile.
            await hold.memory.look_up(parts.journals, parts.bitmaps)
            # Before an epoch is used up for nothing.
            parts.pool.check(volume.group)
            await hold._claim(hints, reason)
            async with parts.vms.changing(vm):
                await hold._attach(vm)
        except BaseException:
            if hold.worker is None:
                parts.vms.give_back(volume.qmp, keeper)
                raise
            # Cancelled after the filter was in: the caller never gets this hold.
            await hold.let_go()
            raise
        return hold

    async def begin_sync(self) -> tuple[str, int]:
        """Start the sync in the worker; the keeper hears of its end.

        Returns:
            Its mode, and how many bytes it copies.

        Raises:
            RephubError: it did not start.
        """
        assert self.worker is not None
        assert self.source is not None
        self.held.sync_begun = True
        memory = self.memory
        try:
            answer = await self.worker.call(
                "sync",
                SYNC_SECONDS,
                volume=self.volume.name,
                epoch=self.held.epoch,
                server=self.source.address.to_dict(),
                export=self.source.export,
                mode=memory.mode,
                bitmaps=memory.shown,
                regions=sorted(memory.marked) if memory.relies else [],
            )
        except RephubError:
            self.held.sync_begun = False
            raise
        if memory.relies and answer["mode"] == "full":
            memory.not_shown()
        return answer["mode"], answer["total_bytes"]

    async def set_pace(self, pace: Pace) -> None:
        """Have the worker hold a pace from now on.

        Raises:
            RephubError: it may or may not.
        """
        assert self.worker is not None
        await self.worker.call(
            "pace",
            SYNC_SECONDS,
            volume=self.volume.name,
            epoch=self.held.epoch,
            running=pace.running,
            bytes_per_second=pace.bytes_per_second,
        )
        self.held.pace = pace

    async def tidy(self) -> None:
        """Sync is over, and acked: give QEMU's NBD server back, and begin records of what comes after it."""
        vm = await self.vm()
        async with self.changing(vm):
            await source.close_source(vm, self.names, self.server_path)
            await self.memory.completed(vm, self.node, self.server_path)
        self.source, self.held.source_open = None, False
        if self.memory.rotates:
            # Twice: the records before the first of the two are in the journal at the second.
            await self.rotation.rotate()
            await self.call("position", acked=True)
            await self.rotation.rotate()

    async def open_source(self) -> source.Source:
        """Export the volume for reading once more, after `tidy`; `tidy` closes it.

        Raises:
            RephubError: QEMU cannot be asked, or refuses.
        """
        vm = await self.vm()
        async with self.changing(vm):
            # A task before us that was cancelled may have left its own.
            await source.close_source(vm, self.names, self.server_path)
            self.source = await source.open_source(vm, self.node, self.names, self.server_path)
        return self.source

    async def settle(self) -> None:
        """Wait until every write that is on the disk now is in the queue.

        Raises:
            RephubError: QEMU cannot be asked, or does not get there in time.
        """
        vm = await self.vm()
        async with self.changing(vm):
            await drain(vm)

    async def compare(self, step: str, seconds: float, **fields: Any) -> dict[str, Any]:
        """Let the worker do a step of a comparison (`comparing.py`).

        Raises:
            RephubError: what the worker raised, or that it does not answer.
        """
        assert self.worker is not None
        return await self.worker.call(
            "compare", seconds, volume=self.volume.name, epoch=self.held.epoch, step=step, **fields
        )

    async def reconnect(self) -> bool:
        """Connect to the monitor again; says whether the mirror is still there.

        Raises:
            RephubError: not reachable, for now; if the QEMU is gone, the worker notices by itself.
        """
        vm = await self.vm()
        self._listen(vm)
        return await attach.job_alive(vm, self.names.job)

    async def let_go(self, *, forget: bool = False) -> None:
        """Detach cleanly: QEMU is as it was, and everything captured is acked.

        Args:
            forget: also what a pause remembered.

        Raises:
            UnavailableError: QEMU could not be asked, or not all was acked in time; capture is off all the same.
        """
        try:
            if vm := await self.vm_if_on():
                vm.on_job(self.names.job, None)
                async with self.changing(vm):
                    with contextlib.suppress(RephubError):
                        # A worker that hangs or is gone must not keep the filter in QEMU.
                        await self.call("expect_end")
                    await attach.detach(vm, self.names)
                    await source.close_source(vm, self.names, self.server_path)
                    await (self.memory.forget if forget else self.memory.keep)(vm, self.node)
        finally:
            # Dropping the connection ends the job in any case.
            try:
                await self.close_worker(DRAIN_SECONDS)
            finally:
                self.forget()

    async def drop(self) -> None:
        """Clean up behind a lost attachment as far as QEMU is there; the next attach cleans what is left."""
        with contextlib.suppress(RephubError):
            # Gone or going: the watchdog sees to a worker that hangs.
            await self.close_worker(0)
        try:
            if vm := await self.vm_if_on():
                vm.on_job(self.names.job, None)
                async with self.changing(vm):
                    await attach.clean(vm, self.node)
                    await source.stop_server(vm, self.server_path)
                    await self.memory.keep(vm, self.node)
        except RephubError as exc:
            log.info("left for the next attach", extra={"volume": self.volume.name, "error": exc.message})
        finally:
            self.forget()

    async def _prepare(self, vm: Vm) -> None:
        """Find the node, clean up after the dead, and see that it can be protected."""
        seen = await discover.look(vm)
        self.parts.watch.saw(vm, seen)
        others = [item for item in self.parts.catalogue.live_volumes() if item.qmp == vm.path]
        found = matching.choose(self.volume, others, seen.nodes)
        info = found.info
        attach.check_node(vm, info)
        if found.why:
            self.memory.distrust(found.why)
        await attach.clean(vm, info.node)
        await source.stop_server(vm, self.server_path)
        await attach.check_free(vm, info.node)
        self.node, self.device, self.size_bytes = info.node, info.device, info.size_bytes
        await self.memory.check(vm, info.node)

    async def _claim(self, hints: list[Hint], reason: str) -> None:
        self.reason = f"{reason}; {self.memory.reason}" if self.memory.reason else reason
        claim = await epochs.claim(
            self.parts.journals,
            self.volume.name,
            hints,
            self.held.attachment_id,
            self.size_bytes,
            self.reason,
        )
        self.held.epoch, self.held.offset = claim.epoch, claim.offset
        self.names = attach.names(self.node, claim.epoch)

    async def _attach(self, vm: Vm) -> None:
        """Capture in the worker, filter and source in QEMU; all or nothing."""
        parts, volume = self.parts, self.volume
        worker = parts.pool.take(volume.group, volume.name, self.keeper)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(parts.pool.give_back, volume.group, volume.name)
            await worker.call("open", OPEN_SECONDS, spec=self._spec().to_dict())
            undo.push_async_callback(step_back, lambda: self.close(worker, 0))
            ended = self._listen(vm)
            undo.callback(vm.on_job, self.names.job, None)
            spec = self._spec()
            await self.memory.begin(vm, self.node, self.held.offset)
            undo.push_async_callback(step_back, lambda: self.memory.undo(vm, self.node))
            await attach.attach(vm, self.node, spec.socket, spec.export, self.names)
            undo.push_async_callback(step_back, lambda: attach.detach(vm, self.names))
            self.source = await self.memory.open_source(vm, self.node, self.names, self.server_path)
            undo.push_async_callback(step_back, lambda: source.close_source(vm, self.names, self.server_path))
            if ended:
                raise UnavailableError(f"capture of volume {volume.name} ended at once: {ended[0]}")
            undo.pop_all()
        self.worker, self.held.source_open = worker, True

    def _spec(self) -> AttachmentSpec:
        held, volume = self.held, self.volume
        return AttachmentSpec(
            volume=volume.name,
            epoch=held.epoch,
            attachment_id=held.attachment_id,
            epoch_offset=held.offset,
            size_bytes=self.size_bytes,
            ack=volume.ack,
            overload=volume.overload,
            socket=str(socket_path(self.parts.settings, f"c{held.attachment_id[:12]}")),
            export=self.names.target,
            resized=self.size_bytes != self.volume.size_bytes,
            cursor_bytes=self.memory.cursor_bytes,
        )

    def _listen(self, vm: Vm) -> list[str]:
        """Hear of the job's end; returns the list to which reasons are added."""
        ended: list[str] = []
        loop = asyncio.get_running_loop()

        def heard(name: str, data: dict[str, Any]) -> None:
            if name in JOB_ENDS:
                why = data.get("error") or data.get("operation") or ""
                ended.append(f"{JOB_ENDS[name]}{': ' if why else ''}{why}")
                loop.call_later(
                    REASON_SECONDS, self.keeper.lost, self.held.epoch, UnavailableError(ended[-1])
                )

        vm.on_job(self.names.job, heard)
        return ended

    async def vm_if_on(self) -> Vm | None:
        """The QEMU, connected; None if it is off."""
        try:
            return await self.vm()
        except RephubError as exc:
            log.info("VM cannot be reached", extra={"volume": self.volume.name, "error": exc.message})
            return None
