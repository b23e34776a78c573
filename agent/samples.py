"""The agent's samples: what `/status` says of each volume, as differences since the last sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rephub.agent.delays import BOUNDS_SECONDS
from rephub.core.config import Settings
from rephub.core.samples import ProcessMeter, SamplePublisher
from rephub.schemas import stats

COUNTED = (
    "writes", "sampled_blocks", "entropy_sum", "packed_sum", "random_blocks", "turned_blocks", "rewritten_blocks",
)  # fmt: skip


class AgentSamples:
    """Samples of an agent and its volumes.

    Args:
        settings: of the agent.
        status: makes the `/status` document.
        group_of: the group of a volume, empty if it has none.
    """

    def __init__(
        self,
        settings: Settings,
        status: Callable[[], dict[str, Any]],
        group_of: Callable[[str], str],
    ) -> None:
        self._source, self._status, self._group_of = f"agent/{settings.agent.id}", status, group_of
        self._workers: list[int] = []
        self._meter = ProcessMeter("agent", settings.agent.id, settings.state_dir, lambda: self._workers)
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._seen: dict[str, Mapping[str, Any]] = {}
        self.publisher = SamplePublisher(settings, self.take, self.keep)

    def take(self, at: int, interval_us: int) -> list[stats.Record]:
        """One sample for each volume and one of the process."""
        document = self._status()
        self._workers = list(document["workers"])
        self._seen = document["volumes"]
        samples: list[stats.Record] = [
            self._sample(at, interval_us, volume, figures) for volume, figures in self._seen.items()
        ]
        return [*samples, self._meter.take(at, interval_us, self.publisher.dropped)]

    def keep(self) -> None:
        """What was taken last was published."""
        self._kept = self._seen
        self._meter.keep()

    def _sample(
        self, at: int, interval_us: int, volume: str, figures: Mapping[str, Any]
    ) -> stats.CaptureSample:
        before = self._kept.get(volume, {})
        if before.get("epoch") != figures["epoch"]:
            before = {}  # a new attachment counts from 0
        written, old = figures.get("written") or {}, before.get("written") or {}
        rpo = figures["rpo_seconds"]
        counts = {name: written.get(name, 0) - old.get(name, 0) for name in COUNTED}
        return stats.CaptureSample(
            at=at,
            source=self._source,
            interval_us=interval_us,
            volume=volume,
            group=self._group_of(volume),
            epoch=figures["epoch"],
            attached=figures["attached"],
            written_bytes=written.get("bytes", 0) - old.get("bytes", 0),
            unacked_bytes=figures["lag_bytes"],
            dirty_bytes=figures["dirty_bytes"],
            acked_offset=-1 if figures["acked_offset"] is None else figures["acked_offset"],
            rpo_us=None if rpo is None else int(rpo * 1e6),
            ack_delays=_delays(figures.get("ack_delay"), before.get("ack_delay")),
            **counts,
        )


def _delays(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Counts by class, from cumulative ones; one more class for what took longer than the last bound."""
    if now is None:
        return (0,) * (len(BOUNDS_SECONDS) + 1)
    old = [*before["buckets"], before["count"]] if before else [0] * (len(BOUNDS_SECONDS) + 1)
    upto = [new - was for new, was in zip([*now["buckets"], now["count"]], old, strict=True)]
    return tuple(count - below for count, below in zip(upto, [0, *upto], strict=False))
