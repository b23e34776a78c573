"""`rephub timeline`: the points in time that can be opened."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from rephub.cli.endpoints import read_endpoints
from rephub.cli.fetch import fetch_or_raise
from rephub.cli.output import Cli, verb
from rephub.cli.view import catalogue_of
from rephub.core.errors import UnavailableError
from rephub.core.names import check_name
from rephub.projections.decide import protected_volume

DISKBOX_SECONDS_MAX = 10.0


@verb()
@click.argument("volume")
async def timeline(cli: Cli, volume: str) -> None:
    """List the ranges of points of VOLUME that can be opened, its gaps, checkpoints and epochs."""
    check_name(volume, "volume")
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    entry = protected_volume(catalogue, volume)
    diskbox = catalogue.diskboxes.get(entry.diskbox)
    if diskbox is None:
        raise UnavailableError(f"diskbox {entry.diskbox} is unknown", hint="rephub status")
    document = await fetch_or_raise(f"{diskbox.url}/timeline/{volume}", DISKBOX_SECONDS_MAX)
    cli.emit(document, _table(document))


def _table(document: dict[str, Any]) -> Table | str:
    if not document["ranges"]:
        return "no point yet"
    table = Table(box=None, pad_edge=False)
    for title in ("KIND", "FIRST", "LAST", "FROM", "TO", "REASON"):
        table.add_column(title)
    for entry in document["ranges"]:
        table.add_row(
            entry["kind"],
            str(entry["first_offset"]),
            str(entry["last_offset"]),
            entry["from_at"] or "?",
            entry["to_at"] or "?",
            entry["reason"] or "",
        )
    return table
