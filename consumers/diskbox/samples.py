"""The diskbox's samples: its `/status` document, in the words of `rephub.stats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rephub.core.config import Settings
from rephub.core.samples import ProcessMeter, SamplePublisher
from rephub.schemas import stats


class DiskboxSamples:
    """Samples of a diskbox, its volumes and its views.

    Args:
        settings: of the diskbox.
        status: makes the `/status` document.
    """

    def __init__(self, settings: Settings, status: Callable[[], dict[str, Any]]) -> None:
        self._source, self._status = f"diskbox/{settings.diskbox.id}", status
        self._meter = ProcessMeter("diskbox", settings.diskbox.id, settings.state_dir)
        self.publisher = SamplePublisher(settings, self.take, self._meter.keep)

    def take(self, at: int, interval_us: int) -> list[stats.Record]:
        """One sample for each volume and view and one of the process."""
        document = self._status()
        head: dict[str, Any] = {"at": at, "source": self._source, "interval_us": interval_us}
        samples: list[stats.Record] = []
        for volume, found in document["volumes"].items():
            captured_at = found["latest_captured_at"]
            samples.append(stats.ProjectionSample(
                **head, volume=volume, head_offset=_offset(found["head_offset"]),
                applied_offset=_offset(found["applied_offset"]), latest_offset=found["latest_offset"],
                earliest_offset=found["earliest_offset"], window_us=int(found["window_seconds"] * 1e6),
                journal_bytes=found["journal_bytes"],
                latest_age_us=None if captured_at is None else max(0, at - captured_at),
                pins=len(found["pins"]), in_gap=found["in_gap"], index_bytes=found["index_bytes"],
                stopped="" if found["stopped"] is None else str(found["stopped"].get("message", "stopped")),
            ))  # fmt: skip
        for view in document["fots"]:
            hydration = view["hydration"] or {}
            samples.append(stats.ViewSample(
                **head, volume=view["volume"], view=view["fot"], offset=view["offset"], kind="fot",
                hydrated_events=hydration.get("done_events") or 0,
                hydrate_total_events=hydration.get("total_events") or 0, scratch_bytes=view["scratch_bytes"],
            ))  # fmt: skip
        samples += [
            stats.ViewSample(
                **head, volume=view["volume"], view=view["failover"], offset=view["offset"], kind="failover",
                hydrated_events=0, hydrate_total_events=0, scratch_bytes=view["overlay_bytes"],
            )
            for view in document["failovers"]
        ]  # fmt: skip
        return [*samples, self._meter.take(at, interval_us, self.publisher.dropped)]


def _offset(offset: int | None) -> int:
    return -1 if offset is None else offset
