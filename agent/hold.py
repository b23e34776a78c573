"""One attachment as the control process holds it: epoch, worker, filter in QEMU, source for sync; from take to let-go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from rephub.agent import attach, discover, epochs, matching, source
from rephub.agent.attachment import AttachmentSpec
from rephub.agent.epochs import Hint
from rephub.agent.ipc import Document
from rephub.agent.memory import Memory
from rephub.agent.parts import Parts
from rephub.agent.plan import Held, Pace
from rephub.agent.vm import Vm
from rephub.agent.vms import User
from rephub.agent.workers import Owner, WorkerProcess
from rephub.core.config import socket_path
from rephub.core.errors import ConflictError, RephubError, UnavailableError
from rephub.projections.catalogue import Volume

OPEN_SECONDS = 25.0
"""The worker connects to Kafka, which has a deadline of its own below this."""

SYNC_SECONDS = 30.0
"""The worker begins, and reads the bitmaps before: some 1,000 requests for 1 TiB."""

DRAIN_SECONDS = 12.0
"""Acks of what is queued: a little more than a batch's own deadline."""

CLOSE_SECONDS = 5.0
"""Beyond the drain."""

END_SECONDS = 5.0
"""QEMU's event about a job's end comes with its end."""

JOB_ENDS = {
    "BLOCK_JOB_ERROR": "QEMU reports an error of the mirror",
    "BLOCK_JOB_COMPLETED": "the mirror ended",
    "BLOCK_JOB_CANCELLED": "somebody cancelled the mirror",
}

log = logging.getLogger(__name__)


class Keeper(User, Owner, Protocol):
    """Who holds: is told of losses."""


