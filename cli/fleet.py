"""`rephub fleet`: the diskboxes of the recovery site."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table

from rephub.cli.client import Done, connect, error_of
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import check_target, timeout_option
from rephub.cli.view import catalogue_of
from rephub.consumers.daemons import DAEMON_SECONDS
from rephub.core.fetch import fetch
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
        "moves": [
            {"volumes": move.volumes, "to": move.diskbox, "copied": sorted(move.copied)}
            for move in catalogue.moves.values()
            if move.previous == box.name and not move.ended
        ],
        "copying": (answer or {}).get("moves", []),
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


@verb(group=fleet)
@click.option("--volume", metavar="V", help="Move this volume, with all of its group.")
@click.option("--group", metavar="G", help="Move all volumes of this group.")
@click.option("--to", "diskbox", metavar="DISKBOX", help="Where to; without it, the least loaded.")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@timeout_option(3600)
async def move(
    cli: Cli, volume: str | None, group: str | None, diskbox: str | None, no_wait: bool, seconds: float
) -> None:
    """Move recovery volumes to another diskbox; protection goes on and all points stay."""
    check_target(volume, group)
    if diskbox is not None:
        check_name(diskbox, "diskbox")

    def begun(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.MoveRequested) and event.move == command.id:
            return {"move": event.move, "volumes": list(event.volumes), "diskbox": event.diskbox}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.MoveVolumes, volume=volume, group=group, diskbox=diskbox)
        answer = await client.ask(command, begun, "move")
        under_way = answer.fields["move"]
        if under_way and not no_wait:
            cli.progress(f"copying {', '.join(answer.fields['volumes'])} to {answer.fields['diskbox']}")
            await client.follow(_ended(under_way), "move", client.left_seconds)
    document = {"volumes": answer.fields["volumes"], "diskbox": answer.fields["diskbox"]}
    document |= {"already": True} if answer.already else {}
    cli.emit(
        document,
        f"{', '.join(document['volumes'])}: {'moves' if no_wait else 'moved'} to {document['diskbox']}",
    )


def _ended(name: str) -> Done:
    """Waits for the end of a move; raises the error with which it failed."""

    def look(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.MoveFailed) and event.move == name:
            raise error_of(event)
        return {} if isinstance(event, ev.VolumesMoved) and event.move == name else None

    return look


@verb(group=fleet)
@click.option("--volume", metavar="V", help="The move of this volume.")
@click.option("--group", metavar="G", help="The move of this group.")
@timeout_option(30)
async def cancel(cli: Cli, volume: str | None, group: str | None, seconds: float) -> None:
    """Give up a move; the volumes stay where they are."""
    check_target(volume, group)

    def cancelled(event: ev.Record) -> dict[str, Any] | None:
        return (
            {"move": event.move}
            if isinstance(event, ev.MoveFailed) and event.command_id == command.id
            else None
        )

    async with connect(cli, seconds) as client:
        command = client.new(cmd.CancelMove, volume=volume, group=group)
        answer = await client.ask(command, cancelled, "cancellation of a move")
    cli.emit(answer.fields, "the move was cancelled")


@verb(group=fleet)
@click.argument("diskbox")
@click.option("--off", is_flag=True, help="Use it again.")
@timeout_option(30)
async def drain(cli: Cli, diskbox: str, off: bool, seconds: float) -> None:
    """Place nothing new on DISKBOX and move all its volumes to others, group by group; returns at once."""
    check_name(diskbox, "diskbox")

    def taken(event: ev.Record) -> dict[str, Any] | None:
        mine = isinstance(event, ev.DiskboxDrainRequested) and event.command_id == command.id
        return {"diskbox": diskbox, "state": "ready" if off else "draining"} if mine else None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.DrainDiskbox, diskbox=diskbox, drain=not off)
        answer = await client.ask(command, taken, f"drain of diskbox {diskbox}")
    document = answer.fields | ({"already": True} if answer.already else {})
    cli.emit(document, f"{diskbox}: {document['state']}")
