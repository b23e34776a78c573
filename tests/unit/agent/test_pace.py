"""Sync stands still, goes on and holds a rate as it is told, while it runs."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rephub.agent.queue import EventQueue
from rephub.agent.sync import BACKLOG_BYTES_MAX, Pace, Sync


@pytest.fixture
def queue() -> Any:
    return SimpleNamespace(unacked_bytes=0, unacked_sync_bytes=0)


@pytest.fixture
def pace(queue: Any) -> Pace:
    return Pace(cast("EventQueue", queue))


async def passed(work: asyncio.Task[None], seconds: float = 0.05) -> bool:
    await asyncio.wait({work}, timeout=seconds)
    return work.done()


async def test_it_stands_still_until_it_is_told(pace: Pace) -> None:
    pace.set(running=False, bytes_per_second=None)
    work = asyncio.create_task(pace.wait(1))
    assert not await passed(work)
    pace.acked()
    assert not await passed(work), "an ack is no leave"
    pace.set(running=True, bytes_per_second=None)
    assert await passed(work, 5)


async def test_it_waits_for_room(pace: Pace, queue: Any) -> None:
    queue.unacked_bytes = queue.unacked_sync_bytes = BACKLOG_BYTES_MAX + 1
    work = asyncio.create_task(pace.wait(1))
    assert not await passed(work)
    queue.unacked_bytes = queue.unacked_sync_bytes = BACKLOG_BYTES_MAX
    pace.acked()
    assert await passed(work, 5)


async def test_a_rate_is_held(pace: Pace) -> None:
    pace.set(running=True, bytes_per_second=10_000)
    began = time.monotonic()
    for _ in range(11):
        await pace.wait(100)
    assert time.monotonic() - began >= 0.1


async def test_a_new_rate_counts_at_once(pace: Pace) -> None:
    pace.set(running=True, bytes_per_second=1)
    await pace.wait(1_000_000)
    work = asyncio.create_task(pace.wait(1))
    assert not await passed(work), "eleven days"
    pace.set(running=True, bytes_per_second=1 << 30)
    assert await passed(work, 5)


async def test_a_repeat_forgives_no_wait(pace: Pace) -> None:
    pace.set(running=True, bytes_per_second=1)
    await pace.wait(1_000_000)
    pace.set(running=True, bytes_per_second=1)
    work = asyncio.create_task(pace.wait(1))
    assert not await passed(work)
    work.cancel()


def test_the_estimate_follows_the_pace(pace: Pace) -> None:
    nothing = cast("Any", None)
    sync = Sync(nothing, 1000, queue=nothing, dirty=nothing, pace=pace, wake=nothing)
    assert sync.eta_seconds is None
    pace.set(running=True, bytes_per_second=10)
    assert sync.eta_seconds == 100.0
    sync.done_bytes = 500
    assert sync.eta_seconds is not None
    assert sync.eta_seconds < 100.0, "what was measured counts more than the limit"
    pace.set(running=True, bytes_per_second=5)
    assert sync.eta_seconds == 100.0, "the speed before says nothing any more"
    pace.set(running=False, bytes_per_second=5)
    assert sync.eta_seconds is None
