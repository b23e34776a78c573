"""What happened in one minute, of a volume, group, agent or diskbox; pure. Documents, as a Faust table holds them."""

from __future__ import annotations

from typing import Any

from rephub.schemas import stats

MINUTE_SECONDS = 60
KEEP_SECONDS = 3600
"""How long a minute is kept."""

Minute = dict[str, Any]


def empty() -> Minute:
    """A minute in which nothing was seen."""
    return {
        "offset": -1, "samples": 0, "writes": 0, "written_bytes": 0, "rpo_us_max": 0, "unacked_bytes_max": 0,
        "detached": 0, "sampled_blocks": 0, "random_blocks": 0, "turned_blocks": 0, "pins_max": 0, "stopped": 0,
    }  # fmt: skip


def add(minute: Minute, offset: int, sample: stats.CaptureSample | stats.ProjectionSample) -> Minute:
    """The minute with one sample more; a sample that is in it already, because it was delivered twice, changes nothing.

    Args:
        minute: stays as it is.
        offset: of the sample in rephub.stats.
        sample: of a volume that belongs there.
    """
    if offset <= minute["offset"]:
        return minute
    new = {**minute, "offset": offset, "samples": minute["samples"] + 1}
    if isinstance(sample, stats.ProjectionSample):
        new["pins_max"] = max(minute["pins_max"], sample.pins)
        new["stopped"] += bool(sample.stopped)
        return new
    for name in ("writes", "written_bytes", "sampled_blocks", "random_blocks", "turned_blocks"):
        new[name] += getattr(sample, name)
    new["rpo_us_max"] = max(minute["rpo_us_max"], sample.rpo_us or 0)
    new["unacked_bytes_max"] = max(minute["unacked_bytes_max"], sample.unacked_bytes)
    new["detached"] += not sample.attached
    return new


def keys(sample: stats.CaptureSample | stats.ProjectionSample) -> list[str]:
    """Whose minutes a sample counts in: of the volume, its group, and the daemon that took the sample."""
    found = [sample.source]
    if isinstance(sample, stats.CaptureSample):
        found.append(f"volume/{sample.volume}")
        if sample.group:
            found.append(f"group/{sample.group}")
    return found
