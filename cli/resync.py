"""`rephub resync`: attach a volume anew and copy it again."""

from __future__ import annotations

from typing import Any

import click

from rephub.cli.client import connect
from rephub.cli.output import Cli, verb
from rephub.cli.points import timeout_option
from rephub.core.names import check_name
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@verb()
@click.argument("volume")
@timeout_option(60)
async def resync(cli: Cli, volume: str, seconds: float) -> None:
    """Attach VOLUME anew and copy it again; returns when writes are captured, the copy goes on."""
    check_name(volume, "volume")

    def attached(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.FilterAttached) and event.volume == volume:
            return {"volume": volume, "epoch": event.epoch, "state": "resyncing"}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.Resync, volume=volume)
        answer = await client.ask(command, attached, f"resync of volume {volume}")
    document = answer.fields | ({"already": True} if answer.already else {})
    cli.emit(document, f"{volume}: {document['state']}, epoch {document['epoch']}")
