"""`rephub sync`: how fast, and in which order, volumes are copied; for the sync that runs and for any later one."""

from __future__ import annotations

from typing import Any

import click

from rephub.cli.client import connect
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import timeout_option
from rephub.core.errors import UsageError
from rephub.core.names import check_name
from rephub.core.units import format_bytes, parse_size
from rephub.projections.decide_sync import PRIORITY_MAX
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

sync = verb_group("sync", "Pause a sync, limit its rate, choose which goes first; also of later syncs.")


@verb(group=sync)
@click.argument("volume")
@timeout_option(30)
async def pause(cli: Cli, volume: str, seconds: float) -> None:
    """Let the sync of VOLUME stand still until `sync resume`; writes are captured all the same."""
    await _set(cli, volume, seconds, paused=True)


@verb(group=sync)
@click.argument("volume")
@timeout_option(30)
async def resume(cli: Cli, volume: str, seconds: float) -> None:
    """Let the sync of VOLUME go on where it stands."""
    await _set(cli, volume, seconds, paused=False)


@verb(group=sync)
@click.argument("volume")
@click.option("--rate", required=True, metavar="50MiB|none", help="Bytes per second that sync reads.")
@timeout_option(30)
async def throttle(cli: Cli, volume: str, rate: str, seconds: float) -> None:
    """Limit the rate of VOLUME's sync, or end the limit; at once."""
    await _set(cli, volume, seconds, rate_bytes_per_second=parse_rate(rate))


@verb(group=sync, name="priority")
@click.argument("volume")
@click.argument("number", type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX))
@timeout_option(30)
async def priority_(cli: Cli, volume: str, number: int, seconds: float) -> None:
    """Give VOLUME's sync a priority; the highest of an agent's go first, 0 is that of all others."""
    await _set(cli, volume, seconds, priority=number)


def parse_rate(text: str) -> int:
    """Bytes per second of `50MiB`, `50MiB/s` or `none`, which is 0.

    Raises:
        UsageError: something else, or zero.
    """
    if text == "none":
        return 0
    rate = parse_size(text.removesuffix("/s"))
    if not rate:
        raise UsageError(
            "a rate of 0 copies nothing", hint="rephub sync pause stops it, --rate none ends a limit"
        )
    return rate


async def _set(cli: Cli, volume: str, seconds: float, **changes: Any) -> None:
    check_name(volume, "volume")

    def done(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.SyncPaceSet) and event.command_id == command.id:
            return {
                "volume": volume,
                "paused": event.paused,
                "rate_bytes_per_second": event.rate_bytes_per_second or None,
                "priority": event.priority,
            }
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.SetSyncPace, volume=volume, **changes)
        answer = await client.ask(command, done, f"pace of volume {volume}")
    document = answer.fields | ({"already": True} if answer.already else {})
    rate = document["rate_bytes_per_second"]
    limit = f"at most {format_bytes(rate)}/s" if rate else "no limit"
    state = "paused" if document["paused"] else "runs"
    cli.emit(document, f"{volume}: sync {state}, {limit}, priority {document['priority']}")
