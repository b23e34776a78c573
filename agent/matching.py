"""Which node of a VM is the volume: a VM that comes back may call it otherwise. Pure.

| the volume was named by | it is |
| --- | --- |
| its device, or its node name is one that QEMU made up (`#block123`) | the node in that device; while the device is not there, the node of the same name if it is in none |
| its node name | the node of that name, whatever device it is in; without one, the node in the device that it was in before, if the size is the same |

A node that another volume has, or finds by its own name or device, is not taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from rephub.core.errors import ConflictError, NotFoundError
from rephub.projections.catalogue import Volume
from rephub.schemas.events import NodeInfo


@dataclass(frozen=True, slots=True)
class Match:
    """The node of a volume."""

    info: NodeInfo
    why: str = ""
    """Why it may hold other data than the node before; empty: it is the same node."""
    guessed: bool = False
    """By the device alone, although the operator named a node: somebody who named this one has it."""


def match(volume: Volume, nodes: tuple[NodeInfo, ...]) -> Match:
    """The node that is the volume.

    Raises:
        NotFoundError: there is none; the message says what was looked for, the hint what there is.
    """
    named = next((info for info in nodes if info.node == volume.node), None)
    device = volume.by_device or (volume.device if volume.node.startswith("#") else "")
    if device:
        found = _only(nodes, device)
        if found is not None:
            other = found.node != volume.node
            return Match(
                found, f"device {device} has node {found.node} now, and had {volume.node}" if other else ""
            )
        if named is not None and not named.device:
            return Match(named)
        where = f", and node {named.node} is in device {named.device} now" if named else ""
        raise _missing(f"no device {device!r} in the VM{where}", nodes)
    if named is not None:
        moved = bool(volume.device and named.device and named.device != volume.device)
        return Match(
            named,
            f"node {named.node} is in device {named.device} now, and was in {volume.device}" if moved else "",
        )
    if found := _only(nodes, volume.device):
        if found.size_bytes != volume.size_bytes:
            raise _missing(
                f"no node {volume.node!r} in the VM; its device {found.device} has node {found.node} now, which has "
                f"{found.size_bytes} bytes instead of {volume.size_bytes}",
                nodes,
            )
        why = f"node {volume.node} is gone, and its device {found.device} has node {found.node} now"
        return Match(found, why, guessed=True)
    if found := _only(nodes, volume.node):
        return Match(found)
    raise _missing(f"no node or device {volume.node!r} in the VM", nodes)


def choose(volume: Volume, others: Iterable[Volume], nodes: tuple[NodeInfo, ...]) -> Match:
    """The node that is the volume and no other volume's.

    Args:
        volume: what is to be attached.
        others: the live volumes of the same VM; `volume` itself may be among them.
        nodes: of the VM, as it is now.

    Raises:
        NotFoundError: see `match`.
        ConflictError: it is another volume's.
    """
    own = match(volume, nodes)
    for other in others:
        if other.name == volume.name:
            continue
        theirs = None
        with contextlib.suppress(NotFoundError):
            theirs = match(other, nodes)
        found = (
            theirs is not None and theirs.info.node == own.info.node and (own.guessed or not theirs.guessed)
        )
        # What is attached is attached, whatever the names say.
        if found or (other.attached and other.node == own.info.node):
            raise ConflictError(
                f"node {own.info.node} is that of volume {other.name}" + (f" ({own.why})" if own.why else ""),
                hint=f"unprotect {volume.name}, and protect it by the device or node that it has now",
            )
    return own


def _only(nodes: tuple[NodeInfo, ...], device: str) -> NodeInfo | None:
    """The one node in a device; None for no device."""
    found = [info for info in nodes if device and info.device == device]
    return found[0] if len(found) == 1 else None


def _missing(message: str, nodes: tuple[NodeInfo, ...]) -> NotFoundError:
    known = ", ".join(f"{info.node} ({info.device})" if info.device else info.node for info in nodes)
    return NotFoundError(message, hint=f"it has: {known or 'none'}")
