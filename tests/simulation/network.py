"""Kafka and Redis as seen over a network: the memory adapters, with latency and faults.

A batch that was sent lands whatever becomes of its sender: `append` of the memory adapter runs in the broker's process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

from rephub.core.bitmap.memory import MemoryBitmapStore
from rephub.core.errors import IndeterminateError, UnavailableError
from rephub.core.journal.memory import Fault, MemoryJournalReader, MemoryJournalStore, MemoryJournalWriter
from rephub.core.journal.port import StoredRecord
from simulation.clock import SimLoop
from simulation.faults import Faults

APPEND_SECONDS = 10.0
"""After so long a writer is told that nobody knows (`core/journal/kafka.py`)."""


class Broker(MemoryJournalStore):
    """The journals of a run.

    Args:
        loop: of the run.
        faults: of the run.
        landed: called after each change of a journal.
    """

    def __init__(self, loop: SimLoop, faults: Faults, landed: Callable[[], None]) -> None:
        super().__init__()
        self.loop = loop
        self.faults = faults
        self.process = loop.process("broker")
        self.fault = self._draw
        self.deleting: Callable[[int], None] = lambda _next_offset: None
        self._landed = landed

    def _draw(self, volume: str, values: Sequence[bytes]) -> Fault:
        faults, fault = self.faults, Fault()
        fault.before = self.after(self.loop.latency())
        fault.after = self.after(self.loop.latency())
        if faults.fire("delayed_batch", 0.06):
            gate = "before" if faults.random.random() < 0.5 else "after"
            setattr(fault, gate, self.after(faults.random.uniform(0.1, 9.5)))
        if faults.fire("lost_ack", 0.03):
            fault.acked = False
            fault.after = self.after(APPEND_SECONDS if faults.random.random() < 0.5 else 0.0)
        elif faults.fire("lost_batch", 0.03):
            fault.lands = False
        elif faults.fire("late_batch", 0.05):
            fault.lands, fault.late = False, True
            self._later(volume, [])
        elif faults.fire("duplicate_batch", 0.03):
            fault.acked = False
            self._later(volume, list(values))
        return fault

    def after(self, seconds: float) -> asyncio.Future[None]:
        """A future that is done after some time, whoever lives."""
        future = self.loop.create_future()
        self.process.call(
            self.loop.call_later, seconds, lambda: None if future.done() else future.set_result(None)
        )
        return future

    def _later(self, volume: str, values: list[bytes]) -> None:
        """Land what is late, and these values once more, some time later."""

        async def land() -> None:
            await asyncio.sleep(self.faults.random.choice((0.001, 0.05, 1.0, 5.0, 12.0)))
            if values:
                self._journals[volume].late.append(values)
            while self.unavailable:
                await asyncio.sleep(1.0)
            await self.land_late(volume)

        self.process.spawn(land())

    async def wake(self) -> None:
        """Something changed."""
        self._landed()
        await super().wake()

    async def delete_records(self, volume: str, next_offset: int) -> None:
        """As the memory adapter; looked at first."""
        await asyncio.sleep(self.loop.latency())
        self.check_available()
        self.deleting(next_offset)
        await super().delete_records(volume, next_offset)

    def writer(self, volume: str) -> Any:
        """A writer over the network."""
        return _Writer(self, volume)

    def reader(self, volume: str) -> Any:
        """A reader over the network."""
        return _Reader(self, volume)


class _Writer(MemoryJournalWriter):
    def __init__(self, broker: Broker, volume: str) -> None:
        super().__init__(broker, volume)
        self._broker = broker
        self._sent: asyncio.Task[int] | None = None

    async def start(self) -> None:
        await asyncio.sleep(self._broker.loop.latency())
        await super().start()

    async def _append(self, values: list[bytes]) -> int:
        self._sent = self._broker.process.spawn(super()._append(values))
        try:
            async with asyncio.timeout(APPEND_SECONDS):
                return await asyncio.shield(self._sent)
        except UnavailableError as exc:
            raise IndeterminateError(exc.message) from exc
        except TimeoutError:
            raise IndeterminateError("no ack in time") from None

    async def abandon(self) -> None:
        # Nothing is sent from here on; what is on its way may still land.
        on_its_way = self._sent is not None and not self._sent.done()
        if on_its_way and self._broker.faults.random.random() < 0.5:
            self._dead = self._dead or "abandoned"
        else:
            await super().abandon()


class _Reader(MemoryJournalReader):
    def __init__(self, broker: Broker, volume: str) -> None:
        super().__init__(broker, volume)
        self._broker = broker

    async def _hop(self) -> None:
        await asyncio.sleep(self._broker.loop.latency())

    async def start(self) -> None:
        await self._hop()
        await super().start()

    async def first_offset(self) -> int:
        await self._hop()
        return await super().first_offset()

    async def next_offset(self) -> int:
        await self._hop()
        return await super().next_offset()

    async def fetch(self, journal_offset: int, bytes_max: int = 4096) -> list[StoredRecord]:
        await self._hop()
        found = await super().fetch(journal_offset, min(bytes_max, 16 << 10))
        await self._hop()
        return found

    async def tail(self, first_offset: int) -> AsyncIterator[list[StoredRecord]]:
        async for records in super().tail(first_offset):
            await self._hop()
            # The memory adapter hands over all there is; a broker answers in parts.
            part = self._broker.faults.random.randint(1, 12)
            for at in range(0, len(records), part):
                yield records[at : at + part]


class Redis(MemoryBitmapStore):
    """The bitmap store of a run; it may be away, or lose all it holds."""

    def __init__(self, loop: SimLoop, faults: Faults) -> None:
        super().__init__()
        self.loop = loop
        self.faults = faults
        self.emptied_at: dict[str, int] = {}
        """Keys that were lost, to the store's generation then."""

    def empty(self) -> None:
        """As FLUSHALL, or a restart without a disk."""
        for key in self.bitmaps:
            self.emptied_at[key] = self.generation
        self.bitmaps.clear()
        self._acks.clear()
        if self.faults.random.random() < 0.5:
            self.restart(durable=False)

    def bitmap(self, volume: str, epoch: int) -> _Bitmap:
        """A bitmap over the network."""
        return _Bitmap(super().bitmap(volume, epoch), self.loop)


class _Bitmap:
    def __init__(self, inner: Any, loop: SimLoop) -> None:
        self._inner, self._loop = inner, loop

    async def _there_and_back(self, work: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(self._loop.latency())
        result = await work(*args)
        await asyncio.sleep(self._loop.latency())
        return result

    async def mark(self, regions: Collection[int]) -> None:
        await self._there_and_back(self._inner.mark, set(regions))

    async def clear(self, regions: Collection[int]) -> None:
        await self._there_and_back(self._inner.clear, set(regions))

    async def load(self) -> set[int] | None:
        return await self._there_and_back(self._inner.load)

    async def is_whole(self) -> bool:
        return await self._there_and_back(self._inner.is_whole)

    async def delete(self) -> None:
        await self._there_and_back(self._inner.delete)
