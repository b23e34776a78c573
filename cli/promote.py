"""`rephub promote`: make a point in time permanent."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import click

from rephub.cli import plans as plans_of
from rephub.cli.client import ControlClient, connect
from rephub.cli.endpoints import Endpoints, read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.points import (
    Point,
    absolute,
    check_target,
    parse_point,
    point_options,
    timeout_option,
)
from rephub.cli.view import catalogue_of
from rephub.consumers import asking
from rephub.core.errors import ConflictError, UsageError
from rephub.core.fetch import fetch
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

LOOK_SECONDS = 0.5
"""How often the diskboxes are asked how far they are."""


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="All volumes of this group, all or none.")
@point_options
@click.option("--dry-run", is_flag=True, help="Say what would be applied and lost, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--to", metavar="PATH", help="Write a copy there and end nothing.")
@click.option("--cancel", is_flag=True, help="Give up the promote that is under way; takes no point.")
@timeout_option(3600)
async def promote(
    cli: Cli,
    volume: str | None,
    group: str | None,
    offset: int | None,
    time_: str | None,
    checkpoint: str | None,
    latest: bool,
    dry_run: bool,
    yes: bool,
    to: str | None,
    cancel: bool,
    seconds: float,
) -> None:
    """Make a point of VOLUME, or of a group, permanent: its recovery volume ends at it, and protection with it."""
    target = check_target(volume, group)
    if cancel:
        if offset is not None or time_ or checkpoint or latest or dry_run or to:
            raise UsageError(
                "--cancel takes no point and no other option", hint=f"rephub promote {volume} --cancel"
            )
        await _cancel(cli, volume, group, target, seconds)
        return
    point = parse_point(offset, time_, checkpoint, latest)
    to = absolute(to) if to else None
    job = _Promote(cli, volume, group, to)
    async with connect(cli, seconds) as client:
        if dry_run or not yes:
            plans = await job.plan(client, point)
            if dry_run:
                cli.emit(job.document(plans) | {"dry_run": True}, plans_of.table(plans, planned=True))
                return
            suffix = f", copied to {to}" if to else ""
            point = plans_of.confirm(
                cli, f"promote {target}?", f"plan for {target}{suffix}", plans, job.document(plans), point
            )
        document = await job.run(client, point)
    cli.emit(document, plans_of.table(document.get("volumes", [document]), planned=False))


class _Promote:
    """One target, planned and then done."""

    def __init__(self, cli: Cli, volume: str | None, group: str | None, to: str | None) -> None:
        self.cli = cli
        self.volume = volume
        self.group = group
        self.to = to

    async def plan(self, client: ControlClient, point: Point) -> list[dict[str, Any]]:
        """What would be applied and lost, by volume."""
        return await asking.plan_promote(client, self.volume, self.group, point, self.to)

    async def run(self, client: ControlClient, point: Point) -> dict[str, Any]:
        """Promote; the document of the contract."""
        async with _progress(self.cli, read_endpoints(self.cli.state_dir)):
            plans, already = await asking.promote(
                client, self.volume, self.group, point, self.to, self.cli.progress
            )
        return self.document(plans) | ({"already": True} if already else {})

    def document(self, plans: list[dict[str, Any]]) -> dict[str, Any]:
        """A single volume's answer, or a group's with all of them."""
        return plans[0] if self.volume is not None else {"group": self.group, "volumes": plans}


async def _cancel(cli: Cli, volume: str | None, group: str | None, target: str, seconds: float) -> None:
    """Ask for the end of a promote, and wait for what becomes of it.

    Raises:
        NotFoundError: none is under way.
        ConflictError: it was too late.
    """
    seen: dict[str, str] = {}

    async with connect(cli, seconds) as client:
        command = client.new(cmd.CancelPromote, volume=volume, group=group)

        def ended(event: ev.Record) -> dict[str, Any] | None:
            if isinstance(event, ev.PromoteCancelRequested) and event.command_id == command.id:
                seen["promotion"] = event.promotion
            if isinstance(event, ev.PromoteFailed) and event.promotion == seen.get("promotion"):
                return {"promotion": event.promotion}
            if isinstance(event, ev.Promoted) and event.promotion == seen.get("promotion"):
                raise ConflictError(
                    f"{target} was promoted before it could be cancelled", hint="rephub status"
                )
            return None

        answer = await client.ask(command, ended, f"cancel of the promote of {target}")
    document = {"promotion": answer.fields["promotion"], "cancelled": True}
    cli.emit(document | ({"already": True} if answer.already else {}), f"promote of {target}: cancelled")


@contextlib.asynccontextmanager
async def _progress(cli: Cli, endpoints: Endpoints) -> AsyncIterator[None]:
    """A progress line on the terminal, if there is one."""
    if cli.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - 40 ms that most calls need not pay
    from rich.progress import Progress  # noqa: PLC0415

    catalogue, _ = await catalogue_of(endpoints)
    urls = [box.url for box in catalogue.diskboxes.values()]
    with Progress(console=Console(stderr=True), transient=True) as shown:

        async def follow() -> None:
            lines: dict[str, Any] = {}
            while True:
                for document in await asyncio.gather(*(fetch(f"{url}/status", LOOK_SECONDS) for url in urls)):
                    for item in (document or {}).get("promotions", []):
                        name = item["volume"]
                        if name not in lines:
                            lines[name] = shown.add_task(name, total=item["total_bytes"])
                        shown.update(lines[name], completed=item["done_bytes"], total=item["total_bytes"])
                await asyncio.sleep(LOOK_SECONDS)

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])
