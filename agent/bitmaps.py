"""Dirty bitmaps of ours on a protected node: QEMU remembers in them what is written, whoever captures or does not.

Each attachment puts a *chain* on the node before its filter: *records*, one after the other, of which the newest records,
and a *guard*. `rotate` adds the next record and disables the one before in one transaction, the addition first, so no
write is in neither; a record is dropped once all that it says is acked in the journal. Its name holds the newest offset that
was acked when it was made: with the records that are left, the journal up to there is all of the volume. So the chain tells
what may be missing in the journal, and needs nobody else's memory.

A sync reads a copy of the records (`snapshot`), because QEMU exports only bitmaps that do not change; the records stay until
that sync is complete. The guard never changes by a write and has every bit set. Where a disk is cut and grown again QEMU
forgets the bits there: what the guard does not have is new, although no record says anything of it.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from rephub.agent import source
from rephub.agent.attach import PREFIX, Names, delete_export, delete_node, node_mark
from rephub.agent.vm import DRAIN_SECONDS, Vm, find, tolerated
from rephub.core.errors import QemuError
from rephub.core.nbd.client import NbdClient

GRANULARITY_BYTES = 64 << 10
"""QEMU's default for qcow2: 2 MiB of memory for 1 TiB, and small writes far apart copy little in vain."""

PERSISTENT_DRIVERS = ("qcow2",)
"""Formats that keep a bitmap over a clean end of QEMU."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chain:
    """Names of the bitmaps of one attachment, and of what is made for a while beside them."""

    base: str
    """All records begin with it."""
    guard: str
    copy: str
    """Of all records, for one sync."""
    blank: Names
    """Of the node that the guard's bits come from (`target`) and its export."""


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One record of a chain."""

    number: int
    offset: int
    """All events up to it were acked when the record was made; -1: it does not say."""
    name: str


def chain_of(base: str) -> Chain:
    """The names that follow from a chain's."""
    mark = base.removeprefix(f"{PREFIX}b-")
    blank = Names(f"{PREFIX}n-{mark}", "", "", f"{PREFIX}y-{mark}")
    return Chain(base, f"{PREFIX}g-{mark}", f"{PREFIX}c-{mark}", blank)


def chain_name(node: str, attachment_id: str) -> str:
    """The base of an attachment's chain; QEMU allows node names of 31 bytes."""
    return f"{PREFIX}b-{node_mark(node)}-{attachment_id[:12]}"


def record_name(base: str, number: int, offset: int) -> str:
    """Name of a record."""
    return f"{base}.{number}.{offset}"


def parse_record(base: str, name: str) -> Record | None:
    """The record of this name; None if it is none of the chain. Older agents' chains have one, of the chain's own name."""
    if name == base:
        return Record(0, -1, name)
    parts = name.removeprefix(f"{base}.").split(".")
    if not name.startswith(f"{base}.") or len(parts) != 2 or not all(part.isdecimal() for part in parts):
        return None
    return Record(int(parts[0]), int(parts[1]), name)


def records_of(node: dict[str, Any], base: str) -> list[Record]:
    """The chain's records on a node, the oldest first; pure.

    Args:
        node: of query-named-block-nodes.
        base: of the chain.
    """
    # Bitmaps of jobs, such as our mirror, have no name.
    names = (str(item.get("name", "")) for item in node.get("dirty-bitmaps", []))
    return sorted(record for name in names if (record := parse_record(base, name)) is not None)


