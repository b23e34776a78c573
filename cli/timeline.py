"""`rephub timeline`: the points in time that can be opened."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.table import Table

from rephub.cli.endpoints import read_endpoints
from rephub.cli.fetch import fetch_or_raise
from rephub.cli.output import Cli, verb
from rephub.cli.view import catalogue_of
from rephub.core.errors import UnavailableError
from rephub.core.names import check_name
from rephub.core.units import rfc3339
from rephub.projections.decide import protected_volume
from rephub.projections.entities import Volume

DISKBOX_SECONDS_MAX = 10.0


@verb()
@click.argument("volume")
async def timeline(cli: Cli, volume: str) -> None:
    """List the ranges of points of VOLUME that can be opened, its gaps, checkpoints and epochs."""
    document = await timeline_of(cli, volume)
    cli.emit(document, _table(document))


async def timeline_of(cli: Cli, volume: str) -> dict[str, Any]:
    """The document of `rephub timeline`.

    Raises:
        NotFoundError: nobody protects the volume.
        UnavailableError: its diskbox does not answer.
    """
    check_name(volume, "volume")
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    entry = protected_volume(catalogue, volume)
    diskbox = catalogue.diskboxes.get(entry.diskbox)
    if diskbox is None:
        raise UnavailableError(f"diskbox {entry.diskbox} is unknown", hint="rephub status")
    document = await fetch_or_raise(f"{diskbox.url}/timeline/{volume}", DISKBOX_SECONDS_MAX)
    document["ranges"] = lost_before(entry, time.time_ns() // 1000) + document["ranges"]
    return document


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


def _table(document: dict[str, Any]) -> Table | str:
    if not document["ranges"]:
        return "no point yet"
    table = Table(box=None, pad_edge=False)
    for title in ("KIND", "FIRST", "LAST", "FROM", "TO", "REASON"):
        table.add_column(title)
    for entry in document["ranges"]:
        table.add_row(
            entry["kind"],
            "?" if entry["first_offset"] is None else str(entry["first_offset"]),
            "?" if entry["last_offset"] is None else str(entry["last_offset"]),
            entry["from_at"] or "?",
            entry["to_at"] or "?",
            entry["reason"] or "",
        )
    return table
