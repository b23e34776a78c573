"""Open alerts as the fold of `rephub.alerts`."""

from __future__ import annotations

from typing import Any

from rephub.projections.alerts import Key, OpenAlerts
from rephub.schemas import alerts

OF = {"rule": "gap_open", "subject_kind": "volume", "subject": "v1", "source": "monitor/m1"}
KEY = Key("gap_open", "volume", "v1")


def raised(number: int, **changes: Any) -> alerts.AlertRaised:
    fields = {
        "id": f"r{number}", "at": number, "alert": f"a{number}", "stats_offset": number, "severity": "critical",
        "since": number - 1, "text": "t", "hint": "h", "value": 1.0, "threshold": 0.5, "unit": "1",
    }  # fmt: skip
    return alerts.AlertRaised(**(OF | fields | changes))


def cleared(number: int, of: alerts.AlertRaised) -> alerts.AlertCleared:
    return alerts.AlertCleared(
        **(OF | {"subject": of.subject, "rule": of.rule}), id=f"c{number}", at=number, alert=of.alert,
        stats_offset=number, raised_at=of.at, text="over",
    )  # fmt: skip


def test_raised_then_cleared_then_raised_again() -> None:
    fold = OpenAlerts()
    assert fold.apply(0, raised(1))
    assert fold.by_key == {KEY: raised(1)}
    assert fold.apply(1, cleared(5, raised(1)))
    assert (fold.open, fold.by_key) == ({}, {})
    assert fold.stats_offsets == {KEY: 5}
    assert fold.apply(2, raised(9))
    assert [document["alert"] for document in fold.to_documents()] == ["a9"]
    assert fold.to_documents()[0]["raised_at"] == 9


def test_a_repeat_that_lands_after_the_clear_opens_nothing() -> None:
    fold = OpenAlerts()
    fold.apply(0, raised(1))
    fold.apply(1, cleared(5, raised(1)))
    assert not fold.apply(2, raised(1))
    assert fold.open == {}


def test_what_changes_nothing_says_so() -> None:
    fold = OpenAlerts()
    assert not fold.apply(0, cleared(1, raised(0))), "never raised"
    assert fold.apply(1, raised(2))
    assert not fold.apply(1, raised(2)), "the same record again"
    assert not fold.apply(2, raised(3)), "it is open already"
    assert not fold.apply(3, cleared(4, raised(3))), "the clear of an alert that did not count"
    assert not fold.apply(4, "no record of alerts")
    assert list(fold.open) == ["a2"]


def test_the_worst_comes_first_then_the_oldest() -> None:
    fold = OpenAlerts()
    for offset, (number, severity) in enumerate(
        [(1, "info"), (2, "warning"), (3, "new"), (4, "critical"), (5, "critical")]
    ):
        fold.apply(offset, raised(number, severity=severity, subject=f"v{number}"))
    assert [one["alert"] for one in fold.to_documents()] == ["a4", "a5", "a2", "a1", "a3"]


def test_a_clear_that_names_another_subject_ends_the_alert_that_it_names() -> None:
    fold = OpenAlerts()
    fold.apply(0, raised(1))
    assert fold.apply(1, cleared(2, raised(1, subject="v2")))
    assert (fold.open, fold.by_key) == ({}, {})
