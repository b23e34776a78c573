"""`rephub fleet`: the diskboxes of the recovery site."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table

from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.fetch import fetch
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import timeout_option
from rephub.cli.view import DAEMON_SECONDS, catalogue_of
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide_fleet import known_diskbox
from rephub.projections.entities import Diskbox
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

fleet = verb_group("fleet", "Look after the diskboxes.")


@verb("list", group=fleet)
async def list_(cli: Cli) -> None:
    """List the diskboxes, what they hold, and whether they answer."""
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    boxes = list(catalogue.diskboxes.values())
    answers = await asyncio.gather(*(fetch(f"{box.url}/status", DAEMON_SECONDS) for box in boxes))
    found = [_row(catalogue, box, answer) for box, answer in zip(boxes, answers, strict=True)]
    table = Table(box=None, pad_edge=False)
    for title in ("DISKBOX", "STATE", "ANSWERS", "HOST", "VOLUMES", "CAPACITY"):
        table.add_column(title)
    for row in found:
        table.add_row(
            row["diskbox"],
            row["state"],
            "yes" if row["answers"] else "no",
            row["host"],
            str(len(row["volumes"])),
            str(row["capacity"]),
        )
    cli.emit({"diskboxes": found}, table if found else "no diskbox has announced itself")


def _row(catalogue: Catalogue, box: Diskbox, answer: dict[str, Any] | None) -> dict[str, Any]:
    held = [v.name for v in catalogue.volumes.values() if v.diskbox == box.name and not v.purged]
    return {
        "diskbox": box.name,
        "state": box.state,
        "answers": (answer or {}).get("id") == box.name,
        "host": box.host,
        "capacity": box.capacity,
        "volumes": sorted(held),
    }


@verb(group=fleet)
@click.argument("diskbox")
@click.option("--yes", is_flag=True, help="Do not ask.")
@timeout_option(60)
async def lose(cli: Cli, diskbox: str, yes: bool, seconds: float) -> None:
    """Give up DISKBOX, which is off: its volumes are copied anew to others, their older points are gone."""
    check_name(diskbox, "diskbox")
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    known_diskbox(catalogue, diskbox)
    held = [volume.name for volume in catalogue.live_volumes() if volume.diskbox == diskbox]
    cli.confirm(
        f"give up diskbox {diskbox}, and with it all older points of {len(held)} volumes? It has to be off for sure",
        yes=yes,
    )

    def lost(event: ev.Record) -> dict[str, Any] | None:
        return (
            {"diskbox": diskbox} if isinstance(event, ev.DiskboxLost) and event.diskbox == diskbox else None
        )

    async with connect(cli, seconds) as client:
        command = client.new(cmd.LoseDiskbox, diskbox=diskbox)
        answer = await client.ask(command, lost, f"loss of diskbox {diskbox}")
    document = {"diskbox": diskbox, "volumes": held} | ({"already": True} if answer.already else {})
    cli.emit(document, f"{diskbox}: given up; {', '.join(held) or 'no volume'} goes to others")
