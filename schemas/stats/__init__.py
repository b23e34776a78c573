# ruff: noqa: E501
"""Typed records of `rephub.stats`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSample:
    """What an agent saw of one volume since its last sample."""

    at: int
    source: str
    interval_us: int
    volume: str
    group: str
    epoch: int
    attached: bool
    writes: int
    written_bytes: int
    unacked_bytes: int
    dirty_bytes: int
    acked_offset: int
    rpo_us: int | None = None
    ack_delays: tuple[int, ...]
    sampled_blocks: int
    entropy_sum: float
    packed_sum: float
    random_blocks: int
    turned_blocks: int
    rewritten_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSample:
    """What a daemon says of its own process and host."""

    at: int
    source: str
    interval_us: int
    kind: str
    pid: int
    cpu_us: int
    rss_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
    dropped_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionSample:
    """What a diskbox sees of one volume."""

    at: int
    source: str
    interval_us: int
    volume: str
    head_offset: int
    applied_offset: int
    latest_offset: int | None = None
    earliest_offset: int | None = None
    window_us: int
    journal_bytes: int
    latest_age_us: int | None = None
    pins: int
    in_gap: bool
    stopped: str
    index_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSample:
    """What a diskbox sees of one open view."""

    at: int
    source: str
    interval_us: int
    volume: str
    view: str
    offset: int
    kind: str
    hydrated_events: int
    hydrate_total_events: int
    scratch_bytes: int


Record = CaptureSample | ProcessSample | ProjectionSample | ViewSample
RECORDS: tuple[type[Record], ...] = (CaptureSample, ProcessSample, ProjectionSample, ViewSample,)
