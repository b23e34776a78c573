"""The detector on recorded sessions: real tools on a real file system on a protected disk (docs/detection.md)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from attack_traces import evaluate, load, table

TRACES = load()
OUTCOMES = [evaluate(trace) for trace in TRACES]
PAGE = Path(__file__).resolve().parents[3] / "docs/detection.md"

DETECTED = {"t1", "t2", "t3", "t5", "h2", "h3", "h4", "h5"}
"""Sessions whose attack is found."""

FALSE_ALARMS = {"encrypted_backup": 1, "media": 1}
"""Honest workloads that are taken for an attack, in all sessions, so many times."""


def test_what_was_detected_is_detected() -> None:
    found = {outcome.trace.name for outcome in OUTCOMES if outcome.detected_after_us is not None}
    assert found >= DETECTED


def test_no_more_false_alarms() -> None:
    alarms = Counter(name for outcome in OUTCOMES for name in outcome.false_alarms)
    assert alarms <= Counter(FALSE_ALARMS)


def test_the_point_named_lies_before_the_attack() -> None:
    for outcome in OUTCOMES:
        if outcome.since_before_us is not None:
            assert outcome.since_before_us > 0, outcome.trace.name


def test_the_page_has_the_figures_of_the_traces() -> None:
    assert table(OUTCOMES) in PAGE.read_text(), "run: .venv/bin/python tests/measure/detection.py page"
