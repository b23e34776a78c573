"""Waiting for a condition within one event loop, without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rephub.core.errors import DeadlineError


class Signal:
    """Wakes those who wait for a condition; whoever changes something that matters calls `notify`."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Let all who wait look again."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Until the next `notify`, or until the time is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_seconds)
        finally:
            self._waiters.discard(waiter)

    async def wait_for(self, condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        """Until the condition holds.

        Args:
            condition: pure and cheap.
            timeout_seconds: how long at most.
            what: for the message.

        Raises:
            DeadlineError: it did not hold in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not condition():
            left = deadline - loop.time()
            if left <= 0:
                raise DeadlineError(f"{what}: not within {timeout_seconds:g} s")
            await self.wait(left)
