"""How each event changes the catalogue: one function per event type, gathered in `FOLDS`.

A function either changes the catalogue wholly or raises ConflictError before it changed anything (an event about an
older epoch, an unknown volume, a transition that the table forbids); `Catalogue.apply` then notes it as ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rephub.core.errors import ConflictError
from rephub.projections import (
    fold_checkpoints,
    fold_compare,
    fold_failover,
    fold_fleet,
    fold_moves,
    fold_pause,
    fold_points,
    fold_volume,
)
from rephub.projections.entities import Agent, PendingProtect, plain
from rephub.projections.fleet_states import AGENT
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue


def _hub_started(catalogue: Catalogue, event: ev.HubStarted) -> None:
    if event.hub_epoch <= catalogue.hub_epoch:
        raise ConflictError(f"hub epoch {event.hub_epoch} is taken")
    catalogue.hub_epoch = event.hub_epoch
    catalogue.hub = event.hub
    catalogue.hub_event_id = event.id


def _answered(_catalogue: Catalogue, _event: ev.CommandRejected | ev.CommandFulfilled) -> None:
    """Only its command id counts, and `apply` keeps that."""


def _agent_announced(catalogue: Catalogue, event: ev.AgentAnnounced) -> None:
    agent = catalogue.agents.get(event.agent)
    if agent is None:
        agent = catalogue.agents[event.agent] = Agent(
            event.agent, event.host, event.pid, event.url, state=AGENT.first
        )
    else:
        agent.state = AGENT.next_state(agent.name, agent.state, "announced")
    agent.host, agent.pid, agent.url, agent.peer = event.host, event.pid, event.url, event.peer or ""


def _agent(catalogue: Catalogue, name: str) -> Agent:
    agent = catalogue.agents.get(name)
    if agent is None:
        raise ConflictError(f"no agent {name}")
    return agent


def _protect_requested(catalogue: Catalogue, event: ev.ProtectRequested) -> None:
    volume = catalogue.volumes.get(event.volume)
    if event.volume in catalogue.protects or (volume is not None and volume.live):
        raise ConflictError(f"volume {event.volume} is protected or about to be")
    catalogue.protects[event.volume] = PendingProtect(
        volume=event.volume,
        group=event.group,
        qmp=event.qmp,
        node=event.node,
        ack=event.ack,
        overload=event.overload,
        history_seconds=event.history_seconds,
        history_bytes=event.history_bytes,
        recovery=event.recovery,
        seed=event.seed,
        failback=event.failback,
        deadline_at=event.deadline_at,
        event_id=event.id,
        command_id=event.command_id or "",
    )


def _vm_probe_requested(catalogue: Catalogue, event: ev.VmProbeRequested) -> None:
    agent = _agent(catalogue, event.agent)
    agent.state = AGENT.next_state(agent.name, agent.state, "asked")
    agent.probes[event.qmp] = event.id
    for pending in catalogue.protects.values():
        if pending.event_id == event.cause_id:
            pending.asked[event.agent] = event.id


def _answered_probe(agent: Agent, qmp: str) -> None:
    left = agent.probes.keys() - {qmp}
    agent.state = AGENT.next_state(agent.name, agent.state, "answered" if left else "answered_last")
    agent.probes.pop(qmp, None)


def _vm_announced(catalogue: Catalogue, event: ev.VmAnnounced) -> None:
    """An agent announces a VM also without being asked; such an event may have been on its way when the hub asked.

    It answers nobody then: it may lack the very node that the hub asks for.
    """
    agent = _agent(catalogue, event.agent)
    agent.vms[event.qmp] = {
        "vm": event.vm,
        "version": event.version,
        "pid": event.pid,
        "nodes": [plain(node) for node in event.nodes],
    }
    if event.cause_id is None:
        return
    newest = agent.probes.get(event.qmp) == event.cause_id
    if newest:
        _answered_probe(agent, event.qmp)
    for pending in catalogue.protects.values():
        asked = pending.asked.get(event.agent) if pending.qmp == event.qmp else None
        if asked is not None and (newest or asked == event.cause_id):
            if event.agent not in pending.announced:
                pending.announced.append(event.agent)
            pending.errors.pop(event.agent, None)


def _vm_probe_failed(catalogue: Catalogue, event: ev.VmProbeFailed) -> None:
    agent = _agent(catalogue, event.agent)
    _answered_probe(agent, event.qmp)
    agent.vms.pop(event.qmp, None)
    for pending in catalogue.protects.values():
        if pending.qmp == event.qmp and event.agent in pending.asked:
            pending.errors[event.agent] = event.error
            if event.agent in pending.announced:
                pending.announced.remove(event.agent)


FOLDS: dict[type[Any], Callable[[Catalogue, Any], None]] = {
    ev.HubStarted: _hub_started,
    ev.CommandRejected: _answered,
    ev.CommandFulfilled: _answered,
    ev.AgentAnnounced: _agent_announced,
    ev.ProtectRequested: _protect_requested,
    ev.VmProbeRequested: _vm_probe_requested,
    ev.VmAnnounced: _vm_announced,
    ev.VmProbeFailed: _vm_probe_failed,
    **fold_fleet.FOLDS,
    **fold_moves.FOLDS,
    **fold_volume.FOLDS,
    **fold_pause.FOLDS,
    **fold_points.FOLDS,
    **fold_failover.FOLDS,
    **fold_compare.FOLDS,
    **fold_checkpoints.FOLDS,
}
