"""`rephub checkpoint`: mark a point in time by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.table import Table

from rephub.cli.client import connect, error_of
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb, verb_group
from rephub.cli.points import check_target, timeout_option
from rephub.cli.view import catalogue_of
from rephub.core.errors import UsageError
from rephub.core.names import check_name
from rephub.core.units import rfc3339
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

checkpoint = verb_group("checkpoint", "Mark a point in time by name.")


def tag_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--tag KEY=VALUE`, any number of them, as `tags`."""
    return click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help=text)


def parse_tags(given: tuple[str, ...]) -> dict[str, str]:
    """The tags by key.

    Raises:
        UsageError: one is no KEY=VALUE, or a key is given twice.
    """
    tags: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"bad tag {text!r}", hint="for example --tag release=4.2")
        if check_name(key, "tag") in tags:
            raise UsageError(f"tag {key} is given twice", hint="one value a key")
        tags[key] = value
    return tags


@verb(group=checkpoint)
@click.argument("name")
@click.option("--volume", metavar="V", help="Mark this volume.")
@click.option("--group", metavar="G", help="Mark all volumes of this group at the same instant.")
@click.option("--quiesce", is_flag=True, help="Freeze the guest's file systems first.")
@tag_option("Note this with it.")
@timeout_option(30)
async def create(
    cli: Cli,
    name: str,
    volume: str | None,
    group: str | None,
    quiesce: bool,
    tags: tuple[str, ...],
    seconds: float,
) -> None:
    """Mark now as NAME; every write that was answered before this began is in it."""
    check_name(name, "checkpoint")
    check_target(volume, group)
    noted = parse_tags(tags)

    def created(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.CheckpointFailed) and event.checkpoint == name:
            raise error_of(event)
        if isinstance(event, ev.CheckpointCreated) and event.checkpoint == name:
            made = {"checkpoint": name, "kind": event.kind, "offsets": dict(event.offsets)}
            extra = {"tags": noted or None, "warning": event.warning, "hold_ms": event.hold_ms}
            return made | {key: value for key, value in extra.items() if value is not None}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(
            cmd.CreateCheckpoint,
            checkpoint=name,
            volume=volume,
            group=group,
            quiesce=quiesce,
            tags=noted or None,
        )
        document = (await client.ask(command, created, f"checkpoint {name}")).fields
    if "warning" in document:
        cli.progress(f"warning: {document['warning']}")
    marks = ", ".join(f"{marked} at offset {offset}" for marked, offset in document["offsets"].items())
    cli.emit(document, f"{name}: {marks}")


@verb(group=checkpoint)
@click.argument("name")
@timeout_option(30)
async def delete(cli: Cli, name: str, seconds: float) -> None:
    """Forget the checkpoint NAME; the points around it stay."""
    check_name(name, "checkpoint")

    def deleted(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.CheckpointDeleted) and event.checkpoint == name:
            return {"checkpoint": name}
        return None

    async with connect(cli, seconds) as client:
        command = client.new(cmd.DeleteCheckpoint, checkpoint=name)
        answer = await client.ask(command, deleted, f"delete of checkpoint {name}")
    document = answer.fields | ({"already": True} if answer.already else {})
    cli.emit(document, f"{name}: deleted")


@verb("list", group=checkpoint)
@tag_option("Only those with this tag; all of them, if given more than once.")
@click.option("--all", "with_expired", is_flag=True, help="Also those that the history window has passed.")
async def list_(cli: Cli, tags: tuple[str, ...], with_expired: bool) -> None:
    """List the named checkpoints."""
    wanted = parse_tags(tags).items()
    catalogue, _ = await catalogue_of(read_endpoints(cli.state_dir))
    states = ("created", "expired") if with_expired else ("created",)
    found: list[dict[str, Any]] = [
        {
            "checkpoint": entry.name,
            "kind": entry.kind,
            "group": entry.group,
            "offsets": entry.offsets,
            "captured_at": rfc3339(entry.captured_at),
            "state": entry.state,
            "expired": sorted(entry.expired),
            "tags": entry.tags,
        }
        for entry in catalogue.checkpoints.values()
        if entry.state in states and wanted <= entry.tags.items()
    ]
    table = Table(box=None, pad_edge=False)
    for title in ("CHECKPOINT", "KIND", "AT", "OFFSETS", "TAGS"):
        table.add_column(title)
    for entry in found:
        offsets: Any = entry["offsets"]
        table.add_row(
            str(entry["checkpoint"]),
            str(entry["kind"]),
            str(entry["captured_at"]),
            ", ".join(
                f"{volume} {'expired' if volume in entry['expired'] else offset}"
                for volume, offset in offsets.items()
            ),
            " ".join(f"{key}={value}" for key, value in entry["tags"].items()),
        )
    cli.emit({"checkpoints": found}, table if found else "no checkpoint has a name")
