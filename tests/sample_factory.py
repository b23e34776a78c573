"""Samples of a healthy second, with changes."""

from __future__ import annotations

from typing import Any

from control_world import START
from rephub.projections.rules import SECOND_US
from rephub.schemas import stats

HEAD = {"interval_us": SECOND_US}


def capture(second: int, volume: str = "v1", **changes: Any) -> stats.CaptureSample:
    fields = {
        "at": START + second * SECOND_US, "source": "agent/a1", "volume": volume, "group": "g", "epoch": 1,
        "attached": True, "writes": 10, "written_bytes": 40960, "unacked_bytes": 0, "dirty_bytes": 0,
        "acked_offset": 10 * second, "rpo_us": 20_000, "ack_delays": (0,) * 16, "sampled_blocks": 0,
        "entropy_sum": 0.0, "packed_sum": 0.0, "random_blocks": 0, "turned_blocks": 0, "rewritten_blocks": 0,
    }  # fmt: skip
    return stats.CaptureSample(**(HEAD | fields | changes))


def projection(second: int, volume: str = "v1", **changes: Any) -> stats.ProjectionSample:
    fields = {
        "at": START + second * SECOND_US, "source": "diskbox/d1", "volume": volume, "head_offset": 10 * second,
        "applied_offset": 0, "latest_offset": 10 * second, "earliest_offset": 0, "window_us": 3600 * SECOND_US,
        "journal_bytes": 1000, "latest_age_us": 0, "pins": 0, "in_gap": False, "stopped": "", "index_bytes": 100,
    }  # fmt: skip
    return stats.ProjectionSample(**(HEAD | fields | changes))


def process(second: int, source: str, **changes: Any) -> stats.ProcessSample:
    fields = {
        "at": START + second * SECOND_US, "source": source, "kind": source.partition("/")[0], "pid": 1, "cpu_us": 1000,
        "rss_bytes": 1, "disk_free_bytes": 500, "disk_total_bytes": 1000, "dropped_samples": 0,
    }  # fmt: skip
    return stats.ProcessSample(**(HEAD | fields | changes))
