"""The hub's live feed begins anew after whatever goes wrong, and shows nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rephub.consumers.hub import live as live_module
from rephub.consumers.hub.live import Live
from rephub.core.errors import IntegrityError
from rephub.core.names import STATS_TOPIC
from rephub.projections.catalogue import Catalogue
from sample_factory import capture


class CutLog:
    """A log whose tails end with an error after three samples, twice; then they wait."""

    def __init__(self) -> None:
        self.tails = 0

    async def offset_at(self, _topic: str, _at: int) -> int:
        return 0

    async def tail(self, topic: str, first: int) -> AsyncIterator[list[tuple[int, Any]]]:
        if topic == STATS_TOPIC:
            self.tails += 1
            yield [(first + second, capture(second)) for second in range(3)]
            if self.tails == 1:
                raise IntegrityError("the log lost its end")
            if self.tails == 2:
                raise ZeroDivisionError
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def rows(live: Live) -> int:
    return len(live.series.document(0).get("v1", {}).get("at", ()))


async def test_a_follower_that_fails_starts_over_without_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "RETRY_SECONDS", 0.01)
    live, log = Live("127.0.0.1:1", Catalogue), CutLog()
    live._log = log  # type: ignore[assignment]
    running = asyncio.create_task(live.run())
    async with asyncio.timeout(10):
        while log.tails < 3 or rows(live) < 3:
            await asyncio.sleep(0.01)
    assert not running.done()
    assert rows(live) == 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
