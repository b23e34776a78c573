"""What `/metrics` of every daemon has beside its own figures: process, platform, garbage collector."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector


def registry_with(collector: Collector) -> CollectorRegistry:
    """The process's metrics and those of the collector, which is asked at each scrape."""
    found = CollectorRegistry()
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    GCCollector(registry=found)
    # Not described at once: a daemon has nothing to say before it has started.
    found.register(collector)
    return found
