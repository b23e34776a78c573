"""`rephub wait`: wait until a volume is in a state."""

from __future__ import annotations

import asyncio
import time

import click

from rephub.cli.output import Cli, verb
from rephub.cli.points import timeout_option
from rephub.cli.view import status_document
from rephub.core.errors import RephubError, UnavailableError
from rephub.core.names import check_name
from rephub.projections.states import STATES

POLL_SECONDS = 0.25


@verb()
@click.argument("volume")
@click.option("--state", type=click.Choice(list(STATES)), required=True, help="The state to wait for.")
@timeout_option(60)
async def wait(cli: Cli, volume: str, state: str, seconds: float) -> None:
    """Wait until VOLUME is in a state; exit code 1 if it is not by then."""
    check_name(volume, "volume")
    deadline = time.monotonic() + seconds
    last, reason = "unknown", ""
    while True:
        try:
            (entry,) = (await status_document(cli.state_dir, volume))["volumes"]
            if entry["state"] not in (last, state):
                cli.progress(
                    f"{volume}: {entry['state']}" + (f" ({entry['reason']})" if entry["reason"] else "")
                )
            last, reason = entry["state"], entry["reason"]
        except UnavailableError as error:
            reason = error.message
        if last == state:
            cli.emit({"volume": volume, "state": last}, f"{volume}: {last}")
            return
        if time.monotonic() >= deadline:
            raise RephubError(
                f"volume {volume} is {last}, not {state}, after {seconds:g} s"
                + (f": {reason}" if reason else ""),
                hint="give more time with --timeout, or look at `rephub status`",
                state=last,
                reason=reason,
            )
        await asyncio.sleep(POLL_SECONDS)
