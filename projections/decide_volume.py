"""What the hub decides about protect, unprotect and resync; pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rephub.core.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from rephub.core.names import check_name
from rephub.projections import states
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import (
    fulfilled,
    listed,
    make,
    not_moving,
    one_of,
    protected_volume,
    undisturbed,
)
from rephub.projections.entities import Agent, PendingProtect, Volume
from rephub.projections.failover import Failover
from rephub.projections.placement import place
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

ACK_POLICIES = ("async", "journal")
OVERLOAD_POLICIES = ("throttle", "gap")


def protect(
    catalogue: Catalogue, command: cmd.Protect, now: int, silent: Collection[str] = (), failback: str = ""
) -> ev.Record:
    """Take a Protect; the VM is asked about its nodes next (`reactions.py`).

    Args:
        catalogue: folded up to the head.
        command: what is wished for.
        now: microseconds since the Unix epoch.
        silent: diskboxes that do not answer.
        failback: the fail-over that it goes back from, if it does.

    Raises:
        UsageError: a name, policy or limit is wrong.
        ConflictError: the name, or the node, is protected otherwise; the diskbox it is bound to is full.
        UnavailableError: no agent or no diskbox has announced itself, or the one it is bound to is silent.
    """
    _check_protect(command)
    volume = catalogue.volumes.get(command.volume)
    if volume is not None:
        undisturbed(catalogue, volume)
    if volume is not None and volume.live:
        if volume.paused_at:
            raise ConflictError(
                f"volume {command.volume} is protected and paused",
                hint=f"rephub resume {command.volume}",
                state=volume.state,
            )
        if volume.qmp == command.qmp and command.node in _names_of(catalogue, volume):
            answer = volume_answer(volume) | {"attached": volume.attached}
            return fulfilled(catalogue, command, now, answer)
        raise ConflictError(
            f"volume {command.volume} is protected already: node {volume.node} of {volume.qmp}",
            hint="choose another name, or unprotect it first",
            state=volume.state,
        )
    pending = catalogue.protects.get(command.volume)
    if pending is not None:
        if (pending.qmp, pending.node) == (command.qmp, command.node):
            answer = {"volume": pending.volume, "group": pending.group, "epoch": 0, "state": "syncing"}
            return fulfilled(catalogue, command, now, answer | {"attached": False})
        raise ConflictError(
            f"another protect of volume {command.volume} is under way",
            hint="wait until it is done, or gave up",
        )
    if not catalogue.agents:
        raise UnavailableError("no agent has announced itself", hint="start one: rephub up, or rephub agent")
    place(catalogue, command.volume, command.group, silent)
    _check_not_served(catalogue, command, volume)
    _check_unused(catalogue, command.volume, command.qmp, command.node)
    if command.recovery is not None:
        _check_recovery(catalogue, command.volume, command.recovery)
    return make(
        catalogue,
        ev.ProtectRequested,
        now,
        command.id,
        command.volume,
        command_id=command.id,
        deadline_at=command.deadline_at,
        failback=failback or None,
        **_terms(command),
    )


def _check_protect(command: cmd.Protect) -> None:
    check_name(command.volume, "volume")
    check_name(command.group, "group")
    one_of(command.ack, ACK_POLICIES, "ack policy")
    one_of(command.overload, OVERLOAD_POLICIES, "overload policy")
    if command.history_seconds <= 0 or command.history_bytes <= 0:
        raise UsageError("a history of zero keeps no point", hint="for example --history 24h,20GiB")
    if not command.qmp.startswith("/"):
        raise UsageError(
            f"monitor socket {command.qmp!r} is not an absolute path",
            hint="agents have their own working directory",
        )
    if not command.node:
        raise UsageError("no node is named", hint="--node takes a node name or a device of QEMU")
    if command.seed is not None and not command.seed.startswith("/"):
        raise UsageError(
            f"--seed {command.seed!r} is not an absolute path",
            hint="diskboxes have their own working directory",
        )


def _terms(source: cmd.Protect | PendingProtect) -> dict[str, Any]:
    """The fields that a Protect, its ProtectRequested and its StartProtect share."""
    return {
        name: getattr(source, name)
        for name in (
            "volume",
            "group",
            "qmp",
            "node",
            "ack",
            "overload",
            "history_seconds",
            "history_bytes",
            "recovery",
            "seed",
        )
    }


def volume_answer(volume: Volume) -> dict[str, Any]:
    """What `protect` answers."""
    return {
        "volume": volume.name,
        "group": volume.group,
        "epoch": volume.epoch,
        "state": volume.state,
    }


def _names_of(catalogue: Catalogue, volume: Volume) -> set[str]:
    """The volume's node name, the device by which it was named, and that which the VM announced."""
    names = {volume.node} | ({volume.by_device} if volume.by_device else set())
    agent = catalogue.agents.get(volume.agent)
    vm = agent.vms.get(volume.qmp) if agent else None
    for node in vm["nodes"] if vm else []:
        if node["node"] == volume.node and node["device"]:
            names.add(node["device"])
    return names


def _check_unused(catalogue: Catalogue, name: str, qmp: str, node: str) -> None:
    for other in catalogue.live_volumes():
        if other.name != name and other.qmp == qmp and node in _names_of(catalogue, other):
            raise ConflictError(
                f"node {node} is protected already, as volume {other.name}",
                hint=f"rephub status {other.name}",
                volume=other.name,
            )


