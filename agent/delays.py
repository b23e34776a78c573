"""How long guest writes wait for Kafka's ack: the recovery point that would be lost, as a histogram. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rephub.agent.queue import Kind, Queued

BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds, seconds; fine around the linger, which most writes wait for."""


class AckDelays:
    """Of one attachment, from capture to ack."""

    def __init__(self) -> None:
        self._counts = [0] * len(BOUNDS_SECONDS)
        self._count = 0
        self._sum_us = 0

    def note(self, events: Sequence[Queued], now: int) -> None:
        """Events of one batch, in order, were acked.

        Args:
            events: of any kind; only what the guest wrote counts.
            now: microseconds, by the clock that `captured_at` is of.
        """
        times = [
            event.captured_at
            for event in events
            if event.kind is Kind.WRITE or (event.kind is Kind.ZERO and not event.is_sync)
        ]
        self._count += len(times)
        self._sum_us += now * len(times) - sum(times)
        for number, bound in enumerate(BOUNDS_SECONDS):
            self._counts[number] += len(times) - bisect_left(times, now - int(bound * 1e6))

    def stats(self) -> dict[str, object]:
        """`buckets`: how many waited at most so long, in the order of BOUNDS_SECONDS; `count`; `sum_seconds`."""
        return {"buckets": list(self._counts), "count": self._count, "sum_seconds": self._sum_us / 1e6}
