"""Asks the diskbox of a volume for its points: for `rephub timeline` and for the hub's page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from rephub.core.control.wishes import Point
from rephub.core.errors import UnavailableError
from rephub.core.fetch import fetch_or_raise
from rephub.core.units import rfc3339
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import protected_volume
from rephub.projections.entities import Volume

DISKBOX_SECONDS_MAX = 10.0


async def timeline_of(
    catalogue: Catalogue, volume: str, shown: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The document of `rephub timeline`.

    Args:
        catalogue: says which diskbox to ask.
        volume: its name.
        shown: `columns`, `from`, `to` (microseconds) of a screen: fewer checkpoints, see `projections/columns.py`.

    Raises:
        UsageError: not a name.
        NotFoundError: nobody protects the volume.
        UnavailableError: its diskbox does not answer.
    """
    entry = protected_volume(catalogue, volume)
    query = f"?{urlencode(shown)}" if shown else ""
    document = await fetch_or_raise(f"{_url(catalogue, entry)}/timeline/{volume}{query}", DISKBOX_SECONDS_MAX)
    document["ranges"] = lost_before(entry, time.time_ns() // 1000) + document["ranges"]
    return document


async def point_of(catalogue: Catalogue, volume: str, point: Point) -> dict[str, Any]:
    """What a point of a volume is, and what lies after it: `{"volume", "offset", "resolved", "lost_events", …}`.

    Raises:
        UsageError, NotFoundError, UnavailableError: as `timeline_of`.
        PointNotAvailableError: it cannot be opened; names the nearest good offset.
    """
    entry = protected_volume(catalogue, volume)
    query = urlencode({"kind": point.kind, "value": point.value})
    return await fetch_or_raise(f"{_url(catalogue, entry)}/point/{volume}?{query}", DISKBOX_SECONDS_MAX)


def lost_before(volume: Volume, now: int) -> list[dict[str, Any]]:
    """The points that went with a lost diskbox, as a gap, while the history that was asked for reaches back there.

    Args:
        volume: as the hub knows it.
        now: microseconds since the Unix epoch.
    """
    if not volume.placed_from or volume.placed_at < now - volume.history_seconds * 1_000_000:
        return []
    lost = {"first_offset": None, "last_offset": None, "from_at": None, "to_at": rfc3339(volume.placed_at)}
    return [lost | {"kind": "gap", "reason": f"diskbox {volume.placed_from} was lost, with all points on it"}]


def _url(catalogue: Catalogue, volume: Volume) -> str:
    diskbox = catalogue.diskboxes.get(volume.diskbox)
    if diskbox is None:
        raise UnavailableError(f"diskbox {volume.diskbox} is unknown", hint="rephub status")
    return diskbox.url
