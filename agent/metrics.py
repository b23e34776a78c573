"""The agent's figures for Prometheus, taken from the `/status` document when asked.

Counters are those of one attachment: they begin at 0 with each, as with the start of a process, which `rate()` expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from rephub.agent.delays import BOUNDS_SECONDS
from rephub.core.metrics import by_volume

FIGURES = {
    "attached": "1 while guest writes are captured",
    "epoch": "Number of the capture attachment",
    "acked_offset": "Newest journal offset that Kafka has acked",
    "lag_bytes": "Captured and not acked",
    "rpo_seconds": "Age of the oldest unacked write; in a gap, time since it opened",
    "dirty_bytes": "Regions that may hold writes which the journal does not have",
}
COUNTERS = {
    "captured_writes": ("written", "writes", "Guest writes captured since the attach"),
    "captured_bytes": ("written", "bytes", "Guest bytes captured since the attach"),
    "sampled_blocks": (
        "written",
        "sampled_blocks",
        "Written blocks of 4 KiB that were looked into, since the attach",
    ),
    "random_blocks": ("written", "random_blocks", "Of these: that look like random numbers"),
    "throttled_writes": ("throttled", "writes", "Guest writes that were answered late, since the attach"),
    "throttle_seconds": ("throttled", "seconds", "By which they were answered late, summed up"),
}
"""By name: document and field of a volume's status, and what it means."""


class AgentCollector(Collector):
    """Figures of the agent, and of all volumes, label `volume`.

    Args:
        status: makes the `/status` document.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        document = self._status()
        volumes: Mapping[str, Mapping[str, Any]] = document["volumes"]
        yield GaugeMetricFamily(
            "rephub_agent_ready", "Whether it follows the control log", float(document["ready"])
        )
        yield GaugeMetricFamily("rephub_agent_workers", "Data path processes", len(document["workers"]))
        for name, text in FIGURES.items():
            yield by_volume(
                GaugeMetricFamily,
                f"rephub_agent_{name}",
                text,
                {of: found[name] for of, found in volumes.items()},
            )
        yield by_volume(
            GaugeMetricFamily,
            "rephub_agent_in_gap",
            "1 from the loss of capture until sync is complete again",
            {of: found["gap_since_at"] is not None for of, found in volumes.items()},
        )
        yield by_volume(
            CounterMetricFamily,
            "rephub_agent_gaps",
            "Gaps that opened since the start of the agent",
            {of: found["gaps"] for of, found in volumes.items()},
        )
        for name, (part, field, text) in COUNTERS.items():
            values = {of: (found.get(part) or {}).get(field) for of, found in volumes.items()}
            yield by_volume(CounterMetricFamily, f"rephub_agent_{name}", text, values)
        yield _ack_delays(volumes)


def _ack_delays(volumes: Mapping[str, Mapping[str, Any]]) -> Metric:
    histogram = HistogramMetricFamily(
        "rephub_agent_ack_delay_seconds",
        "From the capture of a guest write to Kafka's ack",
        labels=["volume"],
    )
    for volume, figures in volumes.items():
        if delays := figures.get("ack_delay"):
            buckets = [
                (str(bound), float(count))
                for bound, count in zip(BOUNDS_SECONDS, delays["buckets"], strict=True)
            ]
            histogram.add_metric([volume], [*buckets, ("+Inf", delays["count"])], delays["sum_seconds"])
    return histogram
