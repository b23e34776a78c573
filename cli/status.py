"""`rephub status`: how well every volume is protected."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rephub.cli.output import Cli, error_document, verb
from rephub.cli.view import status_document
from rephub.core.errors import DegradedError, RephubError, UsageError
from rephub.core.names import check_name
from rephub.core.units import format_bytes, format_duration

WATCH_SECONDS = 1.0


@verb()
@click.argument("volume", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@click.option("--check", is_flag=True, help="Exit code 3 if protection is not whole, one line per reason.")
async def status(cli: Cli, volume: str | None, watch: bool, check: bool) -> int | None:
    """Say how well VOLUME, or every volume, is protected; answers with Kafka, Redis or hub down."""
    if volume is not None:
        check_name(volume, "volume")
    if watch and check:
        raise UsageError("--watch and --check exclude each other")
    if watch:
        await _watch(cli, volume)
        return None
    document = await status_document(cli.state_dir, volume)
    cli.emit(document, _table(document))
    for problem in document["problems"]:
        cli.progress(problem)
    return DegradedError.exit_code if check and document["problems"] else None


async def _watch(cli: Cli, volume: str | None) -> None:
    """Show it each second; what fails the first time fails the verb, later it may come back."""
    document = await status_document(cli.state_dir, volume)
    if cli.json or not sys.stdout.isatty():
        while True:
            cli.emit(document, None if "error" in document else _table(document))
            await asyncio.sleep(WATCH_SECONDS)
            document = await _again(cli, volume)
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            shown = document["error"]["message"] if "error" in document else _table(document)
            live.update(shown, refresh=True)
            await asyncio.sleep(WATCH_SECONDS)
            document = await _again(cli, volume)


async def _again(cli: Cli, volume: str | None) -> dict[str, Any]:
    """The document, or that of its error."""
    try:
        return await status_document(cli.state_dir, volume)
    except RephubError as error:
        return error_document(error)


def _table(document: dict[str, Any]) -> Table | str:
    if not document["volumes"]:
        return "no volume is protected"
    table = Table(box=None, pad_edge=False)
    for title in ("VOLUME", "GROUP", "STATE", "RPO", "LAG", "WINDOW", "POINTS", "SYNC", "REASON"):
        table.add_column(title, overflow="fold" if title == "REASON" else "ellipsis")
    for entry in document["volumes"]:
        first, last = entry["earliest_offset"], entry["latest_offset"]
        table.add_row(
            entry["volume"],
            entry["group"],
            entry["state"],
            _known(entry["rpo_seconds"], format_duration),
            _known(entry["lag_bytes"], format_bytes),
            _known(entry["window_seconds"], format_duration),
            f"{first}–{last}" if first is not None else "none",
            _sync(entry["sync"]),
            entry["reason"],
        )
    return table


def _known(value: float | None, render: Any) -> str:
    return "?" if value is None else str(render(value))


def _sync(sync: dict[str, Any] | None) -> str:
    if not sync or not sync.get("total_bytes"):
        return ""
    left, rate = sync.get("eta_seconds"), sync.get("rate_bytes_per_second")
    eta = f", {format_duration(left)} left" if left is not None else ""
    limit = f", at most {format_bytes(rate)}/s" if rate else ""
    held = ", paused" if sync.get("paused") else ", waits" if sync.get("waiting") else ""
    return f"{100 * sync['done_bytes'] // sync['total_bytes']} %{held or eta}{limit}"
