"""The protected side: a disk, a guest that writes to it, QEMU's mirror filter, and its NBD exports.

The filter as design.md has it: overlapping writes one after the other; each goes to the disk first, then to the agent; the
guest is answered when both are done. An agent that is gone ends the mirror and no write. What the agent did not answer is in
QEMU's dirty bitmap.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rephub.core.errors import ProtocolError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Request
from simulation import scale
from simulation.clock import Process, SimLoop

IN_FLIGHT_MAX = 16


@dataclass(slots=True, eq=False)
class Op:
    """A write of the guest."""

    number: int
    command: int
    start: int
    length: int
    data: bytes | None
    submitted: int = 0
    answered: int | None = None
    sent: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, how often the same was sent in it before)."""

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def what(self) -> Any:
        """What the ledger knows it by."""
        return (self.start, self.length if self.data is None else self.data)

    def regions(self) -> range:
        return range(self.start // scale.REGION, (self.end - 1) // scale.REGION + 1)


class Connection:
    """QEMU's connection to the capture export of one attachment.

    Args:
        guest: at its end.
        handler: the export.
        process: of the agent.
    """

    def __init__(self, guest: Guest, handler: Any, process: Process) -> None:
        self._guest = guest
        self._handler = handler
        self._process = process
        self._inbox: list[Request] = []
        self.epoch = 0
        self.open = True
        self.waiting: dict[int, tuple[Op, asyncio.Future[bool]]] = {}

    async def send(self, op: Op) -> bool:
        """Have a write captured; False: the connection ended first."""
        if not self.open:
            return False
        loop = self._guest.loop
        answered: asyncio.Future[bool] = loop.create_future()
        self.waiting[op.number] = (op, answered)
        loop.call_later(
            loop.latency(), self._arrive, Request(op.command, 0, op.number, op.start, op.length, op.data)
        )
        return await answered

    def _arrive(self, request: Request) -> None:
        # Arrival order is the order of sending: a stream.
        self._inbox.append(request)
        if len(self._inbox) == 1:
            self._process.call(self._deliver)

    def _deliver(self) -> None:
        requests, self._inbox = self._inbox, []
        # An end that QEMU did not ask for may overtake what was sent.
        if self.open and requests:
            for request in requests:
                op, _ = self.waiting[request.cookie]
                op.sent.append((self.epoch, self._guest.note_sent(self.epoch, op)))
            self._handler.on_requests(self, requests)

    # What the agent calls.

    def reply(self, cookie: int, errno: int = 0) -> None:
        if not self.open or cookie not in self.waiting:
            return
        op, answered = self.waiting.pop(cookie)
        self._guest.on_answer(self.epoch, op, errno)
        self._guest.process.call(lambda: None if answered.done() else answered.set_result(not errno))

    def abort(self) -> None:
        self.end(None)

    def end(self, exc: Exception | None) -> None:
        """The connection is gone, for both."""
        if not self.open:
            return
        self.open = False
        waiting, self.waiting = self.waiting, {}
        for op, answered in waiting.values():
            self._guest.bitmap.update(op.regions())
            self._guest.process.call(
                lambda future=answered: None if future.done() else future.set_result(False)
            )
        self._guest.mirror_ended(self)
        self._process.call(self._handler.on_close, self, exc)


class Guest:
    """Args: loop, seed: of the run; size: of the disk, bytes."""

    def __init__(self, loop: SimLoop, seed: random.Random, size: int) -> None:
        self.loop = loop
        self.random = seed
        self.size = size
        self.source = bytearray(size)
        self.holes = bytearray(b"\1") * (size // scale.BLOCK)
        self.process = loop.process("guest")
        self.mirror: Connection | None = None
        self.bitmap: set[int] = set()
        """Regions written while nobody captured, or captured and not answered."""
        self.ops: list[Op] = []
        self.in_flight: list[Op] = []
        self.drained = asyncio.Event()
        self.clock = 0
        self.longest_seconds = 0.0
        self.on_answer: Callable[[int, Op, int], None] = lambda _epoch, _op, _errno: None
        self._sent: dict[tuple[int, Any], int] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._ended = asyncio.Event()
        if seed.random() < 0.8:
            for start in range(0, size, scale.BLOCK):
                if seed.random() < 0.6:
                    self._put(start, seed.randbytes(scale.BLOCK))

    def _put(self, start: int, data: bytes) -> None:
        self.source[start : start + len(data)] = data
        for block in range(start // scale.BLOCK, -(-(start + len(data)) // scale.BLOCK)):
            self.holes[block] = 0

    def note_sent(self, epoch: int, op: Op) -> int:
        """How often the same was sent in the epoch before."""
        key = (epoch, op.what)
        before = self._sent.get(key, 0)
        self._sent[key] = before + 1
        return before

    def random_op(self) -> Op:
        """The next write: mostly to few places, so that much overlaps."""
        draw = self.random
        length = draw.choice((1, 512, scale.BLOCK, scale.BLOCK, 3000, 2 * scale.BLOCK, 5000))
        start = draw.randrange(0, self.size - length + 1)
        if draw.random() < 0.6:
            start = min(start // 512 * 512 % (self.size // 4), self.size - length)
        kind = draw.random()
        number = len(self.ops)
        if kind < 0.75:
            op = Op(number, nbd.CMD_WRITE, start, length, draw.randbytes(length))
        else:
            command = nbd.CMD_WRITE_ZEROES if kind < 0.9 else nbd.CMD_TRIM
            op = Op(number, command, start, length, None)
        self.ops.append(op)
        return op

    async def write(self, op: Op) -> None:
        """One write, as the guest sees it."""
        async with self._slots:
            while any(other.start < op.end and op.start < other.end for other in self.in_flight):
                self._ended.clear()
                await self._ended.wait()
            self.in_flight.append(op)
            self.drained.clear()
            # What it waited for other writes counts as theirs.
            began = self.loop.time()
            self.clock += 1
            op.submitted = self.clock
            try:
                await self._write(op)
            finally:
                self.in_flight.remove(op)
                self._ended.set()
                if not self.in_flight:
                    self.drained.set()
        self.clock += 1
        op.answered = self.clock
        self.longest_seconds = max(self.longest_seconds, self.loop.time() - began)

    async def _write(self, op: Op) -> None:
        mirror = self.mirror
        await asyncio.sleep(self.loop.latency())
        if op.data is None:
            self.source[op.start : op.end] = bytes(op.length)
        else:
            self._put(op.start, op.data)
        if mirror is None or not await mirror.send(op):
            self.bitmap.update(op.regions())

    async def flush(self) -> None:
        """A guest's flush: QEMU's mirror does not pass it on."""

    async def attach(self, connection: Connection, epoch: int) -> None:
        """Put the filter in: QEMU drains first."""
        self.detach(None)
        while self.in_flight:
            await self.drained.wait()
        if not connection.open:
            raise UnavailableError("nobody listens")
        connection.epoch = epoch
        self.mirror = connection

    def detach(self, exc: Exception | None) -> None:
        """Take the filter out by force."""
        if self.mirror is not None:
            self.mirror.end(exc)

    def mirror_ended(self, connection: Connection) -> None:
        """From here on QEMU's bitmap records."""
        if self.mirror is connection:
            self.mirror = None


class Export:
    """QEMU's read-only NBD export of the disk, as `NbdClient` shows it.

    Args:
        guest: whose disk.
        regions: that the dirty bitmap has; None: no bitmap is shown.
    """

    def __init__(self, guest: Guest, regions: set[int] | None) -> None:
        self._guest = guest
        self._regions = regions
        self.size_bytes = guest.size
        names = ("qemu:dirty-bitmap:record", "qemu:dirty-bitmap:guard") if regions is not None else ()
        self.contexts = frozenset(("base:allocation", *names))

    async def read(self, start: int, length: int) -> bytes:
        """Each half at an instant of its own."""
        loop, source = self._guest.loop, self._guest.source
        await asyncio.sleep(loop.latency())
        half = start + length // 2
        first = bytes(source[start:half])
        await asyncio.sleep(loop.latency())
        second = bytes(source[half : start + length])
        await asyncio.sleep(loop.latency())
        return first + second

    async def block_status(
        self, start: int, length: int, context: str = "base:allocation"
    ) -> list[tuple[int, int]]:
        guest = self._guest
        await asyncio.sleep(guest.loop.latency())
        if context == "base:allocation":
            found = self._holes(start, length)
        else:
            dirty = self._regions or set()
            record = context.endswith("record")
            found = [
                (scale.REGION, int(region in dirty) if record else 1)
                for region in range(start // scale.REGION, -(-(start + length) // scale.REGION))
            ]
        await asyncio.sleep(guest.loop.latency())
        if not found:
            raise ProtocolError("nothing found")
        return found

    def _holes(self, start: int, length: int) -> list[tuple[int, int]]:
        found, at = [], start
        while at < start + length:
            end = (at // scale.BLOCK + 1) * scale.BLOCK
            found.append((end - at, 3 * self._guest.holes[at // scale.BLOCK]))
            at = end
        return found

    async def close(self) -> None:
        """Nothing is held."""
