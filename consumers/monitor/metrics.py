"""What `/metrics` of the monitor says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rephub.core.metrics import DaemonCollector, registry_with
from rephub.projections.rules import RULES

if TYPE_CHECKING:
    from rephub.consumers.monitor.app import MonitorApp


class _MonitorCollector(Collector):
    """Reads the monitor when it is asked."""

    def __init__(self, app: MonitorApp) -> None:
        self._app = app

    def collect(self) -> Iterable[Metric]:
        monitor = self._app.watcher
        yield GaugeMetricFamily(
            "rephub_monitor_ready", "Whether samples are looked at", float(self._app.ready)
        )
        if monitor is None:
            return
        yield CounterMetricFamily(
            "rephub_monitor_samples", "Samples looked at since the start", monitor.samples
        )
        open_now = Counter(key.rule for key in monitor.alerts.by_key)
        alerts = GaugeMetricFamily("rephub_alerts", "Alerts that are open", labels=["rule", "severity"])
        raised = CounterMetricFamily(
            "rephub_alerts_raised", "Alerts raised since the start", labels=["rule", "severity"]
        )
        for rule in RULES.values():
            alerts.add_metric([rule.name, rule.severity], open_now[rule.name])
            raised.add_metric([rule.name, rule.severity], monitor.raised.get((rule.name, rule.severity), 0))
        yield alerts
        yield raised
        told = CounterMetricFamily(
            "rephub_alert_deliveries", "Alerts handed to sinks since the start", labels=["sink", "outcome"]
        )
        for sink in self._app.sinks.stats():
            for outcome in ("sent", "failed", "dropped"):
                told.add_metric([sink["name"], outcome], sink[outcome])
        yield told


def registry(app: MonitorApp) -> CollectorRegistry:
    """The monitor's metrics and those of its process."""
    return registry_with(_MonitorCollector(app), DaemonCollector(app.settings.state_dir, app.samples))
