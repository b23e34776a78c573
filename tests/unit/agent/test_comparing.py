"""A sync that compares keeps the pace of syncs; a verify keeps its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rephub.agent import comparing
from rephub.agent.comparing import Comparing
from rephub.agent.dirty import DirtyRegions
from rephub.agent.queue import EventQueue
from rephub.agent.sync import Pace

SIZE = 4 << 20


class Disk:
    """What `NbdClient.connect` gives: data everywhere."""

    size_bytes = SIZE

    @classmethod
    async def connect(cls, **_where: Any) -> Disk:
        return cls()

    async def read(self, _start: int, length: int) -> bytes:
        return b"x" * length

    async def block_status(self, _start: int, length: int) -> list[tuple[int, int]]:
        return [(length, 0)]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("sync", [True, False])
async def test_whose_pace_it_keeps(sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "NbdClient", Disk)
    queue = EventQueue()
    pace = Pace(queue)
    pace.set(running=False, bytes_per_second=None)

    def pump() -> None:
        queue.take_batch(1 << 30)
        for event in queue.acked():
            if event.on_ack:
                event.on_ack(event.seq)

    made = Comparing(queue, DirtyRegions(SIZE), pump, "v", SIZE, pace, lambda _offset: None)
    fields = {"run": "r", "round_": 1, "server": {}, "export": "e", "rate_bytes": None, "sync": sync}
    await made.serve("begin", fields)
    digesting = asyncio.create_task(made.serve("digest", {"extents": []}))
    done, _ = await asyncio.wait({digesting}, timeout=0.3 if sync else 10)
    assert bool(done) is not sync, "a sync that is paused reads nothing"
    pace.set(running=True, bytes_per_second=None)
    counts = await digesting
    assert counts["digested_bytes"] == SIZE
    await made.serve("end", {})
