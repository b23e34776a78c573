"""What volumes a QEMU has, from its own answers. `describe` is pure; `look` asks.

A volume is a block node that can be named: by its node name, or by the device it is inserted in.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rephub.agent.attach import PREFIX
from rephub.agent.vm import Vm
from rephub.core.errors import QemuError
from rephub.schemas.events import NodeInfo

NODES_MAX = 1000
"""More are not announced: an event stays far below Kafka's limit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A VM as one look showed it. Two that are equal have the same volumes, and nothing is to be said."""

    vm: str
    """Its name."""
    version: str
    """Of QEMU."""
    pid: int | None
    """Of the process; None: it cannot be seen."""
    nodes: tuple[NodeInfo, ...]

    @classmethod
    def known(cls, entry: dict[str, Any]) -> Seen:
        """What an entry of `Agent.vms` in the catalogue says."""
        nodes = tuple(NodeInfo(**node) for node in entry["nodes"])
        return cls(entry["vm"], entry["version"], entry.get("pid"), nodes)


@dataclass(slots=True)
class Answers:
    """What QEMU said."""

    nodes: list[dict[str, Any]]
    """query-named-block-nodes."""
    devices: list[dict[str, Any]] = field(default_factory=list)
    """query-block; empty for a storage daemon."""
    graph: dict[str, Any] = field(default_factory=dict)
    """x-debug-query-block-graph; empty where QEMU has none."""
    exports: list[dict[str, Any]] = field(default_factory=list)
    """query-block-exports."""
    iothreads: dict[str, str] = field(default_factory=dict)
    """Device path or export id → iothread."""


def describe(answers: Answers) -> tuple[NodeInfo, ...]:
    """The volumes, by node name."""
    below = _children(answers.graph)
    devices: dict[str, tuple[str, str]] = {}
    for drive in answers.devices:
        inserted = drive.get("inserted")
        path = drive.get("qdev") or ""
        if inserted:
            name = drive.get("device") or _qdev_name(path)
            devices[_unfiltered(inserted["node-name"], below)] = (name, path)
    for export in answers.exports:
        # A storage daemon has no devices; its exports stand for them.
        if not export["id"].startswith(PREFIX):
            devices.setdefault(_unfiltered(export["node-name"], below), (export["id"], export["id"]))
    found = []
    for node in answers.nodes:
        name = node["node-name"]
        generated = name.startswith("#") and name not in devices
        if generated or name.startswith(PREFIX) or "virtual-size" not in node.get("image", {}):
            continue
        device, path = devices.get(name, ("", ""))
        found.append(
            NodeInfo(
                node=name,
                device=device,
                size_bytes=node["image"]["virtual-size"],
                driver=node["drv"],
                read_only=node["ro"],
                iothread=answers.iothreads.get(path),
            )
        )
    return tuple(sorted(found, key=lambda info: info.node)[:NODES_MAX])


async def look(vm: Vm) -> Seen:
    """Ask a connected QEMU for its name and volumes. The queries drain nothing; hold `vm.lock`, so that the answers fit
    together as far as it depends on us.

    Raises:
        UnavailableError: it went away.
    """
    answers = Answers(await vm.execute("query-named-block-nodes", {"flat": True}))
    answers.devices = await vm.execute("query-block")
    answers.exports = await vm.execute("query-block-exports")
    with contextlib.suppress(QemuError):
        answers.graph = await vm.execute("x-debug-query-block-graph")
    answers.iothreads = await _iothreads(vm, answers.devices)
    name = ""
    with contextlib.suppress(QemuError):
        name = (await vm.execute("query-name")).get("name", "")
    version = ".".join(map(str, vm.version))
    return Seen(name or Path(vm.path).name, version, vm.pid or None, describe(answers))


async def _iothreads(vm: Vm, devices: list[dict[str, Any]]) -> dict[str, str]:
    """Device path → iothread, or "mapping" where the disk is spread over several."""
    found = {}
    for device in devices:
        path = device.get("qdev") or ""
        if not path:
            continue
        for qom in (path, path.removesuffix("/virtio-backend")):
            for name in ("iothread-vq-mapping", "iothread"):
                with contextlib.suppress(QemuError):
                    value = await vm.execute("qom-get", {"path": qom, "property": name})
                    if value:
                        found[path] = "mapping" if name == "iothread-vq-mapping" else str(value)
    found |= _daemon_iothreads(vm.pid)
    return found


def _daemon_iothreads(pid: int) -> dict[str, str]:
    """Export id → iothread, from a storage daemon's command line: QMP does not tell."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    found = {}
    for option, value in itertools.pairwise(arguments):
        if option == "--export":
            pairs = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            if "iothread" in pairs and "id" in pairs:
                found[pairs["id"]] = pairs["iothread"]
    return found


def _children(graph: dict[str, Any]) -> dict[str, str]:
    """Node → the node whose data it shows (its `file` or `backing` child), by name."""
    names = {node["id"]: node["name"] for node in graph.get("nodes", [])}
    return {
        names[edge["parent"]]: names[edge["child"]]
        for edge in graph.get("edges", [])
        if edge["name"] in ("backing", "file") and names.get(edge["parent"])
    }


def _unfiltered(node: str, below: dict[str, str]) -> str:
    """The volume's own node where RepHub's filter sits on top of it."""
    while node.startswith(PREFIX) and node in below:
        node = below[node]
    return node


def _qdev_name(path: str) -> str:
    """The id that the device was given: the part after `peripheral`."""
    parts = path.split("/")
    return parts[parts.index("peripheral") + 1] if "peripheral" in parts[:-1] else path
