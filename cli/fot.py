"""`rephub fot`: open a volume as it was, writable, protection undisturbed."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from rephub.cli.bisect import bisect
from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.fot_client import end_test, open_test
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import (
    absolute,
    check_target,
    parse_point,
    point_options,
    resolved,
    timeout_option,
)
from rephub.cli.snippets import in_a_vm
from rephub.cli.view import catalogue_of
from rephub.core.names import check_name

fot = verb_group("fot", "Open a volume as it was, writable, protection undisturbed.")
fot.add_command(bisect)


@verb(group=fot)
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="All volumes of this group.")
@point_options
@click.option("--read-only", is_flag=True, help="Refuse writes; no scratch.")
@click.option("--qmp", metavar="SOCKET", help="Give it to the VM behind this monitor, and let that run.")
@timeout_option(60)
async def start(
    cli: Cli,
    volume: str | None,
    group: str | None,
    offset: int | None,
    time_: str | None,
    checkpoint: str | None,
    latest: bool,
    read_only: bool,
    qmp: str | None,
    seconds: float,
) -> None:
    """Serve VOLUME, or all of a group, as it was at a point, over NBD, until `fot stop`."""
    check_target(volume, group)
    point = parse_point(offset, time_, checkpoint, latest)
    async with connect(cli, seconds) as client:
        views = await open_test(
            cli, client, volume, group, point, read_only=read_only, qmp=absolute(qmp) if qmp else None
        )
    name = views[0]["fot"]
    document = views[0] if volume is not None else {"fot": name, "group": group, "volumes": views}
    cli.emit(
        document,
        "\n".join(
            f"{name}: {view['volume']} at offset {view['offset']}: {view['uri']}\n{in_a_vm(view)}"
            for view in views
        ),
    )


@verb("list", group=fot)
async def list_(cli: Cli) -> None:
    """List the fail-over tests that are open."""
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    found: list[dict[str, Any]] = []
    for entry in catalogue.fots.values():
        if entry.ended:
            continue
        views = [
            {
                "fot": entry.name,
                "volume": view["volume"],
                "offset": view["offset"],
                "uri": view["uri"],
                "resolved": resolved(view),
            }
            for view in entry.views
        ]
        rest = {"fot": entry.name, "state": entry.state, "read_only": entry.read_only}
        if entry.group is not None:
            found.append(rest | {"group": entry.group, "volumes": views})
        else:
            pending = {"volume": entry.volumes[0], "offset": None, "uri": None, "resolved": None}
            found.append((views[0] if views else pending) | rest)
    table = Table(box=None, pad_edge=False)
    for title in ("FOT", "STATE", "VOLUME", "OFFSET", "URI"):
        table.add_column(title)
    for row in found:
        for view in row.get("volumes", [row]):
            table.add_row(row["fot"], row["state"], view["volume"], str(view["offset"]), view["uri"])
    cli.emit({"fots": found}, table if found else "no fail-over test is open")


@verb(group=fot)
@click.argument("fot_id", metavar="ID")
@timeout_option(30)
async def stop(cli: Cli, fot_id: str, seconds: float) -> None:
    """End the fail-over test ID and discard what it wrote."""
    check_name(fot_id, "fail-over test")
    async with connect(cli, seconds) as client:
        already = await end_test(cli, client, fot_id)
    cli.emit({"fot": fot_id} | ({"already": True} if already else {}), f"{fot_id}: stopped")
