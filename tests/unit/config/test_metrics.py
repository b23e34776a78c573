"""What each daemon says under `/metrics`, as Prometheus reads it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rephub.agent.delays import BOUNDS_SECONDS
from rephub.agent.metrics import AgentCollector
from rephub.consumers.diskbox.metrics import DiskboxCollector
from rephub.consumers.hub import metrics as hub_metrics
from rephub.core.metrics import registry_with
from rephub.projections.catalogue import Catalogue

OTHER_UNITS = ("_ms", "_us", "_microseconds", "_milliseconds", "_kib", "_mib", "_gib", "_percent", "_minutes")
HOSTILE = 'v"1\\\n{x="y"}'


def agent(volume: str) -> Collector:
    figures: dict[str, Any] = {
        "attached": True, "epoch": 3, "acked_offset": 17, "lag_bytes": 4096, "rpo_seconds": 0.25, "dirty_bytes": 1 << 20,
        "ack_delay": {"buckets": list(range(len(BOUNDS_SECONDS))), "count": 40, "sum_seconds": 1.5},
    }  # fmt: skip
    idle = figures | {"acked_offset": None, "rpo_seconds": None, "ack_delay": None}
    return AgentCollector(lambda: {"volumes": {volume: figures, "idle": idle}})


def diskbox(volume: str) -> Collector:
    figures: dict[str, Any] = {
        "head_offset": 90, "applied_offset": 10, "latest_offset": 80, "earliest_offset": None, "window_seconds": 60.5,
        "journal_bytes": 1 << 30, "index_bytes": 2048, "size_bytes": 1 << 40, "in_gap": True,
        "stopped": {"class": "IntegrityError"}, "pins": {"fot": 12, "move": 13}, "fenced_events": 5,
    }  # fmt: skip
    return DiskboxCollector(lambda: {"ready": True, "fots": [{}, {}], "volumes": {volume: figures}})


def families(collector: Collector) -> dict[str, Metric]:
    """As a scrape sees them, without those of every process."""
    text = generate_latest(registry_with(collector)).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in found.items() if name.startswith("rephub")}


def hub(_volume: str) -> Collector:
    app = SimpleNamespace(ready=True, hub=SimpleNamespace(catalogue=Catalogue(), commands=4))
    return hub_metrics._CatalogueCollector(app)  # type: ignore[arg-type]


@pytest.mark.parametrize("daemon", [agent, diskbox, hub])
def test_names_and_units_are_prometheus_own(daemon: Any) -> None:
    found = families(daemon("vm1"))
    assert found
    for name, family in found.items():
        assert family.documentation
        assert not name.endswith(OTHER_UNITS)
        assert name.startswith(("rephub_agent_", "rephub_diskbox_")) or daemon is hub
        assert {label for sample in family.samples for label in sample.labels} <= {"volume", "state", "le"}
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_the_page_lists_them_all() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| `(rephub_\w+)` \|", text, re.MULTILINE))
    assert listed == {
        f"{name}_total" if family.type == "counter" else name
        for daemon in (agent, diskbox, hub)
        for name, family in families(daemon("vm1")).items()
    }


@pytest.mark.parametrize("daemon", [agent, diskbox])
def test_a_hostile_name_stays_a_label(daemon: Any) -> None:
    found = families(daemon(HOSTILE))
    volumes = {
        sample.labels["volume"]
        for family in found.values()
        for sample in family.samples
        if "volume" in sample.labels
    }
    assert HOSTILE in volumes
    assert volumes <= {HOSTILE, "idle"}


def test_the_figures_of_an_agent() -> None:
    found = families(agent("vm1"))
    values = {
        (sample.name, sample.labels["volume"]): sample.value
        for family in found.values()
        for sample in family.samples
    }
    assert values["rephub_agent_rpo_seconds", "vm1"] == 0.25
    assert ("rephub_agent_rpo_seconds", "idle") not in values
    assert values["rephub_agent_ack_delay_seconds_count", "vm1"] == 40
    assert values["rephub_agent_attached", "idle"] == 1


def test_the_figures_of_a_diskbox() -> None:
    found = families(diskbox("vm1"))
    values = {sample.name: sample.value for family in found.values() for sample in family.samples}
    assert values["rephub_diskbox_views"] == 2
    assert values["rephub_diskbox_stopped"] == values["rephub_diskbox_in_gap"] == 1
    assert values["rephub_diskbox_pins"] == 2
    assert values["rephub_diskbox_fenced_events_total"] == 5
    assert "rephub_diskbox_earliest_offset" not in values
    assert values["rephub_diskbox_window_seconds"] == 60.5
