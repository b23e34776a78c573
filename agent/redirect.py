"""The steps in a recovery VM's QEMU: views in as virtio disks, the VM let run, and disks out again.

An attach that fails takes back what it did. Everything of ours in QEMU has a name that follows from the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rephub.agent.attach import PREFIX
from rephub.agent.vm import DRAIN_SECONDS, Vm, tolerated
from rephub.core.errors import ConflictError, QemuError, RephubError, UnavailableError
from rephub.core.nbd.uri import parse_uri

NODE_NAME_BYTES_MAX = 31
"""QEMU's limit."""

DELETE_SECONDS = 10.0
"""How long a guest may take to let go of a disk: it has to run for that."""

POLL_SECONDS = 0.05

RECONNECT_SECONDS = 120
"""How long the guest waits for a diskbox that is started anew, before it sees an I/O error."""

HALTED = ("prelaunch", "paused")
"""States of a VM that somebody started for us to let run."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A view as a disk of a VM."""

    name: str
    """Of the node and of the device."""
    path: str
    export: str
    read_only: bool


def disks(
    name_of_all: str, views: Iterable[dict[str, Any]], *, read_only: bool, prefix: str = PREFIX
) -> list[Disk]:
    """The disks of a test or a fail-over, in the order of its volumes.

    Args:
        name_of_all: the test's or the fail-over's.
        views: as in the catalogue.
        read_only: no writes.
        prefix: of their names; with PREFIX they are ours alone, and are not shown as disks that could be protected.
    """
    found = []
    for number, view in enumerate(views):
        name = f"{prefix}{name_of_all}-{number}"
        if len(name) > NODE_NAME_BYTES_MAX or not name.isascii():
            name = f"{prefix}{hashlib.sha256(name_of_all.encode()).hexdigest()[:16]}-{number}"
        address = parse_uri(view["uri"])
        found.append(Disk(name, str(address.path), address.export, read_only))
    return found


async def attach(vm: Vm, wanted: list[Disk]) -> None:
    """Add all disks, or none, and let the VM run if it was started halted.

    Raises:
        ConflictError: QEMU refused; it says why.
        UnavailableError: QEMU went away, or does not answer.
    """
    try:
        # All nodes first: most of what can fail does so here, where taking back needs no guest.
        for disk in wanted:
            await vm.execute("blockdev-add", _node(disk), seconds=DRAIN_SECONDS)
        for disk in wanted:
            await _add_device(vm, disk)
        if (await vm.execute("query-status"))["status"] in HALTED:
            await vm.execute("cont")
    except BaseException as exc:
        with contextlib.suppress(RephubError):
            await detach(vm, wanted)
        if isinstance(exc, QemuError):
            raise ConflictError(
                f"the VM at {vm.path} cannot get the view as a disk: {exc.description}",
                hint="is it a VM with a PCI bus, and a QEMU that may open the view's socket?",
            ) from exc
        raise


async def detach(vm: Vm, wanted: list[Disk]) -> None:
    """Remove what there is of these disks. Not an error if nothing is.

    Raises:
        UnavailableError: the guest does not let go in time, or QEMU went away.
    """
    nodes = {node["node-name"] for node in await vm.execute("query-named-block-nodes", {"flat": True})}
    there = [disk for disk in wanted if disk.name in nodes]
    devices = await _devices(vm) if there else {}
    await asyncio.gather(*(_delete_device(vm, disk.name) for disk in there if disk.name in devices))
    for disk in there:
        async with tolerated("Failed to find node"):
            await vm.execute("blockdev-del", {"node-name": disk.name}, seconds=DRAIN_SECONDS)


def _node(disk: Disk) -> dict[str, Any]:
    return {
        "driver": "nbd",
        "node-name": disk.name,
        "server": {"type": "unix", "path": disk.path},
        "export": disk.export,
        "read-only": disk.read_only,
        "discard": "unmap",
        "reconnect-delay": RECONNECT_SECONDS,
    }


async def _add_device(vm: Vm, disk: Disk) -> None:
    """Plug the disk into the default bus, or into a free root port where that takes nothing while the VM runs."""
    device = {"driver": "virtio-blk-pci", "id": disk.name, "drive": disk.name}
    try:
        await vm.execute("device_add", device)
    except QemuError as exc:
        if "hotplug" not in exc.description:
            raise
    else:
        return
    ports = [name for name, kind in (await _devices(vm)).items() if kind == "child<pcie-root-port>"]
    for port in ports:
        try:
            await vm.execute("device_add", device | {"bus": port})
        except QemuError as exc:
            if not any(word in exc.description for word in ("in use", "occupied", "hotplug")):
                raise
        else:
            return
    raise ConflictError(
        f"the VM at {vm.path} has no free slot for another disk",
        hint="start it with one `-device pcie-root-port,id=rpN,chassis=N` for each disk of the test",
    )


async def _devices(vm: Vm) -> dict[str, str]:
    """Devices with an id, and their types; none in a storage daemon."""
    try:
        found = await vm.execute("qom-list", {"path": "/machine/peripheral"})
    except QemuError:
        return {}
    return {item["name"]: item["type"] for item in found}


async def _delete_device(vm: Vm, name: str) -> None:
    """Ask the guest to let go and wait until it has."""
    deleted = asyncio.Event()
    vm.on_job(name, lambda event, _data: deleted.set() if event == "DEVICE_DELETED" else None)
    try:
        async with asyncio.timeout(DELETE_SECONDS):
            async with tolerated("not found", "in the process of unplug"):
                await vm.execute("device_del", {"id": name})
            while not deleted.is_set() and name in await _devices(vm):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await deleted.wait()
    except TimeoutError:
        raise UnavailableError(
            f"the guest at {vm.path} did not let go of disk {name} within {DELETE_SECONDS:g} s",
            hint="does the guest run, and does it support hot-plug?",
        ) from None
    except QemuError as exc:
        raise UnavailableError(
            f"disk {name} cannot be unplugged: {exc.description}", hint="power the VM off"
        ) from exc
    finally:
        vm.on_job(name, None)
