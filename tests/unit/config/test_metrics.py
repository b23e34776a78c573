"""What each daemon says under `/metrics`, as Prometheus reads it."""

from __future__ import annotations

import importlib.metadata
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from prometheus import promtool
from rephub.agent.delays import BOUNDS_SECONDS
from rephub.agent.metrics import AgentCollector
from rephub.consumers.diskbox.metrics import DiskboxCollector
from rephub.consumers.hub import metrics as hub_metrics
from rephub.consumers.monitor import metrics as monitor_metrics
from rephub.core.metrics import DaemonCollector, registry_with
from rephub.projections.alerts import OpenAlerts
from rephub.projections.catalogue import Catalogue

LABELS = {"volume", "state", "le", "version", "rule", "severity", "sink", "outcome"}
"""Each with few values for ever: no offsets, ids or texts."""
OTHER_UNITS = ("_ms", "_us", "_microseconds", "_milliseconds", "_kib", "_mib", "_gib", "_percent", "_minutes")
HOSTILE = 'v"1\\\n{x="y"}'


def agent(volume: str) -> Collector:
    figures: dict[str, Any] = {
        "attached": True, "epoch": 3, "acked_offset": 17, "lag_bytes": 4096, "rpo_seconds": 0.25, "dirty_bytes": 1 << 20,
        "ack_delay": {"buckets": list(range(len(BOUNDS_SECONDS))), "count": 40, "sum_seconds": 1.5},
        "written": {"writes": 40, "bytes": 163840, "entropy_sum": 1.0, "sampled_blocks": 3, "random_blocks": 2}, "throttled": {"writes": 4, "seconds": 0.2},
        "gap_since_at": None, "gaps": 2,
    }  # fmt: skip
    idle = figures | {
        "acked_offset": None, "rpo_seconds": None, "ack_delay": None, "written": None, "throttled": None,
        "gap_since_at": 1_700_000_000_000_000,
    }  # fmt: skip
    document = {"ready": True, "workers": [11, 12], "volumes": {volume: figures, "idle": idle}}
    return AgentCollector(lambda: document)


def diskbox(volume: str) -> Collector:
    figures: dict[str, Any] = {
        "head_offset": 90, "applied_offset": 10, "latest_offset": 80, "earliest_offset": None, "window_seconds": 60.5,
        "journal_bytes": 1 << 30, "index_bytes": 2048, "size_bytes": 1 << 40, "in_gap": True,
        "stopped": {"class": "IntegrityError"}, "pins": {"fot": 12, "move": 13}, "fenced_events": 5,
        "applied_events": 70, "applied_bytes": 71, "latest_captured_at": 1_700_000_000_500_000,
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


def monitor(_volume: str) -> Collector:
    watcher = SimpleNamespace(samples=7, raised={("gap_open", "critical"): 2}, alerts=OpenAlerts())
    sinks = SimpleNamespace(stats=lambda: [{"name": "log", "sent": 1, "failed": 0, "dropped": 0}])
    app = SimpleNamespace(ready=True, watcher=watcher, sinks=sinks)
    return monitor_metrics._MonitorCollector(app)  # type: ignore[arg-type]


def every(_volume: str) -> Collector:
    """What is said beside by each of them."""
    return DaemonCollector(Path("/"), SimpleNamespace(published=7, dropped=1))  # type: ignore[arg-type]


DAEMONS = (agent, diskbox, hub, monitor, every)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_names_and_units_are_prometheus_own(daemon: Any) -> None:
    found = families(daemon("vm1"))
    assert found
    for name, family in found.items():
        assert family.documentation
        assert not name.endswith(OTHER_UNITS)
        assert name.startswith(f"rephub_{daemon.__name__}_") or daemon in (hub, monitor, every)
        assert {label for sample in family.samples for label in sample.labels} <= LABELS
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


@pytest.mark.parametrize("daemon", [agent, diskbox, hub, monitor])
def test_promtool_finds_nothing_to_say(daemon: Any) -> None:
    done = promtool("check", "metrics", stdin=generate_latest(registry_with(daemon(HOSTILE), every(""))))
    assert (done.returncode, done.stdout) == (0, "")


def test_promtool_would_say_it() -> None:
    wrong = b"# HELP rephub_lag_ms Behind\n# TYPE rephub_lag_ms counter\nrephub_lag_ms 1\n"
    done = promtool("check", "metrics", stdin=wrong)
    assert done.returncode != 0
    assert 'should have "_total" suffix' in done.stdout


def test_the_page_lists_them_all() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| `(rephub_\w+)` \|", text, re.MULTILINE))
    assert listed == {
        f"{name}_total" if family.type == "counter" else name
        for daemon in DAEMONS
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
        (sample.name, sample.labels.get("volume", "")): sample.value
        for family in found.values()
        for sample in family.samples
    }
    assert values["rephub_agent_rpo_seconds", "vm1"] == 0.25
    assert ("rephub_agent_rpo_seconds", "idle") not in values
    assert values["rephub_agent_ack_delay_seconds_count", "vm1"] == 40
    assert values["rephub_agent_attached", "idle"] == 1
    assert values["rephub_agent_captured_writes_total", "vm1"] == 40
    assert values["rephub_agent_captured_bytes_total", "vm1"] == 163840
    assert ("rephub_agent_captured_writes_total", "idle") not in values
    assert values["rephub_agent_sampled_blocks_total", "vm1"] == 3
    assert values["rephub_agent_random_blocks_total", "vm1"] == 2
    assert values["rephub_agent_throttled_writes_total", "vm1"] == 4
    assert values["rephub_agent_throttle_seconds_total", "vm1"] == 0.2
    assert (values["rephub_agent_in_gap", "vm1"], values["rephub_agent_in_gap", "idle"]) == (0, 1)
    assert values["rephub_agent_gaps_total", "vm1"] == 2
    assert (values["rephub_agent_ready", ""], values["rephub_agent_workers", ""]) == (1, 2)


def test_the_figures_of_a_diskbox() -> None:
    found = families(diskbox("vm1"))
    values = {sample.name: sample.value for family in found.values() for sample in family.samples}
    assert values["rephub_diskbox_views"] == 2
    assert values["rephub_diskbox_stopped"] == values["rephub_diskbox_in_gap"] == 1
    assert values["rephub_diskbox_pins"] == 2
    assert values["rephub_diskbox_fenced_events_total"] == 5
    assert "rephub_diskbox_earliest_offset" not in values
    assert values["rephub_diskbox_window_seconds"] == 60.5
    assert values["rephub_diskbox_applied_events_total"] == 70
    assert values["rephub_diskbox_applied_bytes_total"] == 71
    assert values["rephub_diskbox_latest_timestamp_seconds"] == 1_700_000_000.5


def test_the_figures_of_every_daemon() -> None:
    found = families(every(""))
    values = {sample.name: sample for family in found.values() for sample in family.samples}
    assert values["rephub_build_info"].labels == {"version": importlib.metadata.version("rephub")}
    assert values["rephub_samples_published_total"].value == 7
    assert values["rephub_samples_dropped_total"].value == 1
    assert abs(values["rephub_time_seconds"].value - time.time()) < 60
    free, size = values["rephub_filesystem_avail_bytes"].value, values["rephub_filesystem_size_bytes"].value
    assert 0 < free < size


def test_a_file_system_that_is_gone_is_left_out(tmp_path: Path) -> None:
    samples: Any = SimpleNamespace(published=0, dropped=0)
    found = families(DaemonCollector(tmp_path / "gone", samples))
    assert found["rephub_filesystem_avail_bytes"].samples == []
    assert found["rephub_time_seconds"].samples
