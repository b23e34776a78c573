"""The last minutes of `rephub.stats`, by volume and daemon, for pages and `rephub top`; pure."""

from __future__ import annotations

import itertools
import math
import struct
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from rephub.schemas import stats

ROWS_MAX = 900
"""Of a volume: a quarter of an hour."""

SECOND_US = 1_000_000


class Row(NamedTuple):
    """One second of a volume; None where it is not known."""

    at: int
    writes_per_second: float
    written_bytes_per_second: float
    rpo_seconds: float | None
    unacked_bytes: int
    dirty_bytes: int
    lag_events: int
    """Acked in the journal and not read by the diskbox yet."""
    window_seconds: float
    entropy: float | None
    """Bits a byte of the written blocks that were looked into."""
    random_share: float | None
    """Of these, that look like random numbers."""


_PACKED = struct.Struct("=qdqdqqqddd")
"""A row as it is kept: 110 bytes instead of 400; what is not known is NaN."""


def _pack(row: Row) -> bytes:
    return _PACKED.pack(*(math.nan if value is None else value for value in row))


def _unpack(packed: bytes) -> Row:
    values: Iterator[Any] = (None if math.isnan(value) else value for value in _PACKED.unpack(packed))
    return Row(*values)


class Series:
    """Rows of all volumes; samples come in the order of the topic."""

    def __init__(self) -> None:
        self._rows: dict[str, deque[bytes]] = {}
        self.projections: dict[str, stats.ProjectionSample] = {}
        self.views: dict[tuple[str, str], stats.ViewSample] = {}
        self.processes: dict[str, stats.ProcessSample] = {}
        """Newest samples: by volume, by (view, volume), by source."""

    def apply(self, record: object) -> None:
        """Take one sample; anything else is skipped."""
        match record:
            case stats.CaptureSample():
                rows = self._rows.setdefault(record.volume, deque(maxlen=ROWS_MAX))
                rows.append(_pack(self._row(record)))
            case stats.ProjectionSample():
                self.projections[record.volume] = record
            case stats.ViewSample():
                self.views[record.view, record.volume] = record
            case stats.ProcessSample():
                self.processes[record.source] = record

    def keep_only(self, volumes: Collection[str], since: int) -> None:
        """Forget volumes that are gone, and views and daemons that were last heard of before."""
        self._rows = {name: rows for name, rows in self._rows.items() if name in volumes}
        self.projections = {name: one for name, one in self.projections.items() if name in volumes}
        self.views = {key: one for key, one in self.views.items() if one.at >= since}
        self.processes = {key: one for key, one in self.processes.items() if one.at >= since}

    def document(self, since: int, last: int = ROWS_MAX) -> dict[str, dict[str, list[Any]]]:
        """Columns by volume, of rows since a time, at most so many; all of one volume are equally long."""
        found = {}
        for volume, rows in self._rows.items():
            newest = itertools.islice(reversed(rows), last)
            chosen = [*itertools.takewhile(lambda row: row.at >= since, map(_unpack, newest))][::-1]
            found[volume] = {name: [row[number] for row in chosen] for number, name in enumerate(Row._fields)}
        return found

    def parts(self) -> list[dict[str, Any]]:
        """What each daemon costs."""
        return [
            {
                "name": source,
                "kind": one.kind,
                "cpu_share": round(one.cpu_us / one.interval_us, 4) if one.interval_us else None,
                "rss_bytes": one.rss_bytes,
                "disk_free_bytes": one.disk_free_bytes,
                "disk_total_bytes": one.disk_total_bytes,
                "at": one.at,
            }
            for source, one in sorted(self.processes.items())
        ]

    def view_documents(self) -> list[dict[str, Any]]:
        """Open views and how far they are hydrated."""
        return [
            {
                "view": one.view,
                "volume": one.volume,
                "offset": one.offset,
                "kind": one.kind,
                "hydrated_events": one.hydrated_events,
                "hydrate_total_events": one.hydrate_total_events,
                "scratch_bytes": one.scratch_bytes,
            }
            for one in self.views.values()
        ]

    def _row(self, one: stats.CaptureSample) -> Row:
        seconds = max(one.interval_us, 1) / SECOND_US
        projection = self.projections.get(one.volume)
        blocks = one.sampled_blocks
        return Row(
            at=one.at,
            writes_per_second=round(one.writes / seconds, 1),
            written_bytes_per_second=round(one.written_bytes / seconds),
            rpo_seconds=None if one.rpo_us is None else one.rpo_us / SECOND_US,
            unacked_bytes=one.unacked_bytes,
            dirty_bytes=one.dirty_bytes,
            lag_events=max(0, one.acked_offset - projection.head_offset) if projection else 0,
            window_seconds=projection.window_us / SECOND_US if projection else 0.0,
            entropy=round(one.entropy_sum / blocks, 3) if blocks else None,
            random_share=round(one.random_blocks / blocks, 4) if blocks else None,
        )
