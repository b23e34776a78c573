"""The data path of one volume in one epoch, put together: capture, queue, marks, publisher, sync.

An attachment is used once. It ends by `close` (everything drained first, if wanted) or by being lost: then QEMU's
connection is dropped at once, which frees the guest, the writer is abandoned, and the control process is told why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rephub.agent import delta, overload
from rephub.agent.capture import AckPolicy, Capture, export_info
from rephub.agent.comparing import Comparing
from rephub.agent.dirty import DirtyRegions
from rephub.agent.extents import Extent
from rephub.agent.known import Known
from rephub.agent.marks import Marks
from rephub.agent.publisher import Encoder, Publisher
from rephub.agent.queue import EventQueue, Kind, Queued
from rephub.agent.sampling import BlockSampler
from rephub.agent.sync import Pace, Sync
from rephub.core.bitmap.port import BitmapStore
from rephub.core.config import AgentSettings
from rephub.core.errors import ConflictError, RephubError, UnavailableError
from rephub.core.gathering import Gathering
from rephub.core.journal.port import JournalStore, JournalWriter
from rephub.core.nbd.client import NbdClient
from rephub.core.nbd.constants import BASE_ALLOCATION
from rephub.core.nbd.server import NbdServer

DRAIN_SECONDS = 12.0
"""How long what a QEMU left behind may take to be acked: a little more than a batch's own deadline."""

TICK_SECONDS = 0.25
"""How often held answers are looked at and the ack hash is renewed."""

POSITION_SECONDS = 0.01
"""Between two looks at what is acked, while somebody waits for it."""

ACK_SECONDS = 5.0
"""The ack hash is renewed so often also where nothing is new: a Redis that was emptied gets it again."""

NOTHING = Known()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttachmentSpec:
    """What the control process decided about an attachment; travels as JSON."""

    volume: str
    epoch: int
    attachment_id: str
    """32 hexadecimal digits."""
    epoch_offset: int
    """Journal offset of its EpochStarted."""
    size_bytes: int
    ack: str
    overload: str
    socket: str
    """Path on which QEMU is to connect, once."""
    export: str
    resized: bool = False
    """The volume had another size before this epoch."""
    cursor_bytes: int = 0
    """An interrupted sync that this one will continue is complete up to here."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Attachment:
    """One volume's data path.

    Args:
        spec: of the attachment.
        settings: limits.
        journals: where events go.
        bitmaps: where marks go.
        lost: called once if capture ends by itself.
        gathering: shared by the attachments of a process; None: it is alone.
    """

    def __init__(
        self,
        spec: AttachmentSpec,
        settings: AgentSettings,
        journals: JournalStore,
        bitmaps: BitmapStore,
        lost: Callable[[Attachment, RephubError], None],
        gathering: Gathering | None = None,
    ) -> None:
        self.spec = spec
        self.error: RephubError | None = None
        self.synced_offset: int | None = None
        self.queue = EventQueue()
        self.dirty = DirtyRegions(spec.size_bytes)
        self._journals = journals
        self._bitmaps = bitmaps
        self._batch_bytes = int(settings.batch_bytes)
        self._sampler = BlockSampler(spec.size_bytes, looking=settings.sampling)
        self._gathering = gathering or Gathering(settings.linger_ms / 1000)
        self._lost = lost
        self._closing = False
        """QEMU lets go at our wish."""
        self._closed = False
        """Nothing that happens from here on counts."""
        self._left: RephubError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sync: Sync | None = None
        self._pace = Pace(self.queue)
        self.comparing = Comparing(
            self.queue, self.dirty, self._wake, spec.volume, spec.size_bytes, self._pace, self._compared
        )
        self._writer: JournalWriter | None = None
        self._publisher: Publisher | None = None
        self._told_seq, self._told_at = -1, 0.0
        if spec.resized:
            self.queue.mark(Kind.RESIZED, time.time_ns() // 1000, size_bytes=spec.size_bytes)
        bitmap = bitmaps.bitmap(spec.volume, spec.epoch)
        self._marks = Marks(spec.volume, bitmap, self.dirty, self._marked)
        self.capture = Capture(
            self.queue,
            self.dirty,
            self._marks,
            policy=AckPolicy(spec.ack),
            overload_policy=overload.Policy(spec.overload),
            buffer_bytes=int(settings.buffer_bytes),
            delay_max_ms=settings.delay_max_ms,
            wake=self._wake,
            offer=self._offer,
            lost=self._fail,
            ended=self._qemu_left,
        )
        info = export_info(spec.export, spec.size_bytes)
        self._server = NbdServer({spec.export: (info, self.capture)}, one_connection=True)

    async def open(self) -> None:
        """Connect to the journal and listen for QEMU.

        Raises:
            UnavailableError: no broker answers, or the socket cannot be made; nothing is left open.
        """
        spec = self.spec
        writer = self._journals.writer(spec.volume)
        try:
            await writer.start()
            await self._server.listen_unix(Path(spec.socket))
        except BaseException:
            await writer.abandon()
            await self._server.close()
            raise
        self._writer = writer
        self._publisher = Publisher(
            self.queue,
            Encoder(spec.epoch, bytes.fromhex(spec.attachment_id)),
            writer,
            lambda: self._journals.reader(spec.volume),
            epoch=spec.epoch,
            next_offset=spec.epoch_offset + 1,
            batch_bytes=self._batch_bytes,
            gathering=self._gathering,
            acked=self._acked,
            sampler=self._sampler,
        )
        self._start(self._publisher.run())
        self._start(self._marks.run())
        self._start(self._tick())

    async def start_sync(
        self,
        server: dict[str, Any],
        export: str,
        done: Callable[[int], None],
        known: Known = NOTHING,
    ) -> Sync:
        """Begin a sync; `done` gets the offset of `SyncCompleted` once that is acked.

        Args:
            server: where QEMU's NBD server is: `path`, or `host` and `port`.
            export: name of the volume's read-only export there.
            done: called in the event loop.
            known: what the sync may rely on.

        Raises:
            ConflictError: a sync was begun already, or the size is not what it was at the attach.
            UnavailableError: capture is lost.
            RephubError: the source cannot be read; capture is lost by that.
        """
        self.check_open()
        if self._sync or self.synced_offset is not None:
            raise ConflictError(f"volume {self.spec.volume} is synced or syncing in epoch {self.spec.epoch}")
        try:
            contexts = [delta.context_of(name) for name in known.bitmaps or ()]
            client = await NbdClient.connect(**server, export=export, contexts=(BASE_ALLOCATION, *contexts))
            try:
                sync = await self._new_sync(client, known)
            except BaseException:
                await client.close()
                raise
        except RephubError as exc:
            self._fail(exc)
            raise
        self._sync = sync
        self._start(self._run_sync(sync, client, done))
        return sync

    def set_pace(self, *, running: bool, bytes_per_second: int | None) -> None:
        """Let sync stand still or go on, and hold a rate; also before it begins."""
        self._pace.set(running=running, bytes_per_second=bytes_per_second)

    def mark_checkpoint(self, captured_at: int, /, **fields: object) -> asyncio.Future[int]:
        """Put a marker into the queue, without a pause; the future is its journal offset once acked.

        Raises:
            UnavailableError: capture is lost.
        """
        self.check_open()
        acked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        event = self.queue.mark(Kind.CHECKPOINT, captured_at, **fields)
        event.on_ack = lambda offset: None if acked.done() else acked.set_result(offset)
        self._wake()
        return acked

    def turn(self) -> dict[str, int | None]:
        """A record in QEMU has ended, and all that it holds is in the queue.

        Returns:
            `received_seq`, up to which that is, and `touched_bytes`: how much the guest can have dirtied in the record, None:
            too much to say where.
        """
        self.check_open()
        return {"received_seq": self.queue.next_seq - 1, "touched_bytes": self.capture.touched.turn()}

    async def foreign(self, server: dict[str, Any], export: str, record: str) -> list[Extent]:
        """What is dirty in the record that ended last and was written by somebody else than the guest.

        Args:
            server: where QEMU's NBD server is.
            export: of the volume there; it shows the record.
            record: name of the bitmap.

        Raises:
            RephubError: it cannot be read.
        """
        context = delta.context_of(record)
        client = await NbdClient.connect(**server, export=export, contexts=(BASE_ALLOCATION, context))
        try:
            if context not in client.contexts:
                return []
            dirty = await delta.in_bitmap(client, record, self.spec.size_bytes)
        finally:
            await client.close()
        return self.capture.touched.foreign(dirty)

    async def position(self, *, acked: bool = False) -> dict[str, int]:
        """Where the queue is: `acked_seq`, and its journal offset `acked_offset`.

        Args:
            acked: wait until all that the queue holds now is acked.

        Raises:
            UnavailableError: capture is lost, or QEMU is letting go.
        """
        self.check_open()
        publisher = self._publisher
        assert publisher is not None
        received = self.queue.next_seq - 1
        while acked and publisher.acked_seq < received:
            await asyncio.sleep(POSITION_SECONDS)
            self.check_open()
        return {"acked_seq": publisher.acked_seq, "acked_offset": publisher.acked_offset}

    def expect_end(self) -> None:
        """QEMU is about to let go at our wish: that is no loss."""
        self._closing = True

    async def close(self, *, drain_seconds: float) -> int:
        """End the attachment; QEMU has let go before (detach) or is dropped now.

        Args:
            drain_seconds: how long to wait for acks of what was captured; 0 drops it.

        Returns:
            The last acked offset.

        Raises:
            UnavailableError: not everything was acked in time; it is closed all the same.
        """
        self._closing = True
        missing = 0
        if self.error is None and self._publisher and drain_seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_seconds):
                    await self._publisher.drained()
            missing = len(self.queue) if self.error is None else 0
        self._closed = True
        self.capture.abort()
        await self._stop_tasks()
        await self._server.close()
        if self._writer:
            if self.error is None and not len(self.queue):
                await self._writer.close()
            else:
                await self._writer.abandon()
        if missing:
            raise UnavailableError(f"{missing} events of volume {self.spec.volume} were not acked in time")
        return self.acked_offset

    @property
    def acked_offset(self) -> int:
        """The last offset that is known to be in the journal."""
        return self._publisher.acked_offset if self._publisher else self.spec.epoch_offset

    def stats(self) -> dict[str, Any]:
        """Figures for `/status`."""
        oldest = self.queue.oldest_captured_at
        sync, comparing = None, self.comparing.stats()
        if self._sync and self.synced_offset is None:
            sync = {
                "done_bytes": self._sync.done_bytes,
                "total_bytes": self._sync.total_bytes,
                "eta_seconds": self._sync.eta_seconds,
            }
        return {
            "epoch": self.spec.epoch,
            "attached": self.error is None and self._left is None,
            "acked_offset": self.acked_offset,
            "synced_offset": self.synced_offset,
            "lag_bytes": self.queue.unacked_data_bytes,
            "rpo_seconds": 0.0 if oldest is None else max(0.0, time.time() - oldest / 1e6),
            "dirty_bytes": self.dirty.dirty_bytes,
            "sync": sync or (comparing if self.comparing.is_sync and self.synced_offset is None else None),
            "verify": None if self.comparing.is_sync else comparing,
            "marks_away": self._marks.away,
            "ack_delay": self._publisher.delays.stats() if self._publisher else None,
            "written": self._sampler.stats(),
            "throttled": {
                "writes": self.capture.throttled_writes,
                "seconds": self.capture.throttled_seconds,
            },
        }

    async def _new_sync(self, client: NbdClient, known: Known) -> Sync:
        size_bytes = self.spec.size_bytes
        if client.size_bytes != size_bytes:
            raise ConflictError(
                f"volume {self.spec.volume} has {client.size_bytes} bytes and not {size_bytes}",
                hint="its size changed while it was attached; it is attached anew",
            )
        extents = await known.extents(client, size_bytes, self.spec.cursor_bytes)
        return Sync(
            client,
            size_bytes,
            extents,
            mode=known.mode if extents is not None else "full",
            cursor_bytes=self.spec.cursor_bytes if extents is not None else 0,
            queue=self.queue,
            dirty=self.dirty,
            pace=self._pace,
            wake=self._wake,
        )

    async def _run_sync(self, sync: Sync, client: NbdClient, done: Callable[[int], None]) -> None:
        try:
            self.synced_offset = await sync.run()
        finally:
            await client.close()
        done(self.synced_offset)

    def _compared(self, offset: int) -> None:
        """A sync that compares is complete."""
        self.synced_offset = offset

    def _qemu_left(self, exc: RephubError) -> None:
        """The guest is off, or its job ended: what was captured until now belongs into the journal."""
        if self.error is None and not self._closing and self._left is None:
            self._left = exc
            self._start(self._publish_rest(exc))

    async def _publish_rest(self, exc: RephubError) -> None:
        assert self._publisher is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._publisher.drained()
        self._fail(exc)

    def _marked(self, events: list[Queued]) -> None:
        self.capture.marked(events)

    def _acked(self, events: list[Queued]) -> None:
        self.capture.acked(events)
        self._pace.acked()
        self.comparing.acked()

    def _wake(self) -> None:
        if self._publisher:
            self._publisher.wake()

    def _offer(self) -> None:
        if self._publisher:
            self._publisher.offer()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.capture.check_held()
            await self._tell_ack()

    async def _tell_ack(self) -> None:
        publisher = self._publisher
        if publisher is None:
            return
        seq, now = publisher.acked_seq, time.monotonic()
        if seq == self._told_seq and now - self._told_at < ACK_SECONDS:
            return
        fields = {
            "epoch": self.spec.epoch,
            "seq": seq,
            "acked_offset": publisher.acked_offset,
            "at": publisher.acked_at,
            "synced_bytes": self._sync.acked_bytes(seq) if self._sync else self.spec.cursor_bytes,
        }
        try:
            await self._bitmaps.set_ack(self.spec.volume, fields)
        except UnavailableError as exc:
            # Only a hint for the next attach; `marks.py` says loudly that the store is away.
            log.debug("ack not stored", extra={"volume": self.spec.volume, "error": exc.message})
        else:
            self._told_seq, self._told_at = seq, now

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        exc = task.exception()
        if not isinstance(exc, RephubError):
            log.error("data path failed", exc_info=exc, extra={"volume": self.spec.volume})
            exc = RephubError(f"data path of volume {self.spec.volume} failed: {exc!r}")
        self._fail(exc)

    def _fail(self, exc: RephubError) -> None:
        """Capture is lost; only the first reason counts."""
        if self.error is not None or self._closed:
            return
        self.error = exc
        log.error(
            "capture lost", extra={"volume": self.spec.volume, "epoch": self.spec.epoch, "why": exc.message}
        )
        self.capture.abort()
        self.comparing.stop()
        for task in self._tasks:
            task.cancel()
        if self._writer:
            # Never waits for the broker, so a task of its own is enough.
            task = asyncio.create_task(self._writer.abandon())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.queue.discard()
        self._lost(self, exc)

    async def _stop_tasks(self) -> None:
        self.comparing.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_open(self) -> None:
        """Raise UnavailableError if capture is off, or QEMU is letting go."""
        if self.error is not None or self._left is not None or self._closing or self._publisher is None:
            raise UnavailableError(f"capture of volume {self.spec.volume} is off")
