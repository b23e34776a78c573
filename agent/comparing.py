"""The worker's half of a comparison: digests and repairs of one attachment, step by step as the control process asks.

One step at a time. A step that fails, or is stopped, leaves capture alone: nothing here is needed for protection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rephub.agent.digest import Digester
from rephub.agent.dirty import DirtyRegions
from rephub.agent.extents import Extent
from rephub.agent.queue import EventQueue, Kind
from rephub.agent.sync import Pace, Sync
from rephub.core.errors import ConflictError, UnavailableError, UsageError
from rephub.core.nbd.client import NbdClient
from rephub.projections.extent_lists import total

Document = dict[str, Any]


class Comparing:
    """Steps of comparisons of one attachment.

    Args:
        queue: of the attachment.
        dirty: its regions.
        wake: tells the publisher that there is something.
        volume: its name.
        size_bytes: of the volume.
        sync_pace: which a comparison keeps that is the attachment's sync.
        synced: called with the offset of `SyncCompleted` where the comparison was the attachment's sync.
    """

    def __init__(
        self,
        queue: EventQueue,
        dirty: DirtyRegions,
        wake: Callable[[], None],
        volume: str,
        size_bytes: int,
        sync_pace: Pace,
        synced: Callable[[int], None],
    ) -> None:
        self._queue = queue
        self._dirty = dirty
        self._wake = wake
        self._volume = volume
        self._size_bytes = size_bytes
        self._synced = synced
        self._sync: Sync | None = None
        self.is_sync = False
        """The comparison that is, or was, under way is the attachment's sync."""
        self._own_pace = Pace(queue)
        self._sync_pace = sync_pace
        self._task: asyncio.Task[Document] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._digester: Digester | None = None
        self._client: NbdClient | None = None
        self._total_bytes = 0
        self._started_at = 0.0

    def acked(self) -> None:
        """A batch was acked."""
        self._own_pace.acked()

    @property
    def _pace(self) -> Pace:
        return self._sync_pace if self.is_sync else self._own_pace

    def stats(self) -> Document | None:
        """Progress of the pass that is under way; None while there is none."""
        if self._digester is None or not self._total_bytes:
            return None
        done = self._sync.done_bytes if self._sync is not None else self._digester.counts.done_bytes
        done = min(done, self._total_bytes)
        spent = time.monotonic() - self._started_at
        eta = round(spent / done * (self._total_bytes - done), 1) if done else None
        return {"done_bytes": done, "total_bytes": self._total_bytes, "eta_seconds": eta}

    def stop(self) -> None:
        """End the step that is under way, and let go of what is held; nothing more comes of it."""
        if self._task is not None:
            self._task.cancel()
        if self._digester is not None:
            self._digester.drop()
        self._digester = None
        client, self._client = self._client, None
        if client is not None:
            closing = asyncio.create_task(client.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def serve(self, step: str, fields: Document) -> Document:
        """Do a step.

        Args:
            step: `begin` a round, `digest` extents beside the guest, `hold` reads, `release` them, `copy` extents,
                `finish` a sync, `end` the round.
            fields: of the step.

        Raises:
            ConflictError: another step is under way.
            UnavailableError: it was stopped, or the source went away.
            ProtocolError, RequestError: the source cannot be read.
        """
        steps: dict[str, Callable[..., Coroutine[Any, Any, Document]]] = {
            "begin": self._begin,
            "digest": self._digest,
            "hold": self._hold,
            "release": self._release,
            "copy": self._copy,
            "finish": self._finish,
            "end": self._end,
        }
        if step not in steps:
            raise UsageError(f"unknown step {step!r} of a comparison")
        if self._task is not None:
            raise ConflictError(f"volume {self._volume} is being compared already")
        task = self._task = asyncio.create_task(steps[step](**fields))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._task = None
        if task.cancelled():
            raise UnavailableError(f"the comparison of volume {self._volume} was stopped")
        return task.result()

    async def _begin(
        self, run: str, round_: int, server: Document, export: str, rate_bytes: int | None, sync: bool
    ) -> Document:
        await self._end()
        client = self._client = await NbdClient.connect(**server, export=export)
        if client.size_bytes != self._size_bytes:
            await self._end()
            raise ConflictError(
                f"volume {self._volume} has {client.size_bytes} bytes and not {self._size_bytes}",
                hint="its size changed while it was attached",
            )
        self.is_sync = sync
        self._own_pace.set(running=True, bytes_per_second=rate_bytes)
        self._digester = Digester(client, self._queue, self._pace, self._wake, run, round_)
        return {}

    async def _digest(self, extents: list[Extent]) -> Document:
        digester = self._current()
        wanted = [(start, length) for start, length in extents] or [(0, self._size_bytes)]
        self._total_bytes, self._started_at = total(wanted), time.monotonic()
        if self.is_sync:
            self._queue.mark(
                Kind.SYNC_STARTED, time.time_ns() // 1000, mode="compare", total_bytes=self._size_bytes
            )
        await digester.run(wanted)
        return self._counts(digester)

    async def _hold(self, extents: list[Extent]) -> Document:
        await self._current().hold(extents)
        return {}

    async def _release(self, final: bool) -> Document:
        digester = self._current()
        again = await digester.release(final=final)
        return self._counts(digester) | {"again": again}

    async def _copy(self, extents: list[Extent]) -> Document:
        assert self._client is not None
        wanted = [(start, length) for start, length in extents]
        sync = Sync(
            self._client,
            total(wanted),
            queue=self._queue,
            dirty=self._dirty,
            pace=self._pace,
            wake=self._wake,
        )
        self._total_bytes, self._started_at, self._sync = total(wanted), time.monotonic(), sync
        try:
            await sync.copy(wanted)
        finally:
            self._sync, self._total_bytes = None, 0
        return {"copied_bytes": sync.moved_bytes}

    async def _finish(self, extents: list[Extent]) -> Document:
        """The rest of a sync: all that was not found equal is copied; then the gap ends."""
        copied = await self._copy(extents)
        # Equal, copied, or written meanwhile: every region.
        self._dirty.synced(0, self._size_bytes)
        acked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        event = self._queue.mark(Kind.SYNC_COMPLETED, time.time_ns() // 1000, total_bytes=self._size_bytes)
        event.on_ack = lambda offset: None if acked.done() else acked.set_result(offset)
        self._wake()
        offset = await acked
        self._synced(offset)
        return copied | {"offset": offset}

    async def _end(self) -> Document:
        if self._digester is not None:
            self._digester.drop()
        self._digester, self._total_bytes = None, 0
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        return {}

    def _current(self) -> Digester:
        if self._digester is None:
            raise UnavailableError(f"the comparison of volume {self._volume} was stopped")
        return self._digester

    @staticmethod
    def _counts(digester: Digester) -> Document:
        counts = digester.counts
        return {
            "last_offset": counts.last_offset,
            "digested_bytes": counts.digested_bytes,
            "skipped_bytes": counts.skipped_bytes,
        }
