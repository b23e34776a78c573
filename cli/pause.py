"""`rephub pause` and `rephub resume`: let go of a volume for a while, and copy what was written meanwhile."""

from __future__ import annotations

from typing import Any

import click

from rephub.cli.client import ControlClient, Done, connect, error_of
from rephub.cli.output import Cli, verb
from rephub.cli.points import timeout_option
from rephub.core.names import check_name
from rephub.core.units import rfc3339
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@verb()
@click.argument("volume")
@timeout_option(60)
async def pause(cli: Cli, volume: str, seconds: float) -> None:
    """Let go of VOLUME; QEMU notes what is written until `resume`. Its disk may be resized and backed up meanwhile."""
    check_name(volume, "volume")

    def paused(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.PauseFailed) and event.volume == volume:
            raise error_of(event)
        if isinstance(event, ev.VolumePaused) and event.volume == volume:
            answer = {"volume": volume, "epoch": event.epoch, "state": "paused"}
            return answer | {"paused_at": rfc3339(event.at)}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.Pause, volume=volume)
        document = await _ask(client, command, paused, f"pause of volume {volume}")
    cli.emit(document, f"{volume}: {document['state']} since {document['paused_at']}")


@verb()
@click.argument("volume")
@timeout_option(60)
async def resume(cli: Cli, volume: str, seconds: float) -> None:
    """Capture VOLUME again; returns when writes are captured, the copy of what was written meanwhile goes on."""
    check_name(volume, "volume")

    def attached(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.FilterAttached) and event.volume == volume:
            return {"volume": volume, "epoch": event.epoch, "state": "resyncing", "paused_at": None}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.Resume, volume=volume)
        document = await _ask(client, command, attached, f"resume of volume {volume}")
    cli.emit(document, f"{volume}: {document['state']}, epoch {document['epoch']}")


async def _ask(client: ControlClient, command: cmd.Record, done: Done, what: str) -> dict[str, Any]:
    """The answer; where the same was asked before and is not done yet, its end is waited for."""
    answer = await client.ask(command, done, what)
    if not answer.already:
        return answer.fields
    fields = dict(answer.fields)
    if not fields.pop("done"):
        fields = await client.follow(done, what, client.left_seconds)
    return fields | {"already": True}
