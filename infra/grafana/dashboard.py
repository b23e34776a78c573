"""Writes `rephub.json`, the Grafana dashboard (schema of Grafana 10 and 11) for the metrics of all daemons.

    python infra/grafana/dashboard.py            # writes it
    python infra/grafana/dashboard.py --check    # exit code 1 if the file is not what would be written

The file is what Grafana reads; this is what is edited.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("rephub.json")

SCHEMA_VERSION = 38
"""Of Grafana 10; 11 reads it and migrates."""

COLUMNS = 24
HEIGHT = 8

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
VOLUME = 'volume=~"$volume"'

STATES = {
    "protected": "green", "syncing": "blue", "resyncing": "orange", "paused": "purple", "gap": "red",
    "failed_over": "blue", "promoted": "text", "failed": "dark-red",
}  # fmt: skip

Target = tuple[str, str]
"""Expression and legend."""


def dashboard() -> dict[str, Any]:
    """The document."""
    panels = _placed(
        [
            ("At a glance", [
                _stat("Protected", 'sum(rephub_volume_state{state="protected"})', "none", "green"),
                _stat("Not protected", _not_protected(), "none", "red"),
                _stat("Worst recovery point", f"max(rephub_agent_rpo_seconds{{{VOLUME}}})", "s", "orange", 30),
                _stat("Open critical alerts", 'sum(rephub_alerts{severity="critical"})', "none", "red"),
                _stat("Daemons down", 'count(up{job="rephub"} == 0) or vector(0)', "none", "red"),
                _stat("Fail-over tests", "max(rephub_fots)", "none", "blue"),
            ]),
            ("Capture", [
                _series("Guest writes", "wps", (f"volume:rephub_captured_writes:rate1m{{{VOLUME}}}", "{{volume}}")),
                _series("Guest data", "Bps", (f"volume:rephub_captured_bytes:rate1m{{{VOLUME}}}", "{{volume}}")),
                _series("Recovery point", "s", (f"max by (volume) (rephub_agent_rpo_seconds{{{VOLUME}}})", "{{volume}}")),
                _series("Ack delay, 99 %", "s", (f"volume:rephub_ack_delay_seconds:p99_5m{{{VOLUME}}}", "{{volume}}")),
                _heatmap("Ack delay", f"sum by (le) (increase(rephub_agent_ack_delay_seconds_bucket{{{VOLUME}}}[$__rate_interval]))"),
                _series("Captured, not acked", "bytes", (f"max by (volume) (rephub_agent_lag_bytes{{{VOLUME}}})", "{{volume}}")),
                _series("Dirty", "bytes", (f"max by (volume) (rephub_agent_dirty_bytes{{{VOLUME}}})", "{{volume}}")),
                _series(
                    "Slowed down writes", "wps",
                    (f"sum by (volume) (rate(rephub_agent_throttled_writes_total{{{VOLUME}}}[$__rate_interval]))", "{{volume}}"),
                ),
                _series("Looks random", "percentunit", (f"volume:rephub_random_blocks:ratio_rate5m{{{VOLUME}}}", "{{volume}}")),
                _series("Gaps", "none", (f"sum by (volume) (increase(rephub_agent_gaps_total{{{VOLUME}}}[1h]))", "{{volume}} in 1 h")),
            ]),
            ("Recovery side", [
                _timeline("State", f"max by (volume, state) (rephub_volume_state{{{VOLUME}}}) == 1"),
                _series("History window", "s",
                    (f"max by (volume) (rephub_diskbox_window_seconds{{{VOLUME}}})", "{{volume}}"),
                    (f"max by (volume) (rephub_volume_history_seconds{{{VOLUME}}})", "{{volume}} asked")),
                _series("Journal of the window", "bytes", (f"max by (volume) (rephub_diskbox_journal_bytes{{{VOLUME}}})", "{{volume}}")),
                _series("Not read yet", "none", (f"volume:rephub_unread_events:max{{{VOLUME}}}", "{{volume}} events")),
                _series("Applied", "eps",
                    (f"sum by (volume) (rate(rephub_diskbox_applied_events_total{{{VOLUME}}}[$__rate_interval]))", "{{volume}}")),
                _series("Applied data", "Bps",
                    (f"sum by (volume) (rate(rephub_diskbox_applied_bytes_total{{{VOLUME}}}[$__rate_interval]))", "{{volume}}")),
                _series("Age of the newest point", "s",
                    (f"time() - max by (volume) (rephub_diskbox_latest_timestamp_seconds{{{VOLUME}}})", "{{volume}}")),
                _series("Holding the history", "none", (f"max by (volume) (rephub_diskbox_pins{{{VOLUME}}})", "{{volume}}")),
                _series("Index in memory", "bytes", (f"max by (volume) (rephub_diskbox_index_bytes{{{VOLUME}}})", "{{volume}}")),
            ]),
            ("Daemons", [
                _series("CPU", "percentunit", ('rate(process_cpu_seconds_total{job="rephub"}[$__rate_interval])', "{{kind}} {{daemon}}")),
                _series("Memory", "bytes", ('process_resident_memory_bytes{job="rephub"}', "{{kind}} {{daemon}}")),
                _series("Free space", "percentunit", ("daemon:rephub_filesystem_avail:ratio", "{{kind}} {{daemon}}")),
                _series("Open alerts", "none", ("sum by (rule) (rephub_alerts) > 0", "{{rule}}")),
                _series("Clock skew", "s", ("daemon:rephub_clock_skew_seconds:last", "{{kind}} {{daemon}}")),
                _series("Samples dropped", "none",
                    ("increase(rephub_samples_dropped_total[$__rate_interval])", "{{kind}} {{daemon}}")),
                _series("Commands", "ops", ("sum(rate(rephub_commands_total[$__rate_interval]))", "answered")),
            ]),
        ]
    )  # fmt: skip
    return {
        "uid": "rephub",
        "title": "RepHub",
        "description": "Continuous data protection: capture, journal, recovery side, daemons.",
        "tags": ["rephub"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {"list": [_alerts()]},
        "templating": {"list": [_datasource(), _volumes()]},
        "panels": panels,
    }


def _not_protected() -> str:
    return 'sum(rephub_volume_state{state!~"protected|promoted|failed_over"}) or vector(0)'


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
    }


def _volumes() -> dict[str, Any]:
    query = "label_values(rephub_volume_state, volume)"
    return {
        "name": "volume",
        "label": "Volume",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "volumes"},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "datasource": DATASOURCE,
        "expr": 'ALERTS{alertname=~"Rephub.*", alertstate="firing"}',
        "step": "10s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{kind}} {{daemon}} {{volume}}",
    }


def _targets(*targets: Target, **options: Any) -> list[dict[str, Any]]:
    return [
        {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend} | options
        for number, (expr, legend) in enumerate(targets)
    ]  # fmt: skip


def _panel(kind: str, title: str, width: int, unit: str, targets: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {},
        "targets": targets,
    }


def _stat(title: str, expr: str, unit: str, color: str, limit: float = 1) -> dict[str, Any]:
    """One number; it has the colour from the limit on."""
    panel = _panel("stat", title, 4, unit, _targets((expr, ""), instant=True))
    panel["gridPos"]["h"] = 4
    steps = [{"color": "text", "value": None}, {"color": color, "value": limit}]
    panel["fieldConfig"]["defaults"] |= {
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
    }
    return panel


def _series(title: str, unit: str, *targets: Target) -> dict[str, Any]:
    panel = _panel("timeseries", title, 8, unit, _targets(*targets))
    panel["fieldConfig"]["defaults"] |= {"min": None if unit == "s" and "skew" in title else 0}
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def _heatmap(title: str, expr: str) -> dict[str, Any]:
    panel = _panel("heatmap", title, 8, "none", _targets((expr, "{{le}}"), format="heatmap"))
    panel["options"] = {
        "calculate": False,
        "yAxis": {"unit": "s"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "cellGap": 1,
        "legend": {"show": True},
    }
    return panel


def _timeline(title: str, expr: str) -> dict[str, Any]:
    """The state of each volume as a band: its name is taken from the label, the value is 1."""
    panel = _panel("state-timeline", title, COLUMNS, "none", _targets((expr, "{{volume}}: {{state}}")))
    panel["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byRegexp", "options": f"/: {state}$/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for state, color in STATES.items()
    ]
    panel["options"] = {"showValue": "never", "mergeValues": True, "rowHeight": 0.8}
    return panel


def _placed(rows: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Panels from left to right, each row under its title, with ids."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows:
        found.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}
        )  # fmt: skip
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            place = panel["gridPos"]
            if x + place["w"] > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            place["x"], place["y"] = x, y
            x, tallest = x + place["w"], max(tallest, place["h"])
            found.append(panel)
        y += tallest
    return [panel | {"id": number} for number, panel in enumerate(found, 1)]


def text() -> str:
    """What the file holds."""
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write the file, or with `--check` look whether it is what would be written."""
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text() == text():
            return 0
        print(f"{FILE.name} is not up to date: python infra/grafana/dashboard.py", file=sys.stderr)
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
