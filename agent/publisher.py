"""Group commit: takes what has gathered in the queue, writes it to the journal as one batch, tells who waits.

One batch is in flight at a time; while it is, the next one gathers. Where nobody waits for an ack, a batch gathers for
a while before it goes: a request costs agent and broker half a millisecond of CPU, whatever is in it.
Encoding happens here, once per event, and as soon as those who wait have their answers: while a batch is sent, no guest is answered.

Invariants: an event is reported as acked only after `append` returned its offset; offsets are contiguous within an
attachment unless somebody else wrote to the journal, which is looked at before anything is reported; after any failure
nothing more is written by this attachment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from rephub.agent import epochs
from rephub.agent.delays import AckDelays
from rephub.agent.queue import EventQueue, Kind, Queued
from rephub.agent.sampling import BlockSampler
from rephub.core.codec import WriteEncoder, encode_journal
from rephub.core.errors import FencedError, IntegrityError
from rephub.core.gathering import Gathering
from rephub.core.journal.port import JournalReader, JournalWriter
from rephub.schemas import journal

REPORTED_MAX = 64
"""Acked events that are looked at in one turn of the loop: some 200 µs, in which no guest is answered."""

NO_CRC = bytes(4)
"""The codec computes the real one."""


class Encoder:
    """Events of one attachment as journal records.

    Args:
        epoch: of the attachment.
        attachment_id: its 16 bytes.
    """

    def __init__(self, epoch: int, attachment_id: bytes) -> None:
        self._epoch = epoch
        self._attachment_id = attachment_id
        self._hot = WriteEncoder(epoch, attachment_id)

    def encode(self, event: Queued) -> bytes:
        """The record of one event."""
        kind = event.kind
        if kind is Kind.WRITE:
            assert event.data is not None
            return self._hot.write(event.seq, event.captured_at, event.start, event.flags, event.data)
        if kind is Kind.ZERO:
            return self._hot.zero(
                event.seq, event.captured_at, event.start, event.flags, event.length, unmap=event.unmap
            )
        if kind is Kind.SYNC_DATA:
            assert event.data is not None
            return self._hot.sync_data(event.seq, event.captured_at, event.start, event.flags, event.data)
        record = {
            Kind.SYNC_STARTED: journal.SyncStarted,
            Kind.SYNC_COMPLETED: journal.SyncCompleted,
            Kind.CHECKPOINT: journal.Checkpoint,
            Kind.DIGEST: journal.Digest,
            Kind.RESIZED: journal.Resized,
        }[kind]
        header = {
            "crc32c": NO_CRC,
            "epoch": self._epoch,
            "attachment_id": self._attachment_id,
            "seq": event.seq,
            "captured_at": event.captured_at,
        }
        return encode_journal(record(**header, **event.fields))


class Publisher:
    """Publishes the queue of one attachment.

    Args:
        queue: what to publish.
        encoder: makes records.
        writer: started, and this attachment's alone.
        make_reader: a reader of the journal, not started; used when an ack's offset is not the expected one.
        epoch: of the attachment.
        next_offset: the offset after its `EpochStarted`.
        batch_bytes: a batch ends at this size.
        gathering: how long events gather that nobody waits for.
        acked: called with the events of each batch, in order, once they are in the journal.
        sampler: sees every event when it is encoded.
    """

    def __init__(
        self,
        queue: EventQueue,
        encoder: Encoder,
        writer: JournalWriter,
        make_reader: Callable[[], JournalReader],
        *,
        epoch: int,
        next_offset: int,
        batch_bytes: int,
        gathering: Gathering,
        acked: Callable[[list[Queued]], None],
        sampler: BlockSampler,
    ) -> None:
        self._queue = queue
        self._encoder = encoder
        self._writer = writer
        self._make_reader = make_reader
        self._epoch = epoch
        self._next_offset = next_offset
        self._batch_bytes = batch_bytes
        self._gathering = gathering
        self._acked = acked
        self._sampler = sampler
        self._looking = False
        self._wake = asyncio.Event()
        self._parked = False
        """`run` waits for the first event."""
        self._sent_at = 0.0
        """When the last batch was taken."""
        self._encoding = False
        self._loop = asyncio.get_running_loop()
        self._hurry = False
        """Somebody waits for the ack of what is queued."""
        self._empty = asyncio.Event()
        self.delays = AckDelays()
        self.acked_offset = next_offset - 1
        self.acked_seq = 0
        self.acked_at = time.time_ns() // 1000

    def wake(self) -> None:
        """There is something in the queue, and somebody waits for its ack."""
        self._hurry = True
        self._wake.set()

    def offer(self) -> None:
        """There is something in the queue, and nobody waits."""
        if not self._encoding:
            self._encoding = True
            self._loop.call_soon(self._encode_ahead)
        if self._parked or self._queue.queued_bytes >= self._batch_bytes:
            self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled.

        Raises:
            IndeterminateError: a batch may or may not have landed; the writer is dead.
            FencedError: a newer epoch took over.
            IntegrityError: the journal is not the one we wrote to.
            UnavailableError: the journal could not be looked at after an unexpected offset.
        """
        while True:
            if not len(self._queue):
                await self._park()
            await self._gather()
            batch = self._queue.take_batch(self._batch_bytes)
            self._sent_at = self._loop.time()
            self._hurry = self._hurry and len(self._queue) > len(batch)
            if not batch:
                continue
            first = await self._writer.append([event.record or self._encoded(event) for event in batch])
            if first != self._next_offset:
                await self._look_between(first)
            await self._report(first)

    def _encode_ahead(self) -> None:
        self._encoding = False
        for event in reversed(self._queue.unencoded()):
            self._encoded(event)

    def _encoded(self, event: Queued) -> bytes:
        record = event.record = self._encoder.encode(event)
        if self._sampler.note(event, self._loop.time()) and not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)
        event.data = None
        return record

    def _look(self) -> None:
        """One block in a turn of the loop, so that guests are answered between two."""
        self._looking = self._sampler.look()
        if self._looking:
            self._loop.call_soon(self._look)

    async def _park(self) -> None:
        """Wait until there is something."""
        self._empty.set()
        self._wake.clear()
        self._parked = True
        try:
            await self._wake.wait()
        finally:
            self._parked = False
        self._sent_at = self._loop.time()
        self._empty.clear()

    async def _gather(self) -> None:
        """Let more come, for a while, unless somebody waits for what is there, or a batch is full."""
        if self._hurry or self._queue.queued_bytes >= self._batch_bytes:
            return
        self._wake.clear()
        seconds = self._gathering.seconds(self, self._loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._sent_at + seconds):
                await self._wake.wait()

    async def drained(self) -> None:
        """Wait until the queue is empty and everything is acked."""
        self.wake()
        while len(self._queue):
            self._empty.clear()
            await self._empty.wait()

    async def _report(self, first: int) -> None:
        events = self._queue.acked()
        self._next_offset = first + len(events)
        self.acked_offset = self._next_offset - 1
        self.acked_seq = events[-1].seq
        self.acked_at = time.time_ns() // 1000
        self.delays.note(events, self.acked_at)
        for some in range(0, len(events), REPORTED_MAX):
            if some:
                await asyncio.sleep(0)
            self._acked(events[some : some + REPORTED_MAX])
        for number, event in enumerate(events):
            if event.on_ack:
                event.on_ack(first + number)

    async def _look_between(self, first: int) -> None:
        """Somebody else wrote before our batch, or the log is not what it was."""
        if first < self._next_offset:
            raise IntegrityError(
                f"the journal went back: expected offset {self._next_offset}, the broker gave {first}",
                hint="acked events were lost by the broker; the volume must be resynced",
                expected_offset=self._next_offset,
                found_offset=first,
            )
        reader = self._make_reader()
        try:
            await reader.start()
            newer = await epochs.scan(reader, self._epoch, self._next_offset, first)
        finally:
            await reader.close()
        if newer != self._epoch:
            raise FencedError(
                f"epoch {newer} took over from epoch {self._epoch}",
                hint="another agent or a promote owns the volume; `resync` takes it back",
                epoch=newer,
            )
