"""What `/metrics` of every daemon has beside its own figures: version, host, samples; process, platform, garbage collector."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rephub.core.samples import SamplePublisher


class DaemonCollector(Collector):
    """What every daemon says of itself and its host.

    Args:
        directory: whose file system is looked at.
        samples: publishes the daemon's samples.
    """

    def __init__(self, directory: Path, samples: SamplePublisher) -> None:
        self._directory, self._samples = directory, samples
        self._version = importlib.metadata.version("rephub")

    def collect(self) -> Iterator[Metric]:
        """One family for each figure; no space where the file system cannot be asked."""
        build = GaugeMetricFamily("rephub_build_info", "Version that runs; always 1", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield GaugeMetricFamily(
            "rephub_time_seconds", "Clock of the daemon's host, since the Unix epoch", time.time()
        )
        free = GaugeMetricFamily(
            "rephub_filesystem_avail_bytes", "Free where the daemon's state directory is", labels=[]
        )
        size = GaugeMetricFamily("rephub_filesystem_size_bytes", "Of that file system", labels=[])
        try:
            usage = psutil.disk_usage(os.fspath(self._directory))
        except OSError:
            pass
        else:
            free.add_metric([], usage.free)
            size.add_metric([], usage.total)
        yield from (free, size)
        yield CounterMetricFamily(
            "rephub_samples_published", "Samples on rephub.stats since the start", self._samples.published
        )
        yield CounterMetricFamily(
            "rephub_samples_dropped",
            "Samples that Kafka did not take in time, since the start",
            self._samples.dropped,
        )


def by_volume(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, values: Mapping[str, Any]
) -> Metric:
    """A family with a sample for each volume that has a value; label `volume`."""
    family = kind(name, text, labels=["volume"])
    for volume, value in values.items():
        if value is not None:
            family.add_metric([volume], float(value))
    return family


def registry_with(*collectors: Collector) -> CollectorRegistry:
    """The process's metrics and those of the collectors, which are asked at each scrape."""
    found = CollectorRegistry()
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    GCCollector(registry=found)
    for collector in collectors:
        # Not described at once: a daemon has nothing to say before it has started.
        found.register(collector)
    return found
