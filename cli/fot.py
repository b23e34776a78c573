"""`rephub fot`: open a volume as it was, writable, protection undisturbed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import click
from rich.table import Table

from rephub.cli.bisect import bisect
from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.fot_client import open_test, stop_test
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import (
    absolute,
    check_target,
    parse_point,
    point_options,
    timeout_option,
)
from rephub.cli.snippets import in_a_vm
from rephub.cli.sync import parse_rate
from rephub.cli.view import catalogue_of
from rephub.consumers.daemons import ask
from rephub.core.errors import ConflictError, DeadlineError, NotFoundError, UnavailableError
from rephub.core.names import check_name
from rephub.core.units import format_bytes
from rephub.projections.fots import costs_of, fot_documents
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

LOOK_SECONDS = 0.3

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
    found = fot_documents(catalogue, (await ask(catalogue)).diskboxes)
    table = Table(box=None, pad_edge=False)
    for title in ("FOT", "STATE", "VOLUME", "OFFSET", "SCRATCH", "HYDRATED", "URI"):
        table.add_column(title)
    for row in found:
        for view in row.get("volumes", [row]):
            table.add_row(
                row["fot"],
                row["state"],
                view["volume"],
                str(view["offset"]),
                _scratch(view) + (" (full)" if view["volume"] in row["scratch_full"] else ""),
                _hydrated(view.get("hydration")),
                view["uri"],
            )
    cli.emit({"fots": found}, table if found else "no fail-over test is open")


@verb(group=fot)
@click.argument("fot_id", metavar="ID")
@timeout_option(30)
async def stop(cli: Cli, fot_id: str, seconds: float) -> None:
    """End the fail-over test ID and discard what it wrote."""
    check_name(fot_id, "fail-over test")
    async with connect(cli, seconds) as client:
        already = await stop_test(cli, client, fot_id)
    cli.emit({"fot": fot_id} | ({"already": True} if already else {}), f"{fot_id}: stopped")


@verb(group=fot)
@click.argument("fot_id", metavar="ID")
@click.option("--rate", metavar="50MiB|none", help="Bytes per second that are copied at most.")
@click.option("--stop", "stopped", flag_value="stop", help="Copy no more.")
@click.option("--resume", "stopped", flag_value="resume", help="Copy on.")
@click.option("--wait", "wait_", is_flag=True, help="Until all is copied.")
@timeout_option(600)
async def hydrate(
    cli: Cli, fot_id: str, rate: str | None, stopped: str | None, wait_: bool, seconds: float
) -> None:
    """Say how fast what the test ID needs of the journal is copied beside it; nothing given: how far that is."""
    check_name(fot_id, "fail-over test")
    endpoints = read_endpoints(cli.state_dir)
    if rate is not None or stopped is not None:
        async with connect(cli, seconds) as client:
            command = client.new(
                cmd.SetHydration,
                fot=fot_id,
                stopped=None if stopped is None else stopped == "stop",
                rate_bytes_per_second=None if rate is None else parse_rate(rate),
            )
            await client.ask(command, _was_set(command.id), f"hydration of {fot_id}")
    catalogue, _ = await catalogue_of(endpoints)
    if fot_id not in catalogue.fots or catalogue.fots[fot_id].ended:
        raise NotFoundError(f"no fail-over test {fot_id} is open", hint="rephub fot list")
    deadline = time.monotonic() + seconds
    while True:
        costs = costs_of((await ask(catalogue)).diskboxes)
        views = {volume: view for (name, volume), view in costs.items() if name == fot_id}
        if not wait_ or (views and all(view["hydration"]["state"] == "done" for view in views.values())):
            break
        if ended := [v for v in views.values() if v["hydration"]["state"] in ("failed", "stopped")]:
            raise ConflictError(
                f"{fot_id} is not hydrated: {ended[0]['hydration']['problem'] or 'it was stopped'}",
                hint=f"rephub fot hydrate {fot_id} --resume",
            )
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{fot_id} is not hydrated after {seconds:g} s", hint="give more time with --timeout"
            )
        await asyncio.sleep(LOOK_SECONDS)
    if not views:
        raise UnavailableError(f"the diskbox that serves {fot_id} does not answer", hint="rephub status")
    cli.emit(
        {"fot": fot_id, "volumes": [{"volume": volume} | view for volume, view in views.items()]},
        "\n".join(f"{volume}: {_hydrated(view['hydration'])}" for volume, view in views.items()),
    )


def _was_set(command_id: str) -> Callable[[ev.Record], dict[str, Any] | None]:
    def done(event: ev.Record) -> dict[str, Any] | None:
        return {} if isinstance(event, ev.HydrationSet) and event.command_id == command_id else None

    return done


def _scratch(view: dict[str, Any]) -> str:
    return format_bytes(view["scratch_bytes"]) if "scratch_bytes" in view else ""


def _hydrated(hydration: dict[str, Any] | None) -> str:
    if hydration is None:
        return ""
    if hydration["state"] != "running":
        return str(hydration["state"])
    return f"{hydration['done_events'] / hydration['total_events']:.0%}"
