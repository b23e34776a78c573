"""`rephub checkpoint`: mark a point in time by name."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from rephub.cli.client import connect, error_of
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import check_target, timeout_option
from rephub.cli.view import catalogue_of
from rephub.core.names import check_name
from rephub.core.units import rfc3339
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

checkpoint = verb_group("checkpoint", "Mark a point in time by name.")


@verb(group=checkpoint)
@click.argument("name")
@click.option("--volume", metavar="V", help="Mark this volume.")
@click.option("--group", metavar="G", help="Mark all volumes of this group at the same instant.")
@click.option("--quiesce", is_flag=True, help="Freeze the guest's file systems first.")
@timeout_option(30)
async def create(
    cli: Cli, name: str, volume: str | None, group: str | None, quiesce: bool, seconds: float
) -> None:
    """Mark now as NAME; every write that was answered before this began is in it."""
    check_name(name, "checkpoint")
    check_target(volume, group)

    def created(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.CheckpointFailed) and event.checkpoint == name:
            raise error_of(event)
        if isinstance(event, ev.CheckpointCreated) and event.checkpoint == name:
            made = {"checkpoint": name, "kind": event.kind, "offsets": dict(event.offsets)}
            return made | ({"warning": event.warning} if event.warning else {})
        return None

    async with connect(cli, seconds) as client:
        command = client.new(
            cmd.CreateCheckpoint, checkpoint=name, volume=volume, group=group, quiesce=quiesce
        )
        document = (await client.ask(command, created, f"checkpoint {name}")).fields
    if "warning" in document:
        cli.progress(f"warning: {document['warning']}")
    marks = ", ".join(f"{marked} at offset {offset}" for marked, offset in document["offsets"].items())
    cli.emit(document, f"{name}: {marks}")


@verb("list", group=checkpoint)
async def list_(cli: Cli) -> None:
    """List the named checkpoints."""
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    found = [
        {
            "checkpoint": entry.name,
            "kind": entry.kind,
            "group": entry.group,
            "offsets": entry.offsets,
            "captured_at": rfc3339(entry.captured_at),
        }
        for entry in catalogue.checkpoints.values()
        if entry.state == "created"
    ]
    table = Table(box=None, pad_edge=False)
    for title in ("CHECKPOINT", "KIND", "AT", "OFFSETS"):
        table.add_column(title)
    for entry in found:
        offsets: Any = entry["offsets"]
        table.add_row(
            str(entry["checkpoint"]),
            str(entry["kind"]),
            str(entry["captured_at"]),
            ", ".join(f"{volume} {offset}" for volume, offset in offsets.items()),
        )
    cli.emit({"checkpoints": found}, table if found else "no checkpoint has a name")
