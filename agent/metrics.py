"""The agent's figures for Prometheus, taken from the `/status` document when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rephub.agent.delays import BOUNDS_SECONDS

FIGURES = {
    "attached": "1 while guest writes are captured",
    "epoch": "Number of the capture attachment",
    "acked_offset": "Newest journal offset that Kafka has acked",
    "lag_bytes": "Captured and not acked",
    "rpo_seconds": "Age of the oldest unacked write; in a gap, time since it opened",
    "dirty_bytes": "Regions that may hold writes which the journal does not have",
}


class AgentCollector(Collector):
    """Figures of all volumes, label `volume`.

    Args:
        status: makes the `/status` document.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One gauge for each figure."""
        volumes = self._status()["volumes"]
        for name, text in FIGURES.items():
            gauge = GaugeMetricFamily(f"rephub_agent_{name}", text, labels=["volume"])
            for volume, figures in volumes.items():
                if figures[name] is not None:
                    gauge.add_metric([volume], float(figures[name]))
            yield gauge
        yield _ack_delays(volumes)


def _ack_delays(volumes: dict[str, Any]) -> Metric:
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
