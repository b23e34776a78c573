"""`rephub history`: change how far back points are kept."""

from __future__ import annotations

from typing import Any

import click

from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.points import check_target, timeout_option
from rephub.cli.view import catalogue_of
from rephub.core.units import format_bytes, format_duration, parse_history_change
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="Each volume of this group.")
@click.option(
    "--keep", required=True, metavar="48h,40GiB", help="A time, a size, or both; what is left out stays."
)
@timeout_option(30)
async def history(cli: Cli, volume: str | None, group: str | None, keep: str, seconds: float) -> None:
    """Change how far back points of VOLUME are kept; at once, and without a copy."""
    target = check_target(volume, group)
    wanted_seconds, wanted_bytes = parse_history_change(keep)

    def done(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.HistorySet) and event.command_id == command.id:
            return {"volumes": list(event.volumes)}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(
            cmd.SetHistory,
            volume=volume,
            group=group,
            history_seconds=wanted_seconds,
            history_bytes=wanted_bytes,
        )
        answer = await client.ask(command, done, f"history of {target}")
    document = answer.fields
    if not answer.already:
        document = {"volumes": await _now(cli, document["volumes"], wanted_seconds, wanted_bytes)}
    lines = [
        f"{item['volume']}: {format_duration(item['history_seconds'])}, {format_bytes(item['history_bytes'])}"
        for item in document["volumes"]
    ]
    cli.emit(document | ({"already": True} if answer.already else {}), "\n".join(lines))


async def _now(
    cli: Cli, names: list[str], wanted_seconds: int | None, wanted_bytes: int | None
) -> list[dict[str, Any]]:
    """What the volumes keep; the catalogue says what was left out of the command."""
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    return [
        {
            "volume": name,
            "history_seconds": wanted_seconds or catalogue.volumes[name].history_seconds,
            "history_bytes": wanted_bytes or catalogue.volumes[name].history_bytes,
        }
        for name in names
    ]
