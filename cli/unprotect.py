"""`rephub unprotect`: end the protection of a volume."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from rephub.cli.client import connect
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.points import timeout_option
from rephub.cli.view import catalogue_of
from rephub.core.errors import UnavailableError
from rephub.core.names import check_name
from rephub.core.targets import is_ours_to_delete
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@verb()
@click.argument("volume")
@click.option(
    "--purge", is_flag=True, help="Delete journal and recovery volume too; never a device or NBD export."
)
@timeout_option(60)
async def unprotect(cli: Cli, volume: str, purge: bool, seconds: float) -> None:
    """End the protection of VOLUME; the guest is not disturbed. Journal and recovery volume stay without --purge."""
    check_name(volume, "volume")

    def ended(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.Unprotected) and event.volume == volume:
            return {"volume": volume, "purged": event.purged}
        return None

    target = await _kept(cli, volume) if purge else ""
    async with connect(cli, seconds) as client:
        command = client.new(cmd.Unprotect, volume=volume, purge=purge)
        answer = await client.ask(command, ended, f"unprotect of volume {volume}")
    document = answer.fields | ({"already": True} if answer.already else {})
    text = f"journal and recovery volume {'deleted' if document['purged'] else 'kept'}"
    if document["purged"] and target:
        document["kept"] = target
        text = f"journal deleted; what is on {target} was left there"
    cli.emit(document, f"{volume}: not protected any more, {text}")


async def _kept(cli: Cli, volume: str) -> str:
    """What a purge keeps: a device, an export, or a seed that was taken over; empty if it keeps nothing."""
    with contextlib.suppress(UnavailableError):
        catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
        if volume in catalogue.volumes:
            found = catalogue.volumes[volume]
            if not is_ours_to_delete(found.path) or found.path == found.seed:
                return found.path
    return ""
