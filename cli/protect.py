"""`rephub protect`: start the protection of a disk of a running QEMU."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from rephub.cli.client import ControlClient, connect, error_of
from rephub.cli.output import Cli, verb
from rephub.cli.points import absolute, timeout_option
from rephub.core.errors import DeadlineError, RephubError
from rephub.core.names import check_name
from rephub.core.units import parse_history
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

CLEANUP_SECONDS_MAX = 10.0
"""After a failure: how long the verb waits until what was begun is undone."""


@verb()
@click.argument("volume")
@click.option("--qmp", required=True, metavar="SOCKET", help="Monitor socket of the agent's own.")
@click.option("--node", required=True, help="Node name or device of QEMU.")
@click.option("--group", metavar="G", help="Volumes that are recovered together [the volume alone].")
@click.option(
    "--ack",
    type=click.Choice(["async", "journal"]),
    default="async",
    show_default=True,
    help="When a write is answered.",
)
@click.option(
    "--overload",
    type=click.Choice(["throttle", "gap"]),
    default="throttle",
    show_default=True,
    help="When the guest outruns the journal.",
)
@click.option("--history", default="24h,20GiB", show_default=True, help="How far back points are kept.")
@click.option(
    "--recovery", metavar="PATH|DEVICE|NBD-URI", help="The recovery volume [a file of the diskbox]."
)
@click.option("--seed", metavar="FILE", help="A copy to start from.")
@timeout_option(60)
async def protect(
    cli: Cli,
    volume: str,
    qmp: str,
    node: str,
    group: str | None,
    ack: str,
    overload: str,
    history: str,
    recovery: str | None,
    seed: str | None,
    seconds: float,
) -> None:
    """Protect a disk of a running QEMU as VOLUME; returns when writes are captured, the first sync goes on."""
    check_name(volume, "volume")
    group = check_name(group or volume, "group")
    history_seconds, history_bytes = parse_history(history)
    if recovery is not None and "://" not in recovery:
        recovery = absolute(recovery)
    async with connect(cli, seconds) as client:
        command = client.new(
            cmd.Protect,
            volume=volume,
            group=group,
            qmp=absolute(qmp),
            node=node,
            ack=ack,
            overload=overload,
            history_seconds=history_seconds,
            history_bytes=history_bytes,
            recovery=recovery,
            seed=absolute(seed) if seed else None,
        )
        document = await until_attached(client, command, cli)
    cli.emit(document, f"{volume}: {document['state']}, group {document['group']}, epoch {document['epoch']}")


async def until_attached(
    client: ControlClient, command: cmd.Protect | cmd.Failback, cli: Cli
) -> dict[str, Any]:
    """Send a command that begins protection, and wait until writes are captured; what `protect` answers.

    Raises:
        RephubError: it did not begin; what was begun is undone, or will be.
    """
    begun, group = False, command.volume

    def attached(event: ev.Record) -> dict[str, Any] | None:
        nonlocal begun, group
        if isinstance(event, ev.DiskboxRequested):
            cli.progress(f"all diskboxes are full, {event.diskbox} is asked for")
        if getattr(event, "volume", None) != command.volume:
            return None
        match event:
            case ev.ProtectFailed():
                raise error_of(event)
            case ev.StartProtect():
                begun, group = True, event.group
                cli.progress(f"{command.volume}: diskbox {event.diskbox} makes the recovery volume")
            case ev.RecoveryVolumeCreated():
                cli.progress(f"{command.volume}: recovery volume {event.path}, attaching")
            case ev.FilterAttached():
                return {
                    "volume": command.volume,
                    "group": group,
                    "epoch": event.epoch,
                    "state": "syncing",
                }
        return None

    what = f"protect of volume {command.volume}"
    try:
        answer = await client.ask(command, attached, what)
        if not answer.already:
            return answer.fields
        fields = answer.fields
        if not fields.pop("attached", True):
            fields = await client.follow(attached, what, client.left_seconds)
    except DeadlineError:
        raise
    except RephubError:
        if begun:
            await _undone(client, command.volume)
        raise
    return fields | {"already": True}


async def _undone(client: ControlClient, volume: str) -> None:
    """Wait until nothing is left of a protect that failed halfway; what is left later is the hub's to remove."""

    def gone(event: ev.Record) -> dict[str, Any] | None:
        return {} if isinstance(event, ev.Unprotected) and event.volume == volume else None

    with contextlib.suppress(DeadlineError):
        await client.follow(gone, "clean-up", CLEANUP_SECONDS_MAX)
