"""What agents and diskboxes write next about fail-overs; part of `control_world.py`."""

from __future__ import annotations

from typing import Any

from rephub.core.control.ids import event_id
from rephub.core.errors import NotFoundError
from rephub.projections.catalogue import Catalogue, Failover
from rephub.schemas import events as ev


def _event(kind: type, found: Failover, now: int, source: str, **fields: Any) -> ev.Record:
    """An event about a fail-over; its id follows from the state that it answers."""
    cause = found.end_id or found.commit_id or found.event_id
    identity = event_id(cause, kind.__name__, f"{found.name}/{source}")
    head = {"id": identity, "at": now, "source": source, "cause_id": cause, "hub_epoch": 0}
    return kind(**head, command_id=found.command_id or None, failover=found.name, **fields)


def agent_failovers(catalogue: Catalogue, agent: str, vms: dict[str, Any], now: int) -> list[ev.Record]:
    """What the agent would write next."""
    source = f"agent/{agent}"
    due: list[ev.Record] = []
    for found in catalogue.failovers.values():
        mine = [name for name in found.volumes if catalogue.volumes[name].agent == agent]
        left = [name for name in mine if name not in found.drained]
        if found.to_drain and left:
            items = tuple(
                ev.DrainedItem(volume=name, offset=150, captured_at=now, stopped=True) for name in left
            )
            due.append(_event(ev.FailoverDrained, found, now, source, agent=agent, drained=items))
        if found.to_resume and any(
            found.drained[name]["agent"] == agent and agent not in found.resumed for name in found.drained
        ):
            due.append(_event(ev.FailoverResumed, found, now, source, agent=agent))
        if found.agent != agent or not found.redirected:
            continue
        if found.state in ("rolling_back", "rolled_back", "closing", "closed"):
            due.append(_event(ev.FailoverDetached, found, now, source, agent=agent))
        elif found.redirect == "due" and found.qmp in vms:
            due.append(_event(ev.FailoverAttached, found, now, source, agent=agent))
        elif found.redirect == "due":
            error = NotFoundError(f"no monitor at {found.qmp}", hint="check --qmp").to_json()
            due.append(_event(ev.FailoverAttachFailed, found, now, source, agent=agent, error=error))
    return due


def plans_of(found: Failover, now: int) -> tuple[ev.PlanItem, ...]:
    """What is opened and lost."""
    offset = int(found.point_value) if found.point_kind == "offset" else 150
    return tuple(
        ev.PlanItem(
            volume=name, offset=offset, captured_at=now, path=f"/boxes/{name}", events=3, bytes=12288, lost_events=1,
            lost_bytes=4096, lost_seconds=0.5,
        )
        for name in found.volumes
    )  # fmt: skip


def diskbox_failovers(catalogue: Catalogue, diskbox: str, now: int) -> list[ev.Record]:
    """What the diskbox would write next."""
    source = f"diskbox/{diskbox}"
    due: list[ev.Record] = []
    for found in catalogue.failovers.values():
        if found.diskbox != diskbox:
            continue
        plans = plans_of(found, now)
        if found.state == "drained" or (found.state == "requested" and not found.to_drain):
            due.append(_event(ev.FailoverPlanned, found, now, source, plans=plans))
        elif found.state == "started":
            views = tuple(
                ev.ViewItem(
                    volume=plan.volume, offset=plan.offset, captured_at=now, uri=f"nbd+unix:///{plan.volume}?socket=/s"
                )
                for plan in plans
            )  # fmt: skip
            due.append(_event(ev.FailoverOpened, found, now, source, views=views, plans=plans))
        elif found.state == "opened" and not found.folded:
            due.append(_event(ev.FailoverFolded, found, now, source))
        elif found.state == "committing":
            due.append(_event(ev.FailoverCommitted, found, now, source, plans=plans))
        elif found.state == "rolling_back" and not found.redirected:
            due.append(_event(ev.FailoverRolledBack, found, now, source, reason=found.reason))
        elif found.state == "closing" and not found.redirected:
            due.append(_event(ev.FailoverClosed, found, now, source, reason="closed", plans=plans))
    return due