class Hold:
    """An attachment; `take` makes one.

    Args:
        volume: as the catalogue had it when the attachment was made.
        parts: of the process.
        keeper: is told when capture ends.
    """

    def __init__(self, volume: Volume, parts: Parts, keeper: Keeper) -> None:
        self.volume = volume
        self.held = Held(0, uuid.uuid4().hex, -1)
        self.size_bytes = volume.size_bytes
        self.taken_at = time.monotonic()
        self._parts = parts
        self._keeper = keeper
        self._node, self.device = volume.node, ""
        self._names = attach.names(volume.node, 0)
        self._server_path = source.own_path(parts.settings, volume.qmp)
        self._source: source.Source | None = None
        self.memory = Memory(volume, self.held.attachment_id)
        self._rotated = self.taken_at, -1
        """When the newest record in QEMU began, and what was acked then."""
        self.worker: WorkerProcess | None = None
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

    @property
    def node(self) -> str:
        """Name of the node that is attached; `device` is what it is in, empty: nothing."""
        return self._node

    async def begin_sync(self) -> tuple[str, int]:
        """Start the sync in the worker; the keeper hears of its end.

        Returns:
            Its mode, and how many bytes it copies.

        Raises:
            RephubError: it did not start.
        """
        assert self.worker is not None
        assert self._source is not None
        self.held.sync_begun = True
        memory = self.memory
        try:
            answer = await self.worker.call(
                "sync",
                SYNC_SECONDS,
                volume=self.volume.name,
                epoch=self.held.epoch,
                server=self._source.address.to_dict(),
                export=self._source.export,
                mode=memory.mode,
                bitmaps=memory.shown,
                regions=sorted(memory.marked) if memory.relies else [],
                cursor_bytes=memory.cursor_bytes,
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
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        async with self._parts.vms.changing(vm):
            await source.close_source(vm, self._names, self._server_path)
            await self.memory.completed(vm, self._node, self._server_path)
        self._source, self.held.source_open = None, False
        if self.memory.rotates:
            # Twice: the records before the first of the two are in the journal at the second.
            await self.rotate()
            await self._call("position", acked=True)
            await self.rotate()

    def rotation_due(self, acked_offset: int, seconds: float) -> bool:
        """Whether something was acked since the newest record in QEMU began, and that is so many seconds ago."""
        at, offset = self._rotated
        return self.memory.rotates and acked_offset > offset and time.monotonic() - at >= seconds

    async def rotate(self) -> None:
        """Begin the next record of writes in QEMU; older ones go once all that they hold is acked.

        Raises:
            RephubError: QEMU or worker cannot be asked, or refuse; the records that are there hold all the same.
        """
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        before = await self._call("position")
        async with self._parts.vms.changing(vm):
            await self.memory.rotate(vm, self._node, before["acked_seq"], before["acked_offset"])
            # Once more: on an iothread, writes may come between the transaction's own drain and its actions.
            await _drain(vm)
        turn = await self._call("turn")
        self.memory.rotated(turn["received_seq"])
        self._rotated = time.monotonic(), before["acked_offset"]
        await self._watch_foreign(vm, turn["touched_bytes"])

    async def _watch_foreign(self, vm: Vm, touched_bytes: int | None) -> None:
        """Capture is lost if the record that ended holds more than the guest's writes: somebody writes below the filter."""
        last = await self.memory.last_record(vm, self._node)
        if touched_bytes is None or last is None or last[1] <= touched_bytes or self._source is not None:
            # Also while a verify has the export: it looks at more than this.
            return
        async with self._parts.vms.changing(vm):
            at = await source.open_source(vm, self._node, self._names, self._server_path, (last[0],))
        try:
            server = at.address.to_dict()
            answer = await self._call("foreign", server=server, export=at.export, record=last[0])
        finally:
            async with self._parts.vms.changing(vm):
                await source.close_source(vm, self._names, self._server_path)
        if answer["extents"]:
            start, count = answer["extents"][0][0], len(answer["extents"])
            why = f"somebody else wrote to node {self._node}, in {count} places of 64 KiB, first at byte {start}"
            self._keeper.lost(self.held.epoch, ConflictError(why, hint="who else has the disk open?"))

    @property
    def sync_source(self) -> source.Source | None:
        """QEMU's export of the volume, while sync is not over."""
        return self._source

    async def open_source(self) -> source.Source:
        """Export the volume for reading once more, after `tidy`; `tidy` closes it.

        Raises:
            RephubError: QEMU cannot be asked, or refuses.
        """
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        async with self._parts.vms.changing(vm):
            # A task before us that was cancelled may have left its own.
            await source.close_source(vm, self._names, self._server_path)
            self._source = await source.open_source(vm, self._node, self._names, self._server_path)
        return self._source

    async def settle(self) -> None:
        """Wait until every write that is on the disk now is in the queue.

        Raises:
            RephubError: QEMU cannot be asked, or does not get there in time.
        """
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        async with self._parts.vms.changing(vm):
            await _drain(vm)

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
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        self._listen(vm)
        return await attach.job_alive(vm, self._names.job)

    async def pause(self) -> dict[str, Any]:
        """Detach cleanly, and leave bitmaps in QEMU that record since before capture ended.

        Every write is in the journal or in the bitmap, or in both: the bitmap records before the job is looked at; a job
        that is alive then has lost nothing, and its end says whether it lost something later.

        Returns:
            `Volume.bitmap`.

        Raises:
            RephubError: capture is on as before if `worker` is not None; else it is off, and what is in the bitmaps is not
                all that the journal lacks.
        """
        vm = await self._parts.vms.get(self.volume.qmp, self._keeper)
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        acked = (await self._call("position"))["acked_offset"]
        async with self._parts.vms.changing(vm):
            marks = await self._remember(vm, acked)
            vm.on_job(self._names.job, lambda name, data: _end(ended, name, data))
            try:
                await self._call("expect_end")
                await attach.detach(vm, self._names)
                await source.close_source(vm, self._names, self._server_path)
                async with asyncio.timeout(END_SECONDS):
                    clean = await ended
            except BaseException as exc:
                await self._give_up()
                if isinstance(exc, TimeoutError):
                    raise UnavailableError("QEMU does not say how the mirror ended") from exc
                raise
            finally:
                vm.on_job(self._names.job, None)
        if not clean:
            await self._give_up()
            raise UnavailableError("the mirror failed while the volume was paused")
        worker = self.worker
        assert worker is not None
        try:
            answer = await self._close(worker, DRAIN_SECONDS)
            async with self._parts.vms.changing(vm):
                # Records that stay make the way back longer, and nothing else.
                await _undo(lambda: self.memory.paused(vm, self._node))
        finally:
            self._forget()
        return marks | {"epoch": self.held.epoch, "offset": answer["acked_offset"]}

    async def _remember(self, vm: Vm, acked_offset: int) -> dict[str, Any]:
        """A record in QEMU that begins now, and the mirror alive after that; all or nothing."""
        try:
            marks = await self.memory.pause(vm, self._node, self._server_path, acked_offset)
            await attach.check_job(vm, self._names.job)
        except BaseException:
            await _undo(lambda: attach.clean(vm, self._node, self._names))
            raise
        return marks

    async def _give_up(self) -> None:
        with contextlib.suppress(RephubError):
            await self._close_worker(0)
        self._forget()

    async def let_go(self, *, forget: bool = False) -> None:
        """Detach cleanly: QEMU is as it was, and everything captured is acked.

        Args:
            forget: also what a pause remembered.

        Raises:
            UnavailableError: QEMU could not be asked, or not all was acked in time; capture is off all the same.
        """
        try:
            if vm := await self._vm():
                vm.on_job(self._names.job, None)
                async with self._parts.vms.changing(vm):
                    with contextlib.suppress(RephubError):
                        # A worker that hangs or is gone must not keep the filter in QEMU.
                        await self._call("expect_end")
                    await attach.detach(vm, self._names)
                    await source.close_source(vm, self._names, self._server_path)
                    await (self.memory.forget if forget else self.memory.keep)(vm, self._node)
        finally:
            # Dropping the connection ends the job in any case.
            try:
                await self._close_worker(DRAIN_SECONDS)
            finally:
                self._forget()

    async def drop(self) -> None:
        """Clean up behind a lost attachment as far as QEMU is there; the next attach cleans what is left."""
        with contextlib.suppress(RephubError):
            # Gone or going: the watchdog sees to a worker that hangs.
            await self._close_worker(0)
        try:
            if vm := await self._vm():
                vm.on_job(self._names.job, None)
                async with self._parts.vms.changing(vm):
                    await attach.clean(vm, self._node)
                    await source.stop_server(vm, self._server_path)
                    await self.memory.keep(vm, self._node)
        except RephubError as exc:
            log.info("left for the next attach", extra={"volume": self.volume.name, "error": exc.message})
        finally:
            self._forget()

    async def _prepare(self, vm: Vm) -> None:
        """Find the node, clean up after the dead, and see that it can be protected."""
        seen = await discover.look(vm)
        self._parts.watch.saw(vm, seen)
        others = [item for item in self._parts.catalogue.live_volumes() if item.qmp == vm.path]
        found = matching.choose(self.volume, others, seen.nodes)
        info = found.info
        attach.check_node(vm, info)
        if found.why:
            self.memory.distrust(found.why)
        await attach.clean(vm, info.node)
        await source.stop_server(vm, self._server_path)
        await attach.check_free(vm, info.node)
        self._node, self.device, self.size_bytes = info.node, info.device, info.size_bytes
        await self.memory.check(vm, info.node)

    async def _claim(self, hints: list[Hint], reason: str) -> None:
        self.reason = f"{reason}; {self.memory.reason}" if self.memory.reason else reason
        claim = await epochs.claim(
            self._parts.journals,
            self.volume.name,
            hints,
            self.held.attachment_id,
            self.size_bytes,
            self.reason,
        )
        self.held.epoch, self.held.offset = claim.epoch, claim.offset
        self._names = attach.names(self._node, claim.epoch)

    async def _attach(self, vm: Vm) -> None:
        """Capture in the worker, filter and source in QEMU; all or nothing."""
        parts, volume = self._parts, self.volume
        worker = parts.pool.take(volume.group, volume.name, self._keeper)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(parts.pool.give_back, volume.group, volume.name)
            await worker.call("open", OPEN_SECONDS, spec=self._spec().to_dict())
            undo.push_async_callback(_undo, lambda: self._close(worker, 0))
            ended = self._listen(vm)
            undo.callback(vm.on_job, self._names.job, None)
            spec = self._spec()
            await self.memory.begin(vm, self._node, self.held.offset)
            undo.push_async_callback(_undo, lambda: self.memory.undo(vm, self._node))
            await attach.attach(vm, self._node, spec.socket, spec.export, self._names)
            undo.push_async_callback(_undo, lambda: attach.detach(vm, self._names))
            self._source = await self.memory.open_source(vm, self._node, self._names, self._server_path)
            undo.push_async_callback(_undo, lambda: source.close_source(vm, self._names, self._server_path))
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
            socket=str(socket_path(self._parts.settings, f"c{held.attachment_id[:12]}")),
            export=self._names.target,
            resized=self.size_bytes != self.volume.size_bytes,
            cursor_bytes=self.memory.cursor_bytes,
        )

    def _listen(self, vm: Vm) -> list[str]:
        """Hear of the job's end; returns the list to which reasons are added."""
        ended: list[str] = []

        def heard(name: str, data: dict[str, Any]) -> None:
            if name in JOB_ENDS:
                why = data.get("error") or data.get("operation") or ""
                ended.append(f"{JOB_ENDS[name]}{': ' if why else ''}{why}")
                self._keeper.lost(self.held.epoch, UnavailableError(ended[-1]))

        vm.on_job(self._names.job, heard)
        return ended

    async def _vm(self) -> Vm | None:
        """The QEMU, connected; None if it is off."""
        try:
            return await self._parts.vms.get(self.volume.qmp, self._keeper)
        except RephubError as exc:
            log.info("VM cannot be reached", extra={"volume": self.volume.name, "error": exc.message})
            return None

    async def _call(self, op: str, **fields: Any) -> Document:
        worker = self.worker
        if worker is None:
            raise UnavailableError(f"volume {self.volume.name} is not attached")
        return await worker.call(op, DRAIN_SECONDS, volume=self.volume.name, epoch=self.held.epoch, **fields)

    async def _close_worker(self, drain_seconds: float) -> None:
        if self.worker:
            await self._close(self.worker, drain_seconds)

    async def _close(self, worker: WorkerProcess, drain_seconds: float) -> Document:
        return await worker.call(
            "close",
            drain_seconds + CLOSE_SECONDS,
            volume=self.volume.name,
            epoch=self.held.epoch,
            drain_seconds=drain_seconds,
        )

    def _forget(self) -> None:
        self.worker = None
        self._parts.pool.give_back(self.volume.group, self.volume.name)
        self._parts.vms.give_back(self.volume.qmp, self._keeper)


async def _drain(vm: Vm) -> None:
    """Return once every write that QEMU had begun is done, answered by us included.

    A transaction without actions drains all block nodes (QEMU 7.2 and 10.0).
    """
    await vm.execute("transaction", {"actions": []}, seconds=DRAIN_SECONDS)


def _end(ended: asyncio.Future[bool], name: str, data: dict[str, Any]) -> None:
    """The job's first word about its end: COMPLETED without an error means that we have every write."""
    if name in JOB_ENDS and not ended.done():
        ended.set_result(name == "BLOCK_JOB_COMPLETED" and not data.get("error"))


async def _undo(step: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run a step of the way back; its failure must not hide why there is a way back."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await step()
    except (RephubError, TimeoutError) as exc:
        log.warning("could not undo", extra={"error": str(exc)})