def _check_not_served(catalogue: Catalogue, command: cmd.Protect, old: Volume | None) -> None:
    """A committed fail-over serves the old recovery volume to a VM: it cannot become the copy of something else."""
    served = serving(catalogue, command.volume)
    if served is not None and old is not None and command.recovery in (None, old.path):
        raise ConflictError(
            f"{old.path} is served to a VM by fail-over {served.name}",
            hint=f"rephub commit {command.volume} --close, or choose another --recovery",
            failover=served.name,
        )


def serving(catalogue: Catalogue, volume: str) -> Failover | None:
    """The committed fail-over whose views of the volume are still served."""
    for found in catalogue.failovers.values():
        if found.state in ("committed", "closing") and volume in found.volumes:
            return found
    return None


def _check_recovery(catalogue: Catalogue, name: str, recovery: str) -> None:
    """Two volumes on one recovery volume would destroy each other."""
    for other in catalogue.volumes.values():
        if other.name != name and not other.purged and recovery in (other.recovery, other.path):
            raise ConflictError(
                f"{recovery} is the recovery volume of volume {other.name}", hint="choose another --recovery"
            )
    for pending in catalogue.protects.values():
        if pending.volume != name and pending.recovery == recovery:
            raise ConflictError(
                f"{recovery} is about to become the recovery volume of volume {pending.volume}",
                hint="choose another --recovery",
            )


def start(
    catalogue: Catalogue, pending: PendingProtect, agent: Agent, now: int, silent: Collection[str] = ()
) -> ev.StartProtect | None:
    """StartProtect for a protect whose VM was announced; None: it needs a new diskbox first.

    Raises:
        NotFoundError: the VM has no such node; the hint lists those it has.
        ConflictError: read-only, empty, protected already, no room beside its group.
        UnavailableError: no diskbox, or the one it is bound to is silent.
    """
    node = find_node(agent, pending)
    if node["read_only"]:
        raise ConflictError(
            f"node {pending.node} is read-only: nothing to protect", hint="choose a writable node"
        )
    if node["size_bytes"] <= 0:
        raise ConflictError(f"node {pending.node} is empty", hint="choose a node with a medium")
    _check_unused(catalogue, pending.volume, pending.qmp, node["node"])
    diskbox = place(catalogue, pending.volume, pending.group, silent)
    if diskbox is None:
        return None
    return make(
        catalogue,
        ev.StartProtect,
        now,
        pending.event_id,
        pending.volume,
        command_id=pending.command_id or None,
        agent=agent.name,
        diskbox=diskbox,
        size_bytes=node["size_bytes"],
        device=None if pending.node == node["node"] else pending.node,
        failback=pending.failback,
        **(_terms(pending) | {"node": node["node"]}),
    )


def find_node(agent: Agent, pending: PendingProtect) -> dict[str, Any]:
    """The VM's node of that name, else the one of that device.

    Raises:
        NotFoundError: neither; the hint lists what there is.
    """
    vm = agent.vms[pending.qmp]
    nodes: list[dict[str, Any]] = vm["nodes"]
    for key in ("node", "device"):
        for node in nodes:
            if node[key] == pending.node:
                return node
    names = [node["node"] + (f" ({node['device']})" if node["device"] else "") for node in nodes]
    raise NotFoundError(
        f"VM {vm['vm']} at {pending.qmp} has no node {pending.node}", hint=listed(names, "nodes")
    )


def unprotect(catalogue: Catalogue, command: cmd.Unprotect, now: int) -> ev.Record:
    """End protection; also of a promoted volume, and again with purge of one that was only unprotected.

    Raises:
        NotFoundError: unknown volume.
        ConflictError: a fail-over test uses it, a promote is under way.
    """
    volume = catalogue.volumes.get(check_name(command.volume, "volume"))
    if volume is None:
        if command.volume in catalogue.protects:
            raise ConflictError(
                f"a protect of volume {command.volume} is under way", hint="wait until it is done, or gave up"
            )
        volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    not_moving(volume)
    if volume.purged or (volume.retired and not command.purge):
        answer = {"volume": volume.name, "purged": volume.purged}
        return fulfilled(catalogue, command, now, answer)
    if command.volume in catalogue.protects:
        raise ConflictError(
            f"a protect of volume {command.volume} is under way", hint="wait until it is done, or gave up"
        )
    tests = [fot.name for fot in catalogue.fots.values() if volume.name in fot.volumes and not fot.ended]
    if tests:
        raise ConflictError(
            f"fail-over test {', '.join(tests)} uses volume {volume.name}",
            hint=f"rephub fot stop {tests[0]}",
            fots=tests,
        )
    served = serving(catalogue, volume.name)
    if served is not None:
        raise ConflictError(
            f"volume {volume.name} is served to a VM by fail-over {served.name}",
            hint=f"rephub commit {volume.name} --close",
            failover=served.name,
        )
    return make(
        catalogue,
        ev.UnprotectRequested,
        now,
        command.id,
        volume.name,
        command_id=command.id,
        volume=volume.name,
        purge=command.purge,
    )


def resync(catalogue: Catalogue, command: cmd.Resync, now: int) -> ev.Record:
    """Ask the agent to attach anew, which brings a new sync with it.

    Raises:
        NotFoundError: unknown volume.
        ConflictError: its state does not lead to resyncing, or it is busy.
    """
    volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    if volume.pause_id:
        raise ConflictError(
            f"volume {volume.name} is being paused",
            hint=f"rephub wait {volume.name} --state paused",
            state=volume.state,
        )
    states.next_state(volume.state, "attached")
    if volume.resync_id or (volume.attached and volume.state in ("syncing", "resyncing")):
        return fulfilled(catalogue, command, now, volume_answer(volume))
    return make(
        catalogue,
        ev.ResyncRequested,
        now,
        command.id,
        volume.name,
        command_id=command.id,
        volume=volume.name,
    )
