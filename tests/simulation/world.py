"""One run: everything put together, the disturber, and the end at which all must be well."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rephub.agent.attachment import Attachment
from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.projections.window import History
from rephub.schemas.journal import EpochStarted
from simulation import agent_side, disk, scale
from simulation.agent_side import Agent
from simulation.clock import SimLoop, virtual_time
from simulation.disk import Disk
from simulation.diskbox_side import DATA, POSITION, Diskbox, read
from simulation.faults import Faults
from simulation.guest import Guest
from simulation.judge import Judge, require
from simulation.ledger import Ledger
from simulation.network import Broker, Redis

END_SECONDS = 600.0
"""After the last fault everything is well within this."""


@dataclass(slots=True)
class Memory:
    """What the catalogue would know of the volume; it survives everything."""

    epoch: int = 0
    epoch_offset: int = -1
    synced: bool = False
    full_wanted: bool = False
    """Somebody asked for a resync of everything."""


class World:
    """Args: seed: of the run; enabled: kinds of faults, where the seed is not to draw them."""

    def __init__(self, seed: int, enabled: Collection[str] | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.loop = SimLoop(random.Random(seed + 1))
        self.faults = Faults(random.Random(seed + 2), enabled)
        self.notes: list[str] = []
        self.size = scale.SIZE
        self.memory = Memory()
        self.ledger = Ledger(self.size)
        self.judge = Judge(self)
        self.policy = self.random.choice(("async", "async", "journal"))
        self.overload = self.random.choice(("throttle", "gap"))
        self.settings = agent_side.settings(
            self.random.choice((40_000, 200_000, 1 << 30)), self.random.choice((4096, 16 << 10)), 50
        )
        self.history = History(
            self.random.choice((0, 1, 5, 20, 86400)), self.random.choice((4 << 10, 64 << 10, 1 << 30))
        )
        self.pace_seconds = self.random.choice((0.0, 0.5))
        self.testers = self.random.choice((0, 1, 2))
        self.writes = self.random.choice((10, 25, 25, 40))
        self.hung_seconds = 0.0
        self.checkpoints = True
        """Agents write periodic ones."""
        self.rotted = False
        """A record was damaged at some time."""
        self.broken: BaseException | None = None
        self.agent: Agent | None = None
        self.diskbox: Diskbox | None = None
        self.attachment: Attachment | None = None

    def note(self, text: str) -> None:
        """For whoever looks for the cause."""
        self.notes.append(f"{self.loop.time():10.4f} {text}")

    @property
    def projector(self) -> Projector | None:
        """Of the diskbox, if it runs."""
        box = self.diskbox.box if self.diskbox else None
        return box.projector if box else None

    def run(self) -> None:
        """The whole run. Raises: BrokenError, StuckError, or what was not expected."""
        self.disk = Disk(random.Random(self.seed + 3), self._disk_fault)
        with contextlib.ExitStack() as stack:
            stack.enter_context(virtual_time(self.loop))
            stack.enter_context(scale.small())
            stack.enter_context(disk.installed(self.disk, self.loop))
            stack.enter_context(agent_side.installed(self))
            self.loop.run_until_complete(self._guarded(self._main()))
            if self.broken:
                raise self.broken

    async def _guarded(self, work: Any) -> None:
        """The work, unless something breaks first."""
        task = asyncio.ensure_future(work)
        while not task.done() and self.broken is None:
            await asyncio.wait({task}, timeout=1.0)
        if self.broken is None:
            task.result()

    def fail(self, error: BaseException) -> None:
        """Something ended that must not."""
        self.broken = self.broken or error

    def check(self, check: Any, *args: Any) -> None:
        """Judge; a verdict is kept, whoever would catch it."""
        try:
            check(*args)
        except AssertionError as exc:
            self.broken = self.broken or exc
            raise

    async def _main(self) -> None:
        self.broker = Broker(self.loop, self.faults, self._landed)
        self.broker.deleting = lambda next_offset: self.check(self.judge.deleting, next_offset)
        self.redis = Redis(self.loop, self.faults)
        self.guest = Guest(self.loop, self.random, self.size)
        self.guest.on_answer = lambda *args: self.check(self.judge.answered, *args)
        await self.broker.create("v")
        self._start_diskbox()
        while self.projector is None:
            await asyncio.sleep(0.01)
            self._revive()
        self.agent = Agent(self)
        disturber = asyncio.ensure_future(self._disturb())
        await self._write_some(self.writes)
        disturber.cancel()
        await self._all_well()

    # What happens in between.

    def _landed(self) -> None:
        journal = self.broker._journals.get("v")
        if journal is not None:
            self.ledger.take(journal.values[self.ledger.next_offset - journal.first_offset :])

    def recovery_state(self) -> tuple[int, int, bytes] | None:
        """(applied, intent, content) as the disk has them now; None while the volume is being made."""
        entries = self.disk.entries
        if POSITION not in entries or DATA not in entries:
            return None
        document = json.loads(entries[POSITION].data)
        if not document["ready"]:
            return None
        applied, intent = document["applied"]["last_offset"], document["intent_offset"]
        return applied, max(applied, intent), bytes(entries[DATA].data)

    def attached(self, epoch: int, attachment: Attachment, regions: set[int] | None) -> None:
        """An agent has capture."""
        self.attachment = attachment
        if self.diskbox is not None:
            self.diskbox.look()
        self.note(f"agent: epoch {epoch} attached, {'full' if regions is None else 'delta'}")

    def guest_let_go(self, attachment: Attachment) -> None:
        """Take the filter out if it is this attachment's."""
        connection = attachment._server.connection
        if connection is not None:
            connection.end(None)
        if self.attachment is attachment:
            self.attachment = None

    def opened(self, box: BoxVolume) -> None:
        """A diskbox has opened the volume."""
        assert box.projector is not None
        self.check(self.judge.opened, box.projector)

    def _disk_fault(self, operation: str) -> int:
        faults = self.faults
        if operation in ("write", "punch", "create") and faults.fire("enospc", 0.03):
            return errno.ENOSPC
        if operation == "sync":
            return errno.EIO if faults.fire("failed_sync", 0.05) else 0
        return errno.EIO if faults.fire("eio", 0.02) else 0

    def _start_diskbox(self) -> None:
        self.diskbox = Diskbox(self)

    def _revive(self) -> None:
        """Start anew what was killed."""
        if self.agent is not None and not self.agent.process.alive:
            self.note("agent: starts anew")
            self.attachment = None
            self.agent = Agent(self)
        if self.diskbox is not None and not self.diskbox.process.alive:
            self.note("diskbox: starts anew")
            self.check(self.judge.disk)
            self._start_diskbox()

    async def _write_some(self, count: int) -> None:
        draw = self.random
        under_way: set[asyncio.Task[Any]] = set()
        for number in range(count):
            under_way.add(self.guest.process.spawn(self.guest.write(self.guest.random_op())))
            if draw.random() < 0.4:
                await asyncio.sleep(draw.choice((0.0001, 0.001, 0.1, 1.0, 3.0)))
            if number == count // 2 and draw.random() < 0.3:
                await asyncio.sleep(15.0)
        await asyncio.wait(under_way)

    async def _disturb(self) -> None:
        """Draw faults of the processes and stores, again and again."""
        faults, draw = self.faults, self.faults.random
        while True:
            await asyncio.sleep(draw.choice((0.01, 0.1, 0.5, 1.0, 2.0)))
            self._revive()
            if faults.fire("agent_crash", 0.3):
                self._fuse(self.agent, "agent")
            if faults.fire("diskbox_kill", 0.3):
                self._kill_diskbox()
            if not self.disk.fuse and faults.fire("diskbox_power_cut", 0.3):
                self._power_cut()
            if faults.fire("bitmap_emptied", 0.1):
                self.redis.empty()
            if faults.fire("bitrot", 0.15):
                self._rot()
            if faults.fire("outage", 0.1):
                self.loop.world.spawn(self._outage(draw.choice((0.3, 3.0, 15.0))))
            if faults.fire("bitmap_away", 0.15):
                self.loop.world.spawn(self._redis_away(draw.choice((0.3, 3.0, 9.0))))
            if faults.fire("agent_hang", 0.1):
                self.loop.world.spawn(self._hang(draw.choice((0.5, 3.0)), takeover=False))
            if faults.fire("agent_takeover", 0.12):
                self.loop.world.spawn(self._hang(draw.choice((0.5, 3.0, 9.0)), takeover=True))

    def _fuse(self, side: Any, name: str) -> None:
        if side.process.alive and not side.process.stopped:
            side.process.fuse = self.faults.random.randrange(200)
            self.note(f"{name}: dies within {side.process.fuse} steps")

    def _kill_diskbox(self) -> None:
        """At any step, or while something is under way on its disk."""
        if self.faults.random.random() < 0.5 or self.disk.fuse:
            self._fuse(self.diskbox, "diskbox")
        else:
            self._while_writing("diskbox_kill")

    def _while_writing(self, kind: str) -> None:
        """Kill the diskbox some operations of its disk from now; counted when it happens."""
        faults, process = self.faults, self.diskbox.process if self.diskbox else None
        if process is None or not process.alive:
            return
        faults.fired[kind] -= 1

        def soon() -> None:
            if process.alive:
                faults.fired[kind] += 1
                process.fuse = faults.random.randrange(3)

        self.disk.fuse = (faults.random.randrange(12), soon)

    def _power_cut(self) -> None:
        process = self.diskbox.process if self.diskbox else None
        if process is None or not process.alive:
            return

        def cut() -> None:
            if self.disk.power_cut():
                self.faults.fired["torn_write"] += 1

        process.on_killed = cut
        if self.faults.random.random() < 0.7:
            self._while_writing("diskbox_power_cut")
        else:
            process.fuse = self.faults.random.randrange(200)

    def _rot(self) -> None:
        """Flip a bit of a record."""
        journal = self.broker._journals["v"]
        if not journal.values:
            return
        at = self.faults.random.randrange(len(journal.values))
        record = self.ledger.points[journal.first_offset + at].record
        if isinstance(record, EpochStarted) and record.epoch > self.memory.epoch:
            # Known and open (docs/simulation.md): an epoch that only its unreadable start knows of is taken twice.
            return
        value = bytearray(journal.values[at])
        value[self.faults.random.randrange(len(value))] ^= 1 << self.faults.random.randrange(8)
        self.broker.corrupt("v", journal.first_offset + at, bytes(value))
        self.rotted = True
        self.ledger.rotten.add(journal.first_offset + at)
        self.note(f"broker: the record at {journal.first_offset + at} rots")

    async def _outage(self, seconds: float) -> None:
        await self.broker.set_unavailable(True)
        self.note(f"broker: away for {seconds} s")
        await asyncio.sleep(seconds)
        await self.broker.set_unavailable(False)

    async def _redis_away(self, seconds: float) -> None:
        self.redis.unavailable = True
        await asyncio.sleep(seconds)
        self.redis.unavailable = False

    async def _hang(self, seconds: float, *, takeover: bool) -> None:
        """SIGSTOP; a second agent may take over, and meets the first again."""
        agent = self.agent
        if agent is None or not agent.process.alive or agent.process.stopped:
            return
        agent.process.stopped = True
        began = self.loop.time()
        self.note(f"agent: hangs for {seconds} s")
        await asyncio.sleep(0.2)
        if takeover:
            self.note("agent: another takes over")
            self.agent = Agent(self)
            if self.attachment is not None:
                self.guest.detach(None)
        await asyncio.sleep(seconds)
        self.hung_seconds += self.loop.time() - began
        agent.process.stopped = False

    # The end.

    async def _all_well(self) -> None:
        """3 and 13: without faults, and after a resync where one is due, the recovery side is the source."""
        self.faults.on = False
        self.note("no more faults")
        deadline = self.loop.time() + END_SECONDS
        await asyncio.sleep(20.0)
        self._revive()
        for process in self.loop.processes:
            process.fuse = None
        self.disk.fuse = None
        self._operator()
        asked = self.loop.time()
        while not self._settled():
            await asyncio.sleep(0.5)
            self._revive()
            if self.loop.time() - asked > 30.0:
                self._operator()
                asked = self.loop.time()
            require(self.loop.time() < deadline, "13 recovery", f"not well in time: {self._state()}")
        await asyncio.sleep(2 * agent_side.CHECKPOINT_SECONDS)
        self.checkpoints = False
        while not self._settled():
            await asyncio.sleep(0.5)
            require(self.loop.time() < deadline, "13 recovery", f"not well at the end: {self._state()}")
        await self._compare()

    def _operator(self) -> None:
        """`rephub resync` where the status says that it is due."""
        projector = self.projector
        rotten = any(
            projector is None or offset > projector.applier.applied_offset for offset in self.ledger.rotten
        )
        if rotten or (projector and (projector.poison or projector.divergence)):
            self.note("operator: resync")
            self.ledger.rotten.clear()
            self.memory.full_wanted = True
            self.guest.detach(None)

    def _settled(self) -> bool:
        projector, own = self.projector, self.attachment
        return (
            projector is not None and own is not None and own.error is None and projector.stopped is None
            and self.memory.synced and not len(own.queue) and not self.guest.in_flight
            and projector.timeline.latest_offset() == self.ledger.next_offset - 1
        )  # fmt: skip

    def _state(self) -> str:
        projector, own = self.projector, self.attachment
        return (
            f"projector {projector and (projector.stopped, projector.timeline.ranges()[-3:])}, "
            f"journal {self.ledger.next_offset}, attachment {own and (own.error, own.spec.epoch, len(own.queue))}, "
            f"{self.memory}"
        )

    async def _compare(self) -> None:
        ledger, judge, projector = self.ledger, self.judge, self.projector
        assert projector is not None
        require(
            ledger.image == self.guest.source, "3 overlap", f"the journal is not the source: {self._differ()}"
        )
        timeline = projector.timeline
        points = [
            offset
            for item in timeline.ranges()
            if item["kind"] == "restorable"
            for offset in range(item["first_offset"], item["last_offset"] + 1)
        ]
        require(points and points[-1] == ledger.next_offset - 1, "13 status", "the head is no good point")
        for offset in points:
            judge.may_open(offset)
        projector.pin("judge", points[0])
        for offset in {points[0], points[-1], *self.random.sample(points, min(6, len(points)))}:
            data = await read(View(projector, offset, None), 0, self.size)
            judge.read(offset, 0, data)
        projector.history = History(0, 1 << 30)
        projector.unpin("judge")
        await projector.changed.wait_for(
            lambda: projector.applier.applied_offset == ledger.next_offset - 1, 60.0, "applying all"
        )
        self.disk.power_cut()
        require(
            self.disk.read_durable(DATA) == self.guest.source,
            "3 overlap",
            "the recovery volume is not the source",
        )
        judge.order()
        judge.guest()

    def _differ(self) -> str:
        source, image = self.guest.source, self.ledger.image
        blocks = [
            at // scale.BLOCK
            for at in range(0, self.size, scale.BLOCK)
            if source[at : at + scale.BLOCK] != image[at : at + scale.BLOCK]
        ]
        return f"blocks {blocks}"
