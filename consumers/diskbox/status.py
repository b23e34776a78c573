"""What a diskbox says of itself: `/status`, `/timeline/<volume>` and `/point/<volume>`."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from rephub.consumers.diskbox.fots import resolve_point
from rephub.consumers.diskbox.promotions import plan_item
from rephub.consumers.diskbox.service import Diskbox
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.errors import NotFoundError
from rephub.core.units import rfc3339
from rephub.projections.columns import in_columns
from rephub.projections.points import listed_in, resolved
from rephub.projections.window import window_seconds


def status_document(diskbox: Diskbox) -> dict[str, Any]:
    """The `/status` document; cheap, never waits."""
    return {
        "kind": "diskbox",
        "id": diskbox.name,
        "pid": os.getpid(),
        "ready": diskbox.ready,
        "at": time.time_ns() // 1000,
        "volumes": {
            name: volume_document(box) | {"problem": _problem(diskbox, name)}
            for name, box in diskbox.volumes.items()
            if box.position is not None
        },
        "moves": [
            {"volume": name, "done_bytes": done, "total_bytes": total}
            for name, (done, total) in diskbox.moves.progress.items()
        ],
        "promotions": [
            {"volume": name, "done_bytes": done, "total_bytes": total}
            for name, (done, total) in diskbox.promotions.progress.items()
        ],
        "failovers": diskbox.failovers.status(),
        "fots": [view for fot in diskbox.fots.open.values() for view in fot.status()],
    }


def _problem(diskbox: Diskbox, volume: str) -> str:
    """Why its fail-over stands still; empty: it does not, or there is none."""
    found = diskbox.failovers.problems.get(volume)
    return found.message if found is not None else ""


def volume_document(box: BoxVolume) -> dict[str, Any]:
    """One volume of the `/status` document; offsets are null where there is none."""
    projector, position = box.projector, box.position
    if position is None:
        return {}
    if projector is None:
        offset = position.promoted.get("offset", position.applied_offset)
        return _empty(position.path, offset) | {"epoch": position.applied.epoch}
    timeline, state, position = projector.timeline, projector.head.state, projector.applier.position
    promoted = bool(position.promoted)
    latest = None if promoted else timeline.latest_offset()
    stopped = projector.stopped
    return _empty(position.path, projector.applier.applied_offset) | {
        "head_offset": _offset(projector.head_offset),
        "intent_offset": _offset(projector.applier.intent_offset),
        "earliest_offset": timeline.earliest_offset() if latest is not None else None,
        "latest_offset": latest,
        "latest_captured_at": None if latest is None else timeline.captured_at(latest),
        "window_seconds": 0.0 if promoted else window_seconds(timeline),
        "journal_bytes": timeline.bytes.total,
        "epoch": state.epoch,
        "in_gap": state.gap_first_offset is not None,
        "gap_reason": state.gap_reason,
        "stopped": None if stopped is None else stopped.to_dict(),
        "fenced_events": state.fenced_events,
        "applied_events": projector.applier.applied_events,
        "applied_bytes": projector.applier.applied_bytes,
        "size_bytes": state.size_bytes,
        "pins": dict(projector.pins),
        "index_events": len(projector.index),
        "index_bytes": projector.index.nbytes() + timeline.envelope.nbytes(),
    }


def _empty(path: str, applied_offset: int) -> dict[str, Any]:
    return {
        "head_offset": None, "applied_offset": _offset(applied_offset), "intent_offset": _offset(applied_offset),
        "earliest_offset": None, "latest_offset": None, "latest_captured_at": None, "window_seconds": 0.0,
        "journal_bytes": 0, "epoch": 0, "in_gap": False, "gap_reason": "", "stopped": None, "fenced_events": 0,
        "path": path, "size_bytes": 0, "pins": {}, "index_events": 0, "index_bytes": 0, "applied_events": 0,
        "applied_bytes": 0,
    }  # fmt: skip


def _offset(journal_offset: int) -> int | None:
    return journal_offset if journal_offset >= 0 else None


def timeline_document(
    diskbox: Diskbox,
    volume: str,
    columns: int | None = None,
    first_at: int | None = None,
    last_at: int | None = None,
) -> dict[str, Any]:
    """The contract's timeline of a volume; times RFC 3339.

    Args:
        diskbox: projects the volume.
        volume: its name.
        columns: of a screen, which gets fewer checkpoints, see `columns.in_columns`; the document then has
            `checkpoints_total`, too. None: all of them.
        first_at: where the screen begins, microseconds since the Unix epoch; None: with the first checkpoint.
        last_at: where it ends.

    Raises:
        NotFoundError: this diskbox does not project it.
    """
    box = diskbox.volumes.get(volume)
    if box is None or box.projector is None:
        raise NotFoundError(f"this diskbox does not project {volume!r}", volume=volume)
    timeline = box.projector.timeline
    listed = listed_in(diskbox.catalogue.checkpoints, strictly=False)
    checkpoints = timeline.checkpoints(lambda mark: listed(volume, mark))
    reduced = {} if columns is None else {"checkpoints_total": len(checkpoints)}
    if columns is not None:
        checkpoints = in_columns(checkpoints, columns, first_at, last_at)
    return {
        "volume": volume,
        "ranges": [_timed(item, "from_at", "to_at") for item in timeline.ranges()],
        "checkpoints": [_timed(item, "captured_at") for item in checkpoints],
        "epochs": [_timed(item, "at") for item in timeline.epochs()],
    } | reduced


async def point_document(diskbox: Diskbox, volume: str, kind: str, value: str) -> dict[str, Any]:
    """What a point is, and what of the journal lies after it: what a promote to it would lose.

    Args:
        diskbox: projects the volume.
        volume: its name.
        kind: of the point, see `points.resolve`.
        value: of the point.

    Raises:
        RephubError: see `fots.resolve_point`.
    """
    points = await resolve_point(diskbox.volumes, [volume], kind, value, diskbox.catalogue.checkpoints)
    projector, found = points[volume]
    plan = plan_item(projector, found, None)
    return {
        "volume": volume,
        "offset": plan.offset,
        "resolved": resolved(asdict(found)),
        "last_checkpoint": plan.last_checkpoint,
        "lost_events": plan.lost_events,
        "lost_bytes": plan.lost_bytes,
        "lost_seconds": plan.lost_seconds,
    }


def _timed(item: dict[str, Any], *fields: str) -> dict[str, Any]:
    return item | {name: None if item[name] is None else rfc3339(item[name]) for name in fields}
