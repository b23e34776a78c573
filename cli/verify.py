"""`rephub verify`: compare a recovery volume with its protected volume, while both are in use."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import click

from rephub.cli.client import ControlClient, connect, error_of
from rephub.cli.output import Cli, verb
from rephub.cli.points import timeout_option
from rephub.cli.view import status_document
from rephub.core.errors import DifferenceError, RephubError
from rephub.core.names import check_name
from rephub.core.units import format_bytes, format_duration, parse_size
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

PROGRESS_SECONDS = 2.0

CANCEL_SECONDS_MAX = 5.0
"""After Ctrl-C: how long the verb tries to say so to the hub; without it the verify ends at its deadline."""


@verb()
@click.argument("volume")
@click.option("--rate", metavar="BYTES", help="At most so much is read in a second, for example 50MiB.")
@click.option("--repair", is_flag=True, help="Copy what differs, and compare it again.")
@timeout_option(3600)
async def verify(cli: Cli, volume: str, rate: str | None, repair: bool, seconds: float) -> None:
    """Compare the recovery volume of VOLUME with the protected disk; guest and protection go on."""
    check_name(volume, "volume")
    rate_bytes = parse_size(rate) if rate else None
    async with connect(cli, seconds) as client:
        command = client.new(cmd.Verify, volume=volume, repair=repair, rate_bytes=rate_bytes)
        try:
            async with _progress(cli, volume):
                document, already = await _ask(cli, client, command)
        except asyncio.CancelledError:
            await _cancel(client, command)
            raise
    if not document["equal"]:
        raise DifferenceError(
            f"the recovery volume of {volume} differs in {format_bytes(document['differing_bytes'])}"
            + (", also after the repair" if repair else ""),
            hint=f"rephub resync {volume}"
            if repair
            else f"rephub verify {volume} --repair, or rephub resync {volume}",
            **document,
        )
    cli.emit(document | ({"already": True} if already else {}), _sentence(document))


async def _ask(cli: Cli, client: ControlClient, command: cmd.Verify) -> tuple[dict[str, Any], bool]:
    """The answer's document, and whether it is of a verify that was under way already."""
    volume, run = command.volume, command.id
    what = f"verify of volume {volume}"

    def ended(event: ev.Record) -> dict[str, Any] | None:
        if run not in (getattr(event, "verify", None), getattr(event, "run", None)):
            return None
        match event:
            case ev.VerifyFailed():
                raise error_of(event)
            case ev.ExtentsCompared() if event.differing:
                cli.progress(f"{what}: round {event.round}, {format_bytes(event.differing_bytes)} to look at")
            case ev.VerifyCompleted():
                return _document(event)
        return None

    answer = await client.ask(command, ended, what)
    if not answer.already:
        return answer.fields, False
    run = answer.fields["verify"]
    return await client.follow(ended, what, client.left_seconds), True


def _document(event: ev.VerifyCompleted) -> dict[str, Any]:
    return {
        "volume": event.volume,
        "offset": event.offset,
        "compared_bytes": event.compared_bytes,
        "skipped_bytes": event.skipped_bytes,
        "differing": [{"start": extent.start, "length": extent.length} for extent in event.differing],
        "differing_bytes": event.differing_bytes,
        "repaired_bytes": event.repaired_bytes,
        "equal": event.equal,
    }


def _sentence(document: dict[str, Any]) -> str:
    repaired = document["differing_bytes"]
    return (
        f"{document['volume']}: equal at offset {document['offset']}, "
        f"{format_bytes(document['compared_bytes'])} compared"
        + (f", {format_bytes(repaired)} repaired" if repaired else "")
    )


async def _cancel(client: ControlClient, command: cmd.Verify) -> None:
    """Ctrl-C: nothing goes on without us."""
    with contextlib.suppress(RephubError, TimeoutError):
        async with asyncio.timeout(CANCEL_SECONDS_MAX):
            await client.tell(client.new(cmd.CancelVerify, verify=command.id))


@contextlib.asynccontextmanager
async def _progress(cli: Cli, volume: str) -> AsyncIterator[None]:
    """Tell a person at a terminal how far it is."""
    telling = asyncio.create_task(_tell(cli, volume)) if sys.stderr.isatty() else None
    try:
        yield
    finally:
        if telling is not None:
            telling.cancel()
            await asyncio.wait({telling})


async def _tell(cli: Cli, volume: str) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        with contextlib.suppress(RephubError):
            (entry,) = (await status_document(cli.state_dir, volume))["volumes"]
            if figures := entry["verify"]:
                left = figures["eta_seconds"]
                share = 100 * figures["done_bytes"] // figures["total_bytes"]
                cli.progress(
                    f"{volume}: {share} %" + (f", {format_duration(left)} left" if left is not None else "")
                )
