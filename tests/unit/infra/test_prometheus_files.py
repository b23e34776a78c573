"""Rules, configuration and dashboard: judged by promtool, and by what the documents and daemons know."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prometheus import (
    DASHBOARD,
    INFRA,
    RULES,
    TOP,
    dashboard,
    expressions,
    metrics_of,
    promtool,
    recorded,
    records_of,
    rules,
    used,
)
from rephub.infra.grafana import dashboard as made
from rephub.projections.states import STATES

OPERATIONS = (TOP / "docs/operations.md").read_text()
LISTED = set(re.findall(r"^\| `(rephub_\w+)` \|", OPERATIONS, re.MULTILINE))
OF_EVERY_PROCESS = {
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
}


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout


def test_the_rules_pass_their_tests() -> None:
    done = promtool("test", "rules", str(INFRA / "prometheus/rules_test.yaml"))
    assert done.returncode == 0, done.stdout


def test_a_wrong_rule_fails_them(tmp_path: Path) -> None:
    """The tests see what they are for: each alert without its condition, or with another time, makes one of them fail."""
    shutil.copy(INFRA / "prometheus/rules_test.yaml", tmp_path)
    broken = yaml.safe_load(RULES.read_text())
    for group in broken["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"] = f"({rule['expr']}) < -1e18"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(broken))
    done = promtool("test", "rules", str(tmp_path / "rules_test.yaml"))
    assert done.returncode != 0
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}, " in done.stdout, f"no test expects {rule['alert']}"


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yaml", "rules.yaml"):
        shutil.copy(INFRA / "prometheus" / name, tmp_path)
    (tmp_path / "targets").mkdir()
    shutil.copy(INFRA / "prometheus/compose-targets.json", tmp_path / "targets/compose.json")
    done = promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    assert done.returncode == 0, done.stdout
    (tmp_path / "targets/compose.json").write_text('[{"targets": "hub:8080"}]')
    assert promtool("check", "config", str(tmp_path / "prometheus.yaml")).returncode != 0


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    headings = {line.removeprefix("### ") for line in OPERATIONS.splitlines() if line.startswith("### ")}
    anchors = {heading.lower(): heading for heading in headings}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) > 15
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    named = set()
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "description", "runbook_url"}, rule["alert"]
        page, _, anchor = annotations["runbook_url"].partition("#")
        assert page == "docs/operations.md"
        named.add(anchors[anchor])
    assert named == {heading for heading in headings if heading.startswith("Rephub")}


def test_all_that_is_asked_for_exists() -> None:
    assert used() <= LISTED | OF_EVERY_PROCESS | {"rephub_agent_ack_delay_seconds_bucket"}
    for whose, expression in expressions():
        assert metrics_of(expression) | records_of(expression) or "up{" in expression, whose
        assert records_of(expression) <= recorded(), whose
        for state in re.findall(r'state=~?"([a-z_]+)"', expression):
            assert state in STATES, whose


def test_the_dashboard_is_what_is_made() -> None:
    assert DASHBOARD.read_text() == made.text()


@pytest.mark.parametrize("panel", dashboard()["panels"], ids=lambda panel: str(panel["title"]))
def test_a_panel_is_one_that_grafana_takes(panel: dict[str, Any]) -> None:
    place = panel["gridPos"]
    assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    if panel["type"] == "row":
        assert panel["panels"] == []
        return
    assert panel["type"] in ("stat", "timeseries", "heatmap", "state-timeline")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["expr"]
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_the_dashboard_as_a_whole() -> None:
    document = dashboard()
    assert 36 <= document["schemaVersion"] <= 39, (
        "Grafana 10 is at 36 to 38, 11 at 39; older ones are migrated"
    )
    assert "id" not in document, "Grafana gives it"
    assert document["uid"]
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    text = json.dumps(document)
    assert set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval", "__all"} == set(variables)
    cells = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, f"{panel['title']} lies over another panel"
        cells |= mine


def test_promtool_reads_what_the_dashboard_asks(tmp_path: Path) -> None:
    """As rules: the same language; Grafana's variables stand for a regular expression and a duration."""
    asked = [
        {"record": f"asked:{number}", "expr": expr.replace("$volume", ".*").replace("$__rate_interval", "1m")}
        for number, (_, expr) in enumerate(expressions())
        if not expr.startswith("label_values(")
    ]
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout
