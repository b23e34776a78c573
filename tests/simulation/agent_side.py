"""The agent's side of a run: attachments one after the other, as the control process would make them.

The control process itself (QMP, catalogue) is not here; its rules for a resync are, in short: only what the last epoch's
marks and QEMU's bitmap say if that epoch was synced and the marks are whole, else everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rephub.agent import attachment as attachment_module
from rephub.agent import epochs
from rephub.agent.attachment import Attachment, AttachmentSpec
from rephub.agent.known import Known
from rephub.core.config import AgentSettings
from rephub.core.errors import RephubError, UnavailableError
from simulation.clock import Process
from simulation.guest import Connection, Export
from simulation.judge import require

if TYPE_CHECKING:
    from simulation.world import World

RETRY_SECONDS = 0.5
CHECKPOINT_SECONDS = 5.0


class Server:
    """In place of `NbdServer`: one export, one connection."""

    def __init__(self, exports: dict[str, tuple[Any, Any]], **_: Any) -> None:
        ((_info, self.handler),) = exports.values()
        self.listening = False
        self.connection: Connection | None = None

    async def listen_unix(self, _path: Any) -> None:
        await asyncio.sleep(0)
        self.listening = True

    async def close(self) -> None:
        self.listening = False
        if self.connection:
            self.connection.end(None)


class Agent:
    """One agent process.

    Args:
        world: it lives in.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: Process = world.loop.process("agent")
        self.attachment: Attachment | None = None
        self.process.on_killed = self._killed
        self.process.spawn(self.run())

    def _killed(self) -> None:
        if self.attachment is not None and (connection := self.attachment._server.connection):
            # The kernel closes the socket.
            connection.end(None)

    async def run(self) -> None:
        """Attach, hold until lost, again."""
        while True:
            try:
                await self._once()
            except RephubError as exc:
                self.world.note(f"agent: {exc.message}")
            await asyncio.sleep(RETRY_SECONDS)
            if self.world.agent is not self:
                return

    async def _once(self) -> None:
        world = self.world
        memory = world.memory
        if world.agent is not self:
            return
        attachment_id = world.random.randbytes(16).hex()
        hints = []
        with contextlib.suppress(UnavailableError):
            ack = await world.redis.get_ack("v")
            if ack.get("epoch") and ack["epoch"] == memory.epoch:
                hints.append(epochs.Hint(ack["epoch"], ack["acked_offset"]))
        if memory.epoch:
            hints.append(epochs.Hint(memory.epoch, memory.epoch_offset))
        claim = await epochs.claim(world.broker, "v", hints, attachment_id, world.size, "simulated")
        lost: asyncio.Future[RephubError] = asyncio.get_running_loop().create_future()
        spec = AttachmentSpec(
            "v", claim.epoch, attachment_id, claim.offset, world.size, world.policy, world.overload, "/socket", "e",
        )  # fmt: skip
        own = Attachment(
            spec, world.settings, world.broker, world.redis,
            lambda _attachment, error: None if lost.done() else lost.set_result(error),
        )  # fmt: skip
        self.attachment = own
        await own.open()
        try:
            connection = Connection(world.guest, own.capture, self.process)
            own._server.connection = connection
            regions = await self._delta()
            before = memory.epoch
            if world.agent is not self:
                return
            memory.epoch, memory.epoch_offset = claim.epoch, claim.offset
            memory.synced = memory.full_wanted = False
            await world.guest.attach(connection, claim.epoch)
            if regions is not None:
                regions |= world.guest.bitmap
                world.note(f"agent: delta of {sorted(regions)} after epoch {before}")
            world.attached(claim.epoch, own, regions)
            known = Known(mode="delta", bitmaps=("record", "guard")) if regions is not None else Known()
            await own.start_sync({"regions": regions}, "e", lambda _offset: self._synced(claim.epoch), known)
            world.guest.bitmap.clear()
            while not (await asyncio.wait({lost}, timeout=CHECKPOINT_SECONDS))[0]:
                self._checkpoint(own)
            error = lost.result()
            # `Attachment` makes one of what is no error of ours: a mistake in the product, or here.
            require(type(error) is not RephubError, "data path", error.message)
            world.note(f"agent: lost epoch {claim.epoch}: {error.message}")
        finally:
            world.guest_let_go(own)
            with contextlib.suppress(RephubError):
                await own.close(drain_seconds=0)

    def _checkpoint(self, own: Attachment) -> None:
        """The periodic marker; it also shows an agent whose guest is quiet that it was fenced."""
        if self.world.checkpoints:
            with contextlib.suppress(UnavailableError):
                own.mark_checkpoint(
                    time.time_ns() // 1000,
                    checkpoint=f"auto-{time.time_ns()}",
                    group="v",
                    kind="crash",
                    periodic=True,
                )

    async def _delta(self) -> set[int] | None:
        """Regions that a resync has to copy beside QEMU's bitmap; None: all."""
        world = self.world
        memory = world.memory
        if not memory.synced or memory.full_wanted:
            return None
        try:
            return await world.redis.bitmap("v", memory.epoch).load()
        except UnavailableError:
            return None

    def _synced(self, epoch: int) -> None:
        memory = self.world.memory
        if memory.epoch == epoch:
            memory.synced = True
            self.world.note(f"agent: epoch {epoch} is synced")


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """Attachments of this world speak with its guest instead of a socket."""

    class Client:
        @staticmethod
        async def connect(*, regions: set[int] | None, **_: Any) -> Export:
            await asyncio.sleep(world.loop.latency())
            return Export(world.guest, regions)

    with (
        patch.object(attachment_module, "NbdServer", Server),
        patch.object(attachment_module, "NbdClient", Client),
    ):
        yield


def settings(buffer_bytes: int, batch_bytes: int, delay_max_ms: int) -> AgentSettings:
    """Limits of a small volume, below what a real configuration may say."""
    # Half of the worlds send what they have at once, as all do where somebody waits.
    linger_ms = 25 if batch_bytes <= 4096 else 0
    return AgentSettings().model_copy(
        update={
            "buffer_bytes": buffer_bytes,
            "batch_bytes": batch_bytes,
            "delay_max_ms": delay_max_ms,
            "linger_ms": linger_ms,
        }
    )
