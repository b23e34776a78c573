"""What the command line and the hub's page ask of the hub: tests, plans and promotes, each from its command to its end."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from rephub.core.control.client import ControlClient, error_of
from rephub.core.control.wishes import Point, check_target
from rephub.core.errors import ConflictError
from rephub.core.units import rfc3339
from rephub.projections.points import resolved
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

Tell = Callable[[str], None]
"""Takes a line for whoever waits."""


def new_test_name() -> str:
    """Of a fail-over test that is to be opened."""
    return f"fot-{uuid.uuid4().hex[:12]}"


async def start_test(
    client: ControlClient,
    volume: str | None,
    group: str | None,
    point: Point,
    *,
    read_only: bool = False,
    qmp: str | None = None,
    name: str = "",
) -> list[dict[str, Any]]:
    """Start a fail-over test; its views: `{"fot", "volume", "offset", "uri", "resolved"}`.

    Args:
        client: asks.
        volume: one, or None.
        group: or all of a group.
        point: to be opened.
        read_only: refuse writes.
        qmp: monitor of a VM that gets the views; None: none.
        name: of the test; empty: a new one.

    Raises:
        RephubError: it did not start.
    """
    target = check_target(volume, group)
    name = name or new_test_name()
    seen: dict[str, Any] = {}

    def started(event: ev.Record) -> dict[str, Any] | None:
        if getattr(event, "fot", None) != name:
            return None
        if isinstance(event, ev.FotFailed):
            raise error_of(event)
        if isinstance(event, ev.FotStarted):
            seen["views"] = [_view(name, item) for item in event.views]
        if isinstance(event, ev.FotAttachFailed):
            seen["error"] = error_of(event)
        if isinstance(event, ev.FotStopped):
            # After FotAttachFailed; or somebody else stopped it before the VM had it.
            raise seen.get("error") or ConflictError(
                f"{name} was stopped: {event.reason}", hint="start another"
            )
        return seen if isinstance(event, ev.FotAttached if qmp else ev.FotStarted) else None

    command = client.new(
        cmd.StartFot,
        fot=name,
        volume=volume,
        group=group,
        point_kind=point.kind,
        point_value=point.value,
        read_only=read_only,
        qmp=qmp,
    )
    answer = await client.ask(command, started, f"fail-over test {name} of {target}")
    views: list[dict[str, Any]] = answer.fields["views"]
    return views


async def end_test(client: ControlClient, fot_id: str, warn: Tell) -> bool:
    """Stop a test, wait until it is over; whether it was so before. Raises RephubError."""

    def stopped(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.FotDetached) and event.fot == fot_id and event.warning:
            warn(event.warning)
        if isinstance(event, (ev.FotStopped, ev.FotFailed)) and event.fot == fot_id:
            return {"fot": fot_id}
        return None

    command = client.new(cmd.StopFot, fot=fot_id)
    what = f"stop of fail-over test {fot_id}"
    answer = await client.ask(command, stopped, what)
    if answer.already and not answer.fields["ended"]:
        await client.follow(stopped, what, client.left_seconds)
    return answer.already


async def plan_promote(
    client: ControlClient, volume: str | None, group: str | None, point: Point, to: str | None = None
) -> list[dict[str, Any]]:
    """What a promote would apply and lose, by volume; changes nothing. Raises RephubError."""
    target = check_target(volume, group)
    command = _promote(client, volume, group, point, to, dry_run=True)

    def planned(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.PromoteFailed) and event.promotion == command.id:
            raise error_of(event)
        if isinstance(event, ev.PromotePlanned) and event.promotion == command.id:
            return {"plans": [plan_document(plan) for plan in event.plans]}
        return None

    answer = await client.ask(command, planned, f"plan of promote of {target}")
    plans: list[dict[str, Any]] = answer.fields["plans"]
    return plans


async def promote(
    client: ControlClient,
    volume: str | None,
    group: str | None,
    point: Point,
    to: str | None,
    tell: Tell,
    *,
    to_the_end: bool = True,
) -> tuple[list[dict[str, Any]], bool]:
    """Promote; the plans that were carried out, and whether it was so before.

    Args:
        client: asks.
        volume: one, or None.
        group: or all of a group.
        point: that becomes permanent.
        to: path of a copy; None: the recovery volume itself.
        tell: is told each step.
        to_the_end: False: return once the plan is being carried out.

    Raises:
        RephubError: it did not happen.
    """
    target = check_target(volume, group)
    command = _promote(client, volume, group, point, to, dry_run=False)
    seen: dict[str, Any] = {}

    def promoted(event: ev.Record) -> dict[str, Any] | None:
        if getattr(event, "promotion", None) != command.id:
            return None
        match event:
            case ev.PromoteFailed():
                raise error_of(event)
            case ev.PromotePlanned():
                tell(f"promote of {target}: planned")
                seen["plans"] = [plan_document(plan) for plan in event.plans]
            case ev.PromoteStarted():
                tell(f"promote of {target}: under way")
                return None if to_the_end else seen
            case ev.Promoted():
                return {"plans": [plan_document(plan) for plan in event.plans]}
        return None

    answer = await client.ask(command, promoted, f"promote of {target}")
    plans = answer.fields["plans"]
    if answer.already:
        plans = [plan_document(ev.PlanItem(**plan)) for plan in plans]
    return plans, answer.already


def plan_document(plan: ev.PlanItem) -> dict[str, Any]:
    """One volume's plan, of a promote or a fail-over."""
    found = {"offset": plan.offset, "captured_at": plan.captured_at, "checkpoint": plan.checkpoint}
    return {
        "volume": plan.volume,
        "offset": plan.offset,
        "path": plan.path,
        "applied_events": plan.events,
        "applied_bytes": plan.bytes,
        "lost_events": plan.lost_events,
        "lost_bytes": plan.lost_bytes,
        "lost_seconds": plan.lost_seconds,
        "applied_from_at": rfc3339(plan.applied_from_at) if plan.applied_from_at else None,
        "last_checkpoint": plan.last_checkpoint,
        "resolved": resolved(found),
    }


def _promote(
    client: ControlClient,
    volume: str | None,
    group: str | None,
    point: Point,
    to: str | None,
    *,
    dry_run: bool,
) -> cmd.Promote:
    return client.new(
        cmd.Promote,
        volume=volume,
        group=group,
        point_kind=point.kind,
        point_value=point.value,
        dry_run=dry_run,
        to=to,
    )


def _view(name: str, item: ev.ViewItem) -> dict[str, Any]:
    found = {"offset": item.offset, "captured_at": item.captured_at, "checkpoint": item.checkpoint}
    return {
        "fot": name,
        "volume": item.volume,
        "offset": item.offset,
        "uri": item.uri,
        "resolved": resolved(found),
    }
