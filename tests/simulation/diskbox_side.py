"""The recovery side of a run: the volume of a diskbox that is started, killed and started anew on the same disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from rephub.consumers.diskbox.applier import Applier
from rephub.consumers.diskbox.view import View
from rephub.consumers.diskbox.volume import BoxVolume, Wanted
from rephub.core.errors import PointNotAvailableError, RephubError, RequestError
from rephub.projections.points import resolve
from simulation.clock import Process
from simulation.disk import SimPath

if TYPE_CHECKING:
    from simulation.world import World

RETRY_SECONDS = 1.0
DIRECTORY = "/box/volumes/v"
POSITION = f"{DIRECTORY}/position.json"
DATA = f"{DIRECTORY}/data.raw"


class Diskbox:
    """One diskbox process.

    Args:
        world: it lives in.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: Process = world.loop.process("diskbox")
        self.box: BoxVolume | None = None
        self.failed: BaseException | None = None
        self._wake = asyncio.Event()
        self.process.spawn(self._run())

    def look(self) -> None:
        """An agent has attached: a volume whose journal diverged joins it."""
        self.process.call(self._wake.set)

    async def _run(self) -> None:
        world = self.world
        while True:
            box = BoxVolume(
                "v", SimPath(DIRECTORY), world.broker,  # type: ignore[arg-type]
                on_stopped=lambda _volume, offset, error: self._stopped(offset, error),
                on_resumed=lambda _volume, offset: world.note(f"diskbox: goes on at {offset}"),
                pace_seconds=world.pace_seconds,
            )  # fmt: skip
            try:
                await box.make(Wanted("v", world.size, "start", 0, -1, None, world.history))
                await box.open(world.history)
            except RephubError as exc:
                world.note(f"diskbox: {exc.message}")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            break
        self.box = box
        assert box.projector is not None
        world.opened(box)
        box.start()
        for _ in range(world.testers):
            self.process.spawn(self._test_for_ever(box))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._wake.wait()
            self._wake.clear()
            await self._rejoin(box)
            for task in box._tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    world.fail(error)

    def _stopped(self, offset: int, error: RephubError) -> None:
        self.world.note(f"diskbox: stopped at {offset}: {error.message}")
        self.world.check(self.world.judge.stopped, offset, error)

    async def _rejoin(self, box: BoxVolume) -> None:
        """As the diskbox's service does after a divergence (`service.py`)."""
        world, memory = self.world, self.world.memory
        while (projector := box.projector) is None or projector.divergence is not None:
            if projector is not None and not (
                memory.epoch > projector.head.state.epoch and memory.epoch > box.rejoined_epoch
            ):
                return
            wanted = Wanted("v", world.size, "start", memory.epoch, memory.epoch_offset, None, world.history)
            try:
                await box.rejoin(wanted)
            except RephubError as exc:
                world.note(f"diskbox: {exc.message}")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            world.note(f"diskbox: joins epoch {memory.epoch}")
            box.start()
            return

    async def _test_for_ever(self, box: BoxVolume) -> None:
        """Fail-over tests: open a point, read it piece by piece, let go."""
        world = self.world
        number = 0
        while True:
            await asyncio.sleep(world.random.uniform(0.2, 4.0))
            number += 1
            if box.projector is not None and box.projector.divergence is None:
                await self._test(box, f"fot:{number}:{world.random.random()}")

    async def _test(self, box: BoxVolume, holder: str) -> None:
        world, projector = self.world, box.projector
        assert projector is not None
        timeline = projector.timeline
        earliest, latest = timeline.earliest_offset(), timeline.latest_offset()
        if earliest is None or latest is None:
            return
        offset = world.random.randint(earliest, latest)
        try:
            resolve(timeline, "offset", str(offset))
        except PointNotAvailableError:
            return
        world.check(world.judge.may_open, offset)
        projector.pin(holder, offset)
        try:
            view = View(projector, offset, None)
            step = world.random.choice((4096, 8192, 32768))
            for start in range(0, world.size, step):
                data = await read(view, start, min(step, world.size - start))
                world.check(world.judge.read, offset, start, data)
                await asyncio.sleep(world.loop.latency() * 20)
        finally:
            projector.unpin(holder)


async def read(view: View, start: int, length: int) -> bytes | None:
    """What the view says; None: it fails, which is allowed where something is broken."""
    try:
        return bytes(await view.read(start, length))
    except RequestError:
        return None


def durable_position(world: World) -> tuple[int, int]:
    """(applied, intent) as a power cut that loses all that it can would leave them."""
    document = json.loads(world.disk.read_durable(POSITION))
    return document["applied"]["last_offset"], document["intent_offset"]


__all__ = ["DATA", "Applier", "Diskbox", "durable_position", "read"]