def fault(nodes: list[dict[str, Any]], node: str, wanted: dict[str, Any]) -> str:
    """Why a chain cannot be relied on, or an empty string; pure.

    A bitmap that is not persistent goes with its QEMU, and one that was not stored cleanly comes back as inconsistent: so
    a newest record that is there and records has seen every write since it was made, and those before it all until then.

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
    chain, records = chain_of(wanted["name"]), records_of(found, wanted["name"])
    bitmaps = found.get("dirty-bitmaps", [])
    # Without any record: the name of what is not there.
    for name in [record.name for record in records] or [chain.base]:
        newest = not records or name == records[-1].name
        if why := _bitmap_fault(find(bitmaps, "name", name), wanted, records=True if newest else None):
            return why
    return _bitmap_fault(find(bitmaps, "name", chain.guard), wanted, records=False)


def _bitmap_fault(bitmap: dict[str, Any] | None, wanted: dict[str, Any], *, records: bool | None) -> str:
    if bitmap is None:
        lost = "QEMU was not ended cleanly" if wanted["persistent"] else "QEMU was started anew"
        return f"its dirty bitmap is missing: {lost}, or somebody removed it"
    if bitmap.get("inconsistent"):
        return "its dirty bitmap is inconsistent: QEMU was not ended cleanly"
    if records is not None and bitmap["recording"] is not records:
        return f"its dirty bitmap was {'disabled' if records else 'enabled'} by somebody"
    return ""


async def begin(vm: Vm, node: str, base: str, offset: int) -> dict[str, Any]:
    """Put the first record of a chain on a node; from the return on no write is missing in it.

    Args:
        vm: connected, its lock held.
        node: node name.
        base: of the chain.
        offset: all events up to it are acked.

    Returns:
        `name`, `persistent` and `image` of `Volume.bitmap`.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away.
    """
    found = find(await nodes_of(vm), "node-name", node) or {"drv": "", "image": {"filename": ""}}
    persistent = found["drv"] in PERSISTENT_DRIVERS
    first = record_name(base, 1, offset)
    try:
        await _add(vm, node, first, persistent=persistent)
    except QemuError:
        # qcow2 of the first version keeps none.
        if not persistent:
            raise
        persistent = False
        await _add(vm, node, first)
    return {"name": base, "persistent": persistent, "image": found["image"]["filename"]}


async def inherit(vm: Vm, node: str, new: Chain, old: Chain, *, persistent: bool) -> None:
    """Take over what another chain says: its records, and as the guard, its guard.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away.
    """
    found = find(await nodes_of(vm), "node-name", node) or {}
    target = records_of(found, new.base)[-1].name
    await _merge(vm, node, target, [record.name for record in records_of(found, old.base)])
    await _add(vm, node, new.guard, persistent=persistent, disabled=True)
    await _merge(vm, node, new.guard, [old.guard])


async def make_guard(vm: Vm, node: str, chain: Chain, server_path: str, *, persistent: bool) -> None:
    """Put a guard with every bit set on a node, or set every bit of the one that is there.

    QMP has no command for that: a node that swallows writes lends its bitmap.

    Args:
        vm: connected, its lock held.
        node: node name.
        chain: whose guard.
        server_path: of our NBD server, `source.own_path`.
        persistent: it outlives a clean end of QEMU.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away, or its NBD server cannot be used.
    """
    found = find(await nodes_of(vm), "node-name", node) or {}
    if find(found.get("dirty-bitmaps", []), "name", chain.guard) is None:
        await _add(vm, node, chain.guard, persistent=persistent, disabled=True)
    blank, size_bytes = chain.blank, found["image"]["virtual-size"]
    async with contextlib.AsyncExitStack() as undo:
        null = {"driver": "null-co", "node-name": blank.target, "size": size_bytes}
        await vm.execute("blockdev-add", null, seconds=DRAIN_SECONDS)
        undo.push_async_callback(delete_node, vm, blank.target)
        await _add(vm, blank.target, chain.guard)
        at = await source.open_source(vm, blank.target, blank, server_path, writable=True)
        undo.push_async_callback(source.close_source, vm, blank, server_path)
        client = await NbdClient.connect(**at.address.to_dict(), export=at.export)
        try:
            await client.zero(0, size_bytes, unmap=False)
        finally:
            await client.close()
        await delete_export(vm, blank.export)
        lent = [{"node": blank.target, "name": chain.guard}]
        await vm.execute("block-dirty-bitmap-merge", {"node": node, "target": chain.guard, "bitmaps": lent})


async def rotate(vm: Vm, node: str, base: str, offset: int, *, persistent: bool) -> int:
    """Begin the next record; the transaction drains: at the return, all that is in the records before was answered by us.

    Args:
        vm: connected, its lock held.
        node: node name.
        base: of the chain.
        offset: all events up to it are acked.
        persistent: the record outlives a clean end of QEMU.

    Returns:
        Number of the new record.

    Raises:
        QemuError: QEMU refused; the chain is as it was.
        UnavailableError: QEMU went away.
    """
    newest = records_of(find(await nodes_of(vm), "node-name", node) or {}, base)[-1]
    number = newest.number + 1
    actions = [
        ("block-dirty-bitmap-add", _fields(node, record_name(base, number, offset), persistent=persistent)),
        ("block-dirty-bitmap-disable", {"node": node, "name": newest.name}),
    ]
    listed = [{"type": name, "data": data} for name, data in actions]
    await vm.execute("transaction", {"actions": listed}, seconds=DRAIN_SECONDS)
    return number


async def drop(vm: Vm, node: str, base: str, before: int) -> None:
    """Remove the chain's records whose number is below `before`: what they say is in the journal."""
    found = find(await nodes_of(vm), "node-name", node) or {}
    for record in records_of(found, base):
        if record.number < before:
            await _remove(vm, node, record.name)


