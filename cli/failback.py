"""`rephub failback`: the way back of a fail-over: protect the recovered VM with the disk of before as its copy."""

from __future__ import annotations

from typing import Any

import click

from rephub.agent.redirect import disks
from rephub.agent.redirects import FAILOVER_PREFIX
from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.points import absolute, timeout_option
from rephub.cli.protect import until_attached
from rephub.cli.view import catalogue_of
from rephub.core.errors import ConfirmationRequired, ConflictError, NotFoundError, UsageError
from rephub.core.names import check_name
from rephub.core.units import format_bytes, format_duration
from rephub.projections.catalogue import Catalogue, Failover
from rephub.schemas import commands as cmd


@verb()
@click.argument("volume")
@click.option("--qmp", metavar="SOCKET", help="Monitor of the recovered VM [that of `failover --qmp`].")
@click.option("--node", help="Its disk: a node name or a device [the one that `failover --qmp` gave it].")
@click.option(
    "--recovery", required=True, metavar="PATH|DEVICE|NBD-URI", help="The disk of before; its VM must be off."
)
@click.option("--dry-run", is_flag=True, help="List what the disk of before has that will be overwritten.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@timeout_option(60)
async def failback(
    cli: Cli,
    volume: str,
    qmp: str | None,
    node: str | None,
    recovery: str,
    dry_run: bool,
    yes: bool,
    seconds: float,
) -> None:
    """Protect VOLUME, which was failed over and committed, in the other direction; only what differs travels.

    Then `rephub move VOLUME` brings it home.
    """
    check_name(volume, "volume")
    if "://" not in recovery:
        recovery = absolute(recovery)
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    found = _newest(catalogue, volume)
    tail = _tail(found, volume)
    if dry_run:
        cli.emit({"volume": volume, "discarded": tail, "dry_run": True}, _sentence(tail))
        return
    if not yes:
        cli.progress(_sentence(tail))
    try:
        cli.confirm(f"overwrite {recovery} with what {volume} is now?", yes=yes)
    except ConfirmationRequired as error:
        raise ConfirmationRequired(error.message, hint=error.hint, discarded=tail) from None
    if qmp is None or node is None:
        qmp, node = _given_disk(found, volume)
    async with connect(cli, seconds) as client:
        command = client.new(cmd.Failback, volume=volume, qmp=absolute(qmp), node=node, recovery=recovery)
        document = await until_attached(client, command, cli)
    document |= {"discarded": tail}
    cli.emit(document, f"{volume}: {document['state']}, group {document['group']}, epoch {document['epoch']}")


def _newest(catalogue: Catalogue, volume: str) -> Failover:
    """Raises NotFoundError: it was never failed over."""
    for found in reversed(catalogue.failovers.values()):
        if not found.dry_run and volume in found.volumes and found.views:
            return found
    raise NotFoundError(f"volume {volume} was not failed over", hint="rephub status")


def _tail(found: Failover, volume: str) -> dict[str, Any]:
    """What the disk of before has and the recovered VM has not: it stays in the journal until this overwrites it."""
    plan = next(plan for plan in found.plans if plan["volume"] == volume)
    return {
        "after_offset": plan["offset"],
        "events": plan["lost_events"],
        "bytes": plan["lost_bytes"],
        "seconds": plan["lost_seconds"],
        "complete": bool(found.drained),
    }


def _sentence(tail: dict[str, Any]) -> str:
    more = "" if tail["complete"] else ", and what its VM wrote after capture had ended"
    if not tail["events"] and not more:
        return "nothing is discarded: it was moved as a whole"
    return (
        f"of the disk of before are discarded: {tail['events']} events ({format_bytes(tail['bytes'])}, "
        f"{format_duration(tail['seconds'])}) after offset {tail['after_offset']}{more}"
    )


def _given_disk(found: Failover, volume: str) -> tuple[str, str]:
    """Monitor and node of the VM that `failover --qmp` gave the volume. Raises UsageError: it gave it to none."""
    if found.qmp is None:
        raise UsageError(
            "--qmp and --node are missing", hint="name the monitor and the disk of the recovered VM"
        )
    names = [view["volume"] for view in found.views]
    if found.state != "committed":
        raise ConflictError(
            f"the fail-over of {volume} is {found.state.replace('_', ' ')}",
            hint=f"rephub commit {volume} first; if it is closed, give --qmp and --node",
        )
    given = disks(found.name, found.views, read_only=False, prefix=FAILOVER_PREFIX)
    return found.qmp, given[names.index(volume)].name
