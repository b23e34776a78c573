"""Which alerts are open: the fold of `rephub.alerts`; pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from rephub.schemas import alerts

SHOWN = (
    "alert", "rule", "severity", "subject_kind", "subject", "since", "text", "hint", "value", "threshold", "unit",
    "last_good_offset", "last_good_at",
)  # fmt: skip
"""Fields of a raise that a document has; its `at` is called `raised_at` there."""

SEVERITIES = {"critical": 0, "warning": 1, "info": 2}
"""The worst first; one that a newer version knows comes last."""


class Key(NamedTuple):
    """What an alert is about: at most one alert of a key is open."""

    rule: str
    subject_kind: str
    subject: str


class OpenAlerts:
    """Alerts that were raised and not cleared, in the order of the topic."""

    def __init__(self) -> None:
        self.open: dict[str, alerts.AlertRaised] = {}
        """By alert id."""
        self.by_key: dict[Key, alerts.AlertRaised] = {}
        self.stats_offsets: dict[Key, int] = {}
        """Of every key that was ever raised: samples up to there were looked at."""
        self.next_offset = 0

    def apply(self, offset: int, record: object) -> bool:
        """Fold a record; one that was folded before, or that changes nothing, returns False.

        Args:
            offset: in the topic.
            record: a raise or a clear; anything else is skipped.
        """
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        if not isinstance(record, alerts.RECORDS):
            return False
        key = Key(record.rule, record.subject_kind, record.subject)
        known = self.stats_offsets.get(key, -1)
        self.stats_offsets[key] = max(record.stats_offset, known)
        if isinstance(record, alerts.AlertRaised):
            if key in self.by_key or record.stats_offset <= known:
                return False  # open already, or the repeat of one that is over
            self.by_key[key] = self.open[record.alert] = record
            return True
        raised = self.open.pop(record.alert, None)
        if raised is None:
            return False
        del self.by_key[Key(raised.rule, raised.subject_kind, raised.subject)]
        return True

    def to_documents(self) -> list[dict[str, Any]]:
        """The open ones, the worst first, then the oldest."""
        found = sorted(
            self.open.values(), key=lambda one: (SEVERITIES.get(one.severity, 3), one.at, one.alert)
        )
        return [document(one) for one in found]


def document(raised: alerts.AlertRaised) -> dict[str, Any]:
    """An alert as JSON; times in microseconds since the Unix epoch."""
    return {name: getattr(raised, name) for name in SHOWN} | {"raised_at": raised.at}
