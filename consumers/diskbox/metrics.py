"""The diskbox's figures for Prometheus, taken from the `/status` document when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rephub.core.metrics import by_volume

GAUGES = {
    "head_offset": "Newest journal offset that was read",
    "applied_offset": "Newest journal offset in the recovery volume",
    "latest_offset": "Newest point that can be opened",
    "earliest_offset": "Oldest point that can be opened",
    "window_seconds": "Between the oldest and the newest point that can be opened",
    "journal_bytes": "Of the journal above the oldest point",
    "index_bytes": "Memory of index and timeline",
    "size_bytes": "Of the volume",
}
COUNTERS = {
    "fenced_events": "Events of an epoch that another one had taken over from",
    "applied_events": "Journal events applied to the recovery volume since it was opened",
    "applied_bytes": "Data of these events",
}
FLAGS = {
    "in_gap": "1 while the newest point lies before a gap",
    "stopped": "1 while an event or the disk stops the volume",
}


class DiskboxCollector(Collector):
    """Figures of all volumes, label `volume`, and of the diskbox.

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
            "rephub_diskbox_ready", "Whether it follows the control log", float(document["ready"])
        )
        yield GaugeMetricFamily(
            "rephub_diskbox_views", "Volumes of fail-over tests that are open", len(document["fots"])
        )
        for name, text in GAUGES.items():
            yield by_volume(
                GaugeMetricFamily,
                f"rephub_diskbox_{name}",
                text,
                {of: found[name] for of, found in volumes.items()},
            )
        for name, text in FLAGS.items():
            yield by_volume(
                GaugeMetricFamily,
                f"rephub_diskbox_{name}",
                text,
                {of: bool(found[name]) for of, found in volumes.items()},
            )
        yield by_volume(
            GaugeMetricFamily,
            "rephub_diskbox_pins",
            "Views and moves that hold the history",
            {of: len(found["pins"]) for of, found in volumes.items()},
        )
        yield by_volume(
            GaugeMetricFamily,
            "rephub_diskbox_latest_timestamp_seconds",
            "When the newest point that can be opened was captured, since the Unix epoch",
            {of: _seconds(found["latest_captured_at"]) for of, found in volumes.items()},
        )
        for name, text in COUNTERS.items():
            yield by_volume(
                CounterMetricFamily,
                f"rephub_diskbox_{name}",
                text,
                {of: found[name] for of, found in volumes.items()},
            )


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
