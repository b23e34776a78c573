"""Prometheus' own programs, as `make setup` unpacks them, and which metrics our files ask them for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import services

TOP = Path(__file__).resolve().parent.parent
INFRA = TOP / "infra"
RULES = INFRA / "prometheus/rules.yaml"
DASHBOARD = INFRA / "grafana/rephub.json"
UNPACKED = TOP / ".cache/prometheus/usr/bin"

FUNCTIONS = re.compile(r"\b(volume|daemon):(rephub_\w+):(\w+)\b")
METRIC = re.compile(r"\b(rephub_\w+|process_\w+|python_\w+)\b")


def program(name: str) -> str:
    """Path of promtool or prometheus; where it is missing the test is skipped, or with REQUIRE fails."""
    found = UNPACKED / name
    if found.exists():
        return str(found)
    if there := shutil.which(name):
        return there
    services.cannot(f"{name} is not here: make setup")
    raise AssertionError


def promtool(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; stdout and stderr are one text."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode())


def rules() -> list[dict[str, Any]]:
    """All rules, alerts and records."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of rules and dashboard, and whose it is."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    document = dashboard()
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def recorded() -> set[str]:
    """Names that our own rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def metrics_of(expression: str) -> set[str]:
    """Metrics of daemons that an expression names; those of our rules are left out."""
    return set(METRIC.findall(FUNCTIONS.sub("", expression)))


def records_of(expression: str) -> set[str]:
    """Names of recording rules in an expression."""
    return {":".join(found) for found in FUNCTIONS.findall(expression)}


def used() -> set[str]:
    """Metrics of daemons that rules and dashboard name."""
    return set().union(*(metrics_of(expression) for _, expression in expressions()))
