"""`rephub alerts`: what the monitor has raised, from `rephub.alerts`."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, one_line, verb
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.control.port import Entry
from rephub.core.errors import DegradedError
from rephub.core.names import ALERTS_TOPIC
from rephub.core.units import rfc3339
from rephub.projections.alerts import OpenAlerts, document
from rephub.schemas.alerts import AlertCleared

STYLES = {"critical": "bold red", "warning": "yellow"}


@verb()
@click.option("--all", "with_cleared", is_flag=True, help="Also those that are over.")
@click.option("--check", is_flag=True, help="Exit code 3 if a critical one is open.")
async def alerts(cli: Cli, with_cleared: bool, check: bool) -> int | None:
    """List the alerts that are open, the worst first."""
    log = KafkaControlLog(read_endpoints(cli.state_dir).bootstrap, topics=(ALERTS_TOPIC,))
    try:
        entries = await log.read(ALERTS_TOPIC, 0, await log.next_offset(ALERTS_TOPIC))
    finally:
        await log.close()
    found, cleared = fold(entries)
    shown = found + (cleared if with_cleared else [])
    cli.emit({"alerts": shown}, _table(shown) if shown else "no alert is open")
    worst = [one for one in found if one["severity"] == "critical"]
    return DegradedError.exit_code if check and worst else None


def fold(entries: list[Entry]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Alerts as this verb shows them: the open ones, and those that are over, which ended last first.

    Args:
        entries: of the topic, from its beginning.
    """
    known = OpenAlerts()
    cleared: list[dict[str, Any]] = []
    for offset, record in entries:
        raised = known.open.get(record.alert) if isinstance(record, AlertCleared) else None
        if known.apply(offset, record) and raised is not None:
            cleared.append(_document(document(raised), record.at))
    return [_document(one, None) for one in known.to_documents()], cleared[::-1]


def _document(one: dict[str, Any], cleared_at: int | None) -> dict[str, Any]:
    """With times in RFC 3339, as everywhere on the command line."""
    times = {"since": one["since"], "raised_at": one["raised_at"], "last_good_at": one["last_good_at"]}
    times["cleared_at"] = cleared_at
    return one | {name: None if at is None else rfc3339(at) for name, at in times.items()}


def _table(shown: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("SEVERITY", "RULE", "ABOUT", "RAISED", "OVER", "TEXT"):
        table.add_column(title, overflow="fold")
    for one in shown:
        hint = f"\n{one_line(one['hint'])}" if one["hint"] and one["cleared_at"] is None else ""
        cells = (
            one["severity"],
            one["rule"],
            f"{one['subject_kind']} {one['subject']}",
            one["raised_at"],
            one["cleared_at"] or "",
        )
        style = "dim" if one["cleared_at"] else STYLES.get(one["severity"], "")
        table.add_row(
            *(Text(one_line(cell)) for cell in cells), Text(one_line(one["text"]) + hint), style=style
        )
    return table
