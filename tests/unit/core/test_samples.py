"""Publishing samples: what cannot be made or sent is dropped and counted, and the next ones count from the last published."""

from __future__ import annotations

import asyncio
from typing import Any

from rephub.core.config import Settings, load_settings
from rephub.core.errors import UnavailableError
from rephub.core.samples import SamplePublisher, process_samples
from rephub.schemas import stats
from sample_factory import process


def settings(**samples: float) -> Settings:
    return load_settings(samples={"period_seconds": 0.02} | samples)


class Log:
    """Takes, or refuses, what is appended."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, ...]] = []
        self.away = False

    async def append_raw(self, _topic: str, *values: bytes) -> int:
        if self.away:
            raise UnavailableError("away")
        self.taken.append(values)
        return 0

    async def close(self) -> None:
        pass


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_outage_and_a_mistake_cost_samples_and_nothing_else() -> None:
    intervals: list[int] = []
    broken, mistakes = False, 0

    def take(_at: int, interval_us: int) -> list[stats.Record]:
        nonlocal mistakes
        if broken:
            mistakes += 1
            raise KeyError("a mistake")
        intervals.append(interval_us)
        return [process(0, "agent/a1")]

    kept: list[None] = []
    publisher, log = SamplePublisher(settings(), take, lambda: kept.append(None)), Log()
    publisher._log = log  # type: ignore[assignment]
    running = asyncio.create_task(publisher.run())
    await until(lambda: publisher.published >= 2)
    log.away = True
    await until(lambda: publisher.dropped >= 5)
    broken = True
    await until(lambda: mistakes >= 5)
    broken = log.away = False
    before = publisher.published
    await until(lambda: publisher.published >= before + 2)
    assert not running.done()
    assert len(kept) == publisher.published == len(log.taken)
    longest = max(intervals)
    assert longest > 150_000, "the first one after it counts from the last that was published"
    assert intervals[-1] < longest
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_a_period_nothing_is_published() -> None:
    publisher = process_samples(settings(period_seconds=0), "hub", "h")
    log = Log()
    publisher._log = log  # type: ignore[assignment]
    running = asyncio.create_task(publisher.run())
    await asyncio.sleep(0.1)
    assert not running.done()
    assert log.taken == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
