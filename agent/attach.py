"""The steps in QEMU: attach and detach the filter, clean up after a dead agent, and the errors that say what is wrong.

Each step is undone if a later one fails: a failed attach leaves QEMU as it was. A detach leaves QEMU as it was before
the attach. Everything of ours in a QEMU has a name that begins with PREFIX and holds a hash of the node, so that
leftovers are found without any memory of them.

Hold `vm.lock` and switch throttling off (`capture.py`) around these: the commands drain, which waits for our answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rephub.agent.vm import DRAIN_SECONDS, Vm, find, tolerated
from rephub.core.errors import ConflictError, QemuError, UnavailableError
from rephub.schemas.events import NodeInfo

PREFIX = "rephub-"

READY_SECONDS = 10.0
"""A mirror without anything to copy is ready within milliseconds."""

CANCEL_SECONDS = 10.0
"""How long a job may take to end before it is cancelled by force."""

POLL_SECONDS = 0.01

GRANULARITY_BYTES = 4096
"""Of the mirror's conflict tracking: larger would serialise writes to neighbouring blocks."""

IOTHREAD_VERSION = (10, 0, 0)
"""From here on an NBD client may come and go on an iothread; 7.2 can abort."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one attachment's things in QEMU; QEMU allows node names of 31 bytes."""

    target: str
    filter: str
    job: str
    export: str


def names(node: str, epoch: int) -> Names:
    """The names for a node and an epoch."""
    mark = f"{node_mark(node)}-{epoch}"
    return Names(f"{PREFIX}t-{mark}", f"{PREFIX}f-{mark}", f"{PREFIX}j-{mark}", f"{PREFIX}x-{mark}")


def node_mark(node: str) -> str:
    """Short name of a node that is safe inside QEMU's names."""
    return hashlib.sha256(node.encode()).hexdigest()[:8]


def check_node(vm: Vm, info: NodeInfo) -> None:
    """Refuse a node that cannot be protected.

    Raises:
        ConflictError: it cannot; the message says why.
    """
    if info.read_only:
        raise ConflictError(
            f"node {info.node} is read-only: there is nothing to protect", hint="name the writable node"
        )
    if info.iothread == "mapping":
        raise ConflictError(
            f"node {info.node} uses iothread-vq-mapping, which RepHub does not support",
            hint="give the disk one iothread or none",
        )
    if info.iothread and vm.version < IOTHREAD_VERSION:
        version = ".".join(map(str, vm.version))
        raise ConflictError(
            f"node {info.node} is on an iothread, and QEMU {version} can abort when a mirror comes or goes there",
            hint="run the disk without iothread, or QEMU 10.0 or later",
        )


async def check_free(vm: Vm, node: str) -> None:
    """Refuse a node that somebody else's job works on, or that is no top node; after `clean`.

    Raises:
        ConflictError: it is busy.
    """
    graph = await _graph(vm)
    ids = {item["id"] for item in graph["nodes"] if item["name"] == node}
    for edge in graph["edges"]:
        if edge["child"] not in ids:
            continue
        parent = next(item for item in graph["nodes"] if item["id"] == edge["parent"])
        if parent["type"] == "block-job":
            raise ConflictError(
                f"node {node} is busy with block job {parent['name']!r}",
                hint="end the job (backup, mirror, commit) first",
            )
        if parent["type"] == "block-driver":
            raise ConflictError(
                f"node {node} is not the top of its disk: {parent['name']!r} uses it",
                hint=f"protect {parent['name']!r}, or end the job that put it there",
            )


async def attach(vm: Vm, node: str, socket: str, export: str, own: Names) -> None:
    """Put the filter on the node; from the return on, every guest write reaches the capture export.

    Args:
        vm: connected, its lock held.
        node: node name.
        socket: on which the worker listens.
        export: capture export there.
        own: names of this attachment.

    Raises:
        ConflictError: QEMU refused; it is as it was.
        UnavailableError: QEMU went away, or the job did not get ready; it is as it was if it can be reached.
    """
    target = {
        "driver": "nbd",
        "node-name": own.target,
        "server": {"type": "unix", "path": socket},
        "export": export,
        # Never reconnect: what was written meanwhile would be missing without a word.
        "reconnect-delay": 0,
    }
    mirror = {
        "job-id": own.job,
        "device": node,
        "target": own.target,
        "sync": "none",
        "copy-mode": "write-blocking",
        "on-target-error": "report",
        "granularity": GRANULARITY_BYTES,
        "filter-node-name": own.filter,
    }
    async with contextlib.AsyncExitStack() as undo:
        try:
            await vm.execute("blockdev-add", target, seconds=DRAIN_SECONDS)
            undo.push_async_callback(_undo, lambda: delete_node(vm, own.target))
            await vm.execute("blockdev-mirror", mirror, seconds=DRAIN_SECONDS)
            undo.push_async_callback(_undo, lambda: end_job(vm, own.job, force=True))
        except QemuError as exc:
            raise ConflictError(
                f"QEMU cannot mirror node {node}: {exc.description}",
                hint="is another job at work on it, or is it not the top node of its disk?",
            ) from exc
        await _ready(vm, own.job)
        undo.pop_all()


