"""Plans of promotes and fail-overs, as documents and for people: what a point means before anything is done."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from rephub.cli.output import Cli
from rephub.cli.points import Point
from rephub.core.errors import ConfirmationRequired
from rephub.core.units import format_bytes, format_duration


def confirm(
    cli: Cli, question: str, title: str, plans: list[dict[str, Any]], document: dict[str, Any], point: Point
) -> Point:
    """Show the plan and ask.

    Args:
        cli: asks.
        question: to be answered by yes.
        title: above the plan.
        plans: by volume.
        document: the plan as JSON.
        point: as the operator named it.

    Returns:
        The point to promote to: for `--latest` of one volume the very offset that was shown.

    Raises:
        ConfirmationRequired: with the plan in its fields.
    """
    cli.progress(title)
    for plan in plans:
        cli.progress(f"  {_sentence(plan)}")
    try:
        cli.confirm(question, yes=False)
    except ConfirmationRequired as error:
        raise ConfirmationRequired(error.message, hint=error.hint, plan=document) from None
    if point.kind == "latest" and len(plans) == 1:
        return Point("offset", str(plans[0]["offset"]))
    return point


def _sentence(plan: dict[str, Any]) -> str:
    return (
        f"{plan['volume']} at offset {plan['offset']}: {plan['applied_events']} events "
        f"({format_bytes(plan['applied_bytes'])}) to apply to {plan['path']}, {plan['lost_events']} events "
        f"({format_bytes(plan['lost_bytes'])}, {format_duration(plan['lost_seconds'])}) after it"
    )


def table(plans: list[dict[str, Any]], *, planned: bool) -> Table:
    """Plans for people; `planned`: nothing was done yet."""
    shown = Table(box=None, pad_edge=False)
    applied = "TO APPLY" if planned else "APPLIED"
    for title in ("VOLUME", "OFFSET", applied, "BYTES", "AFTER IT", "BYTES", "PATH"):
        shown.add_column(title)
    for plan in plans:
        shown.add_row(
            plan["volume"],
            str(plan["offset"]),
            str(plan["applied_events"]),
            format_bytes(plan["applied_bytes"]),
            str(plan["lost_events"]),
            format_bytes(plan["lost_bytes"]),
            plan["path"],
        )
    return shown
