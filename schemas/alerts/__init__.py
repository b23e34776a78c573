# ruff: noqa: E501
"""Typed records of `rephub.alerts`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCleared:
    """The condition of an alert has not held for as long as the rule asks, or its subject is gone."""

    id: str
    at: int
    source: str
    alert: str
    rule: str
    subject_kind: str
    subject: str
    stats_offset: int
    raised_at: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRaised:
    """A rule's condition has held for as long as the rule asks."""

    id: str
    at: int
    source: str
    alert: str
    rule: str
    subject_kind: str
    subject: str
    stats_offset: int
    severity: str
    since: int
    text: str
    hint: str
    value: float
    threshold: float
    unit: str
    last_good_offset: int | None = None
    last_good_at: int | None = None


Record = AlertCleared | AlertRaised
RECORDS: tuple[type[Record], ...] = (AlertCleared, AlertRaised,)
