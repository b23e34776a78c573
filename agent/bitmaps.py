"""Dirty bitmaps of ours on a protected node: QEMU remembers in them what is written while nobody captures.

A pause puts two on the node before capture ends. The *record* records from its making to its removal without a break; a
sync reads a copy of it (`snapshot`), because QEMU exports only bitmaps that do not change. So an attachment that fails or
is lost before its sync is complete costs nothing: the next one takes a new copy. The *guard* never changes by a write and
has every bit set. Where a disk is cut and grown again QEMU forgets the bits there: what the guard does not have is new,
although the record says nothing of it.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from rephub.agent import source
from rephub.agent.attach import PREFIX, Names, delete_export, delete_node, node_mark
from rephub.agent.vm import DRAIN_SECONDS, Vm, find, tolerated
from rephub.core.nbd.client import NbdClient

GRANULARITY_BYTES = 64 << 10
"""QEMU's default for qcow2: 2 MiB of memory for 1 TiB, and small writes far apart copy little in vain."""

PERSISTENT_DRIVERS = ("qcow2",)
"""Formats that keep a bitmap over a clean end of QEMU."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """Names of the bitmaps of one pause, and of what is made for a while beside them."""

    record: str
    guard: str
    copy: str
    """Of the record, for one sync."""
    blank: Names
    """Of the node that the guard's bits come from (`target`) and its export."""


def names_of(record: str) -> Bitmaps:
    """The names that follow from the record's."""
    mark = record.removeprefix(f"{PREFIX}b-")
    blank = Names(f"{PREFIX}n-{mark}", "", "", f"{PREFIX}y-{mark}")
    return Bitmaps(record, f"{PREFIX}g-{mark}", f"{PREFIX}c-{mark}", blank)


def record_name(node: str, epoch: int) -> str:
    """The record of a pause that ends an epoch; QEMU allows node names of 31 bytes."""
    return f"{PREFIX}b-{node_mark(node)}-{epoch}"


def fault(nodes: list[dict[str, Any]], node: str, wanted: dict[str, Any]) -> str:
    """Why the bitmaps of a pause cannot be relied on, or an empty string; pure.

    A bitmap that is not persistent goes with its QEMU, and one that was not stored cleanly comes back as inconsistent: so
    one that is there and records has seen every write since it was made.

    Args:
        nodes: query-named-block-nodes.
        node: the protected node.
        wanted: `Volume.bitmap`.
    """
    found = find(nodes, "node-name", node)
    if found is None:
        return f"there is no node {node}"
    image = found["image"]["filename"]
    if image != wanted["image"]:
        return f"the node's data are in {image} now, and were in {wanted['image']}"
    own = names_of(wanted["name"])
    for name, records in ((own.record, True), (own.guard, False)):
        bitmap = find(found.get("dirty-bitmaps", []), "name", name)
        if bitmap is None:
            lost = "QEMU was not ended cleanly" if wanted["persistent"] else "QEMU was started anew"
            return f"its dirty bitmap is missing: {lost}, or somebody removed it"
        if bitmap.get("inconsistent"):
            return "its dirty bitmap is inconsistent: QEMU was not ended cleanly"
        if bitmap["recording"] is not records:
            return f"its dirty bitmap was {'disabled' if records else 'enabled'} by somebody"
    return ""


async def remember(vm: Vm, node: str, record: str, server_path: str) -> dict[str, Any]:
    """Begin to remember what is written to a node; from the return on no write is missing.

    Args:
        vm: connected, its lock held.
        node: node name.
        record: `record_name`.
        server_path: of our NBD server, `source.own_path`.

    Returns:
        `name`, `persistent` and `image` of `Volume.bitmap`.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away, or its NBD server cannot be used. There is nothing to rely on then.
    """
    own = names_of(record)
    found = find(await _nodes(vm), "node-name", node) or {"drv": "", "image": {"filename": ""}}
    persistent = found["drv"] in PERSISTENT_DRIVERS
    await clean(vm, node)
    await _add(vm, node, own.record, persistent=persistent)
    await _add(vm, node, own.guard, persistent=persistent, disabled=True)
    await _fill(vm, node, own, found["image"]["virtual-size"], server_path)
    return {"name": record, "persistent": persistent, "image": found["image"]["filename"]}


async def _fill(vm: Vm, node: str, own: Bitmaps, size_bytes: int, server_path: str) -> None:
    """Set every bit of the guard. QMP has no command for it: a node that swallows writes lends its bitmap."""
    blank = own.blank
    async with contextlib.AsyncExitStack() as undo:
        null = {"driver": "null-co", "node-name": blank.target, "size": size_bytes}
        await vm.execute("blockdev-add", null, seconds=DRAIN_SECONDS)
        undo.push_async_callback(delete_node, vm, blank.target)
        await _add(vm, blank.target, own.guard)
        at = await source.open_source(vm, blank.target, blank, server_path, writable=True)
        undo.push_async_callback(source.close_source, vm, blank, server_path)
        client = await NbdClient.connect(**at.address.to_dict(), export=at.export)
        try:
            await client.zero(0, size_bytes, unmap=False)
        finally:
            await client.close()
        await delete_export(vm, blank.export)
        lent = [{"node": blank.target, "name": own.guard}]
        await vm.execute("block-dirty-bitmap-merge", {"node": node, "target": own.guard, "bitmaps": lent})


async def check(vm: Vm, node: str, wanted: dict[str, Any]) -> str:
    """Why the bitmaps cannot be relied on now, or an empty string; see `fault`."""
    return fault(await _nodes(vm), node, wanted)


async def snapshot(vm: Vm, node: str, own: Bitmaps) -> None:
    """Make the copy of the record, which does not change any more; the record records on.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away.
    """
    await _remove(vm, node, own.copy)
    await _add(vm, node, own.copy, disabled=True)
    merge = {"node": node, "target": own.copy, "bitmaps": [own.record]}
    await vm.execute("block-dirty-bitmap-merge", merge)


async def clean(vm: Vm, node: str, keep: Bitmaps | None = None) -> list[str]:
    """Remove all bitmaps of ours from a node but those of a pause; exports of them must be gone before."""
    found = find(await _nodes(vm), "node-name", node) or {}
    # Bitmaps of jobs, such as our mirror, have no name.
    names = [str(item.get("name", "")) for item in found.get("dirty-bitmaps", [])]
    kept = (keep.record, keep.guard) if keep else ()
    # Also those that a node of another name left in the same image.
    stale = [name for name in names if name.startswith(PREFIX) and name not in kept]
    for name in stale:
        await _remove(vm, node, name)
    if stale:
        log.info("bitmaps removed", extra={"monitor": vm.path, "node": node, "names": ",".join(stale)})
    return stale


async def _add(vm: Vm, node: str, name: str, *, persistent: bool = False, disabled: bool = False) -> None:
    bitmap = {"node": node, "name": name, "granularity": GRANULARITY_BYTES}
    await vm.execute("block-dirty-bitmap-add", bitmap | {"persistent": persistent, "disabled": disabled})


async def _remove(vm: Vm, node: str, name: str) -> None:
    async with tolerated("not found"):
        await vm.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


async def _nodes(vm: Vm) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = await vm.execute("query-named-block-nodes", {"flat": True})
    return nodes
