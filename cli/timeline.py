"""`rephub timeline`: the points in time that can be opened."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.view import catalogue_of
from rephub.consumers import timelines
from rephub.core.names import check_name


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
    return await timelines.timeline_of(catalogue, volume)


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