async def dirty_bytes(vm: Vm, node: str, base: str, number: int) -> tuple[str, int] | None:
    """Name of a record, and how many bytes are dirty in it; None if it is gone."""
    found = find(await nodes_of(vm), "node-name", node) or {}
    for record in records_of(found, base):
        if record.number == number:
            bitmap = find(found["dirty-bitmaps"], "name", record.name)
            return record.name, int(bitmap["count"]) if bitmap else 0
    return None


async def acked_offset(vm: Vm, node: str, base: str) -> int:
    """All events up to it were acked when the chain's newest record was made; -1: not known."""
    records = records_of(find(await nodes_of(vm), "node-name", node) or {}, base)
    return records[-1].offset if records else -1


async def check(vm: Vm, node: str, wanted: dict[str, Any]) -> str:
    """Why the chain cannot be relied on now, or an empty string; see `fault`."""
    return fault(await nodes_of(vm), node, wanted)


async def snapshot(vm: Vm, node: str, chain: Chain) -> None:
    """Make the copy of all records, which does not change any more; the newest record records on.

    Raises:
        QemuError: QEMU refused.
        UnavailableError: QEMU went away.
    """
    await _remove(vm, node, chain.copy)
    await _add(vm, node, chain.copy, disabled=True)
    found = find(await nodes_of(vm), "node-name", node) or {}
    await _merge(vm, node, chain.copy, [record.name for record in records_of(found, chain.base)])


async def clean(vm: Vm, node: str, *keep: Chain) -> list[str]:
    """Remove all bitmaps of ours from a node but records and guards of some chains; exports of them must be gone before."""
    found = find(await nodes_of(vm), "node-name", node) or {}
    names = [str(item.get("name", "")) for item in found.get("dirty-bitmaps", [])]

    def kept(name: str) -> bool:
        return any(name == chain.guard or parse_record(chain.base, name) for chain in keep)

    # Also those that a node of another name left in the same image.
    stale = [name for name in names if name.startswith(PREFIX) and not kept(name)]
    for name in stale:
        await _remove(vm, node, name)
    if stale:
        log.info("bitmaps removed", extra={"monitor": vm.path, "node": node, "names": ",".join(stale)})
    return stale


def _fields(node: str, name: str, *, persistent: bool = False, disabled: bool = False) -> dict[str, Any]:
    own = {"node": node, "name": name, "granularity": GRANULARITY_BYTES}
    return own | {"persistent": persistent, "disabled": disabled}


async def _add(vm: Vm, node: str, name: str, *, persistent: bool = False, disabled: bool = False) -> None:
    await vm.execute("block-dirty-bitmap-add", _fields(node, name, persistent=persistent, disabled=disabled))


async def _merge(vm: Vm, node: str, target: str, names: list[str]) -> None:
    await vm.execute("block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": names})


async def _remove(vm: Vm, node: str, name: str) -> None:
    async with tolerated("not found"):
        await vm.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


async def nodes_of(vm: Vm) -> list[dict[str, Any]]:
    """QEMU's block nodes.

    Raises:
        UnavailableError: QEMU went away.
    """
    nodes: list[dict[str, Any]] = await vm.execute("query-named-block-nodes", {"flat": True})
    return nodes
