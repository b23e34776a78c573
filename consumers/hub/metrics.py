"""What `/metrics` of the hub says: the catalogue in Prometheus' words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rephub.core.metrics import DaemonCollector, registry_with
from rephub.projections.states import STATES

if TYPE_CHECKING:
    from rephub.consumers.hub.app import HubApp


class _CatalogueCollector(Collector):
    """Reads the catalogue when it is asked."""

    def __init__(self, app: HubApp) -> None:
        self._app = app

    def collect(self) -> Iterable[Metric]:
        hub = self._app.hub
        yield GaugeMetricFamily("rephub_hub_ready", "Whether commands are answered", float(self._app.ready))
        if hub is None:
            return
        catalogue = hub.catalogue
        yield GaugeMetricFamily("rephub_hub_epoch", "Epoch of the hub in charge", catalogue.hub_epoch)
        yield GaugeMetricFamily("rephub_events_next_offset", "Events folded so far", catalogue.next_offset)
        yield CounterMetricFamily(
            "rephub_events_ignored",
            "Events that changed nothing because they cannot be",
            catalogue.ignored_events,
        )
        yield CounterMetricFamily("rephub_commands", "Commands answered since the start", hub.commands)
        states = GaugeMetricFamily(
            "rephub_volume_state", "1 for the state that the volume is in", labels=["volume", "state"]
        )
        epochs = GaugeMetricFamily("rephub_volume_epoch", "Newest epoch of the volume", labels=["volume"])
        asked = GaugeMetricFamily(
            "rephub_volume_history_seconds", "History window that was asked for", labels=["volume"]
        )
        short = GaugeMetricFamily(
            "rephub_volume_history_short",
            "1 while the limit in bytes makes the window shorter than that",
            labels=["volume"],
        )
        for volume in catalogue.volumes.values():
            if volume.retired:
                continue
            epochs.add_metric([volume.name], volume.epoch)
            asked.add_metric([volume.name], volume.history_seconds)
            short.add_metric([volume.name], float(volume.history_short))
            for state in STATES:
                states.add_metric([volume.name, state], float(state == volume.state))
        yield from (states, epochs, asked, short)
        fots = [fot for fot in catalogue.fots.values() if not fot.ended]
        yield GaugeMetricFamily("rephub_fots", "Fail-over tests that are open", len(fots))


def registry(app: HubApp) -> CollectorRegistry:
    """The hub's metrics and those of its process."""
    return registry_with(_CatalogueCollector(app), DaemonCollector(app.settings.state_dir, app.samples))