async def detach(vm: Vm, own: Names) -> None:
    """Take the filter away; the guest notices nothing. Not an error if it is gone.

    Raises:
        UnavailableError: QEMU went away, or does not let go in time.
    """
    await end_job(vm, own.job)
    await delete_node(vm, own.target)


async def clean(vm: Vm, node: str, keep: Names | None = None) -> list[str]:
    """Remove what former attachments left on a node.

    An idle mirror whose agent died still says `ready`: it is cancelled by force.

    Args:
        vm: connected, its lock held.
        node: node name.
        keep: the attachment that is alive, if any.

    Returns:
        Names of what was removed.
    """
    mark = f"-{node_mark(node)}-"
    kept = {keep.job, keep.target, keep.filter, keep.export} if keep else set()

    def stale(name: str) -> bool:
        return name.startswith(PREFIX) and mark in name and name not in kept

    removed = []
    for export in await vm.execute("query-block-exports"):
        if stale(export["id"]):
            await delete_export(vm, export["id"])
            removed.append(export["id"])
    for job in await vm.execute("query-block-jobs"):
        if stale(job["device"]):
            await end_job(vm, job["device"], force=True)
            removed.append(job["device"])
    for item in await vm.execute("query-named-block-nodes", {"flat": True}):
        if stale(item["node-name"]) and item["drv"] in ("nbd", "null-co"):
            await delete_node(vm, item["node-name"])
            removed.append(item["node-name"])
    if removed:
        log.info("leftovers removed", extra={"monitor": vm.path, "node": node, "names": ",".join(removed)})
    return removed


async def job_alive(vm: Vm, job: str) -> bool:
    """Whether the mirror is there and ready."""
    found = find(await vm.execute("query-block-jobs"), "device", job)
    return found is not None and found["status"] == "ready"


async def check_job(vm: Vm, job: str) -> None:
    """Raise UnavailableError unless the mirror is there and ready."""
    if not await job_alive(vm, job):
        raise UnavailableError(f"block job {job} is gone", hint="rephub status says what becomes of capture")


async def end_job(vm: Vm, job: str, *, force: bool = False) -> None:
    """Cancel a mirror (never complete: that would pivot the guest onto us) and wait until it is gone."""
    for by_force in (False, True):
        if force and not by_force:
            continue
        # A job that failed meanwhile is "in state null" or not found: gone either way.
        async with tolerated("not found", "No active", "in state"):
            await vm.execute("block-job-cancel", {"device": job, "force": by_force}, seconds=DRAIN_SECONDS)
        if await _until(lambda: _job_gone(vm, job)):
            return
    raise UnavailableError(f"block job {job} does not end", hint="is the VM's storage stuck?")


async def delete_node(vm: Vm, node: str) -> None:
    """Delete one of our nodes and wait until nobody uses it; not an error if it is gone."""

    async def deleted() -> bool:
        try:
            await vm.execute("blockdev-del", {"node-name": node}, seconds=DRAIN_SECONDS)
        except QemuError as exc:
            if "Failed to find" in exc.description:
                return True
            if "in use" in exc.description:
                return False
            raise
        return True

    if not await _until(deleted):
        raise UnavailableError(f"block node {node} stays in use", hint="is the VM's storage stuck?")


async def delete_export(vm: Vm, export: str) -> None:
    """Delete one of our exports and wait until it is gone; not an error if it is gone."""

    async def gone() -> bool:
        return find(await vm.execute("query-block-exports"), "id", export) is None

    async with tolerated("not found", "already shutting down"):
        await vm.execute("block-export-del", {"id": export, "mode": "hard"}, seconds=DRAIN_SECONDS)
    if not await _until(gone):
        raise UnavailableError(f"block export {export} does not go away")


async def _undo(step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a step of the way back; its failure must not hide why there is a way back."""
    try:
        await step()
    except (QemuError, UnavailableError) as exc:
        log.warning("could not undo", extra={"error": exc.message})


async def _ready(vm: Vm, job: str) -> None:
    async def ready() -> bool:
        found = find(await vm.execute("query-block-jobs"), "device", job)
        if found is None:
            raise UnavailableError(f"block job {job} ended before it was ready", hint="see QEMU's log")
        return bool(found["status"] == "ready")

    if not await _until(ready, READY_SECONDS):
        raise UnavailableError(f"block job {job} is not ready within {READY_SECONDS:g} s")


async def _job_gone(vm: Vm, job: str) -> bool:
    return find(await vm.execute("query-block-jobs"), "device", job) is None


async def _graph(vm: Vm) -> dict[str, Any]:
    try:
        graph: dict[str, Any] = await vm.execute("x-debug-query-block-graph")
    except QemuError:
        # blockdev-mirror itself refuses a busy node, in less clear words.
        return {"nodes": [], "edges": []}
    return graph


async def _until(condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float = CANCEL_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
