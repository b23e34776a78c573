"""Where sync reads: a read-only NBD export of the volume, in QEMU's one NBD server.

A QEMU has at most one NBD server. One that runs already is used, and left running; else ours is started on a path that
follows from the monitor's, so that an agent after a restart knows it again, and stopped with its last export.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rephub.agent.attach import Names, delete_export
from rephub.agent.vm import Vm
from rephub.core.config import Settings, socket_path
from rephub.core.errors import QemuError, UnavailableError
from rephub.core.nbd import constants as nbd

PROBE_SECONDS = 1.0
"""An NBD server greets at once."""

SOCKETS_MAX = 64
"""Listening sockets of a QEMU that are tried."""


@dataclass(frozen=True, slots=True)
class Address:
    """Of an NBD server: a unix socket, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As `NbdClient.connect` takes it, and as JSON."""
        return {"path": self.path} if self.path else {"host": self.host, "port": self.port}


@dataclass(frozen=True, slots=True)
class Source:
    """An export to read from."""

    address: Address
    export: str


def own_path(settings: Settings, monitor: str) -> str:
    """Where the NBD server that we start in a QEMU listens."""
    return str(socket_path(settings, f"q{hashlib.sha256(monitor.encode()).hexdigest()[:12]}"))


async def open_source(
    vm: Vm, node: str, own: Names, server_path: str, bitmaps: Sequence[str] = (), *, writable: bool = False
) -> Source:
    """Export a node, read-only unless it is one of ours.

    Args:
        vm: connected, its lock held.
        node: node name.
        own: names of the attachment.
        server_path: `own_path`.
        bitmaps: dirty bitmaps of the node, disabled, that are shown as meta contexts.
        writable: for a node that holds nothing.

    Raises:
        UnavailableError: QEMU's own NBD server cannot be found, or QEMU went away; QEMU is as it was.
    """
    address, started = await _server(vm, server_path)
    arguments: dict[str, Any] = {"type": "nbd", "id": own.export, "node-name": node, "name": own.export}
    arguments |= {"writable": writable}
    if bitmaps:
        arguments["bitmaps"] = list(bitmaps)
    try:
        await vm.execute("block-export-add", arguments)
    except QemuError as exc:
        if started:
            await stop_server(vm, server_path)
        raise UnavailableError(f"QEMU cannot export node {node}: {exc.description}") from exc
    return Source(address, own.export)


async def close_source(vm: Vm, own: Names, server_path: str) -> None:
    """Take the export away, and the server if it is ours and serves nothing else. Not an error if it is gone."""
    await delete_export(vm, own.export)
    await stop_server(vm, server_path)


async def stop_server(vm: Vm, server_path: str) -> None:
    """Stop our NBD server in this QEMU if it runs and has no export."""
    if await _greets(server_path, vm.pid) and not await _exports(vm):
        with contextlib.suppress(QemuError):
            await vm.execute("nbd-server-stop")


async def _exports(vm: Vm) -> bool:
    return any(export["type"] == "nbd" for export in await vm.execute("query-block-exports"))


async def _server(vm: Vm, server_path: str) -> tuple[Address, bool]:
    """QEMU's NBD server, and whether we started it now."""
    if await _greets(server_path, vm.pid):
        return Address(path=server_path), False
    address = {"type": "unix", "data": {"path": server_path}}
    try:
        await vm.execute("nbd-server-start", {"addr": address})
    except QemuError as exc:
        if "already running" not in exc.description:
            raise UnavailableError(f"QEMU cannot start its NBD server: {exc.description}") from exc
        return await _find(vm), False
    os.chmod(server_path, 0o600)  # noqa: PTH101 - one inode, at once
    return Address(path=server_path), True


async def _find(vm: Vm) -> Address:
    """The address of the server that somebody else started."""
    if address := _from_command_line(vm.pid):
        return address
    chardevs = [str(item["filename"]) for item in await vm.execute("query-chardev")]
    for path in _listening(vm.pid):
        # Connecting to somebody's idle monitor or console would take it away from him.
        if not any(f"unix:{path}" in filename for filename in chardevs) and await _greets(path, vm.pid):
            return Address(path=path)
    raise UnavailableError(
        f"the QEMU at {vm.path} runs an NBD server, and its address cannot be found",
        hint="stop it with nbd-server-stop, or start it on a unix socket that the agent's user may open",
    )


def _from_command_line(pid: int) -> Address | None:
    """What `--nbd-server` said when a storage daemon was started."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        cwd = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None
    for number, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option != "--nbd-server":
            continue
        if argument == option and number + 1 < len(arguments):
            value = arguments[number + 1]
        pairs = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
        if "addr.path" in pairs:
            return Address(path=str(cwd / pairs["addr.path"]))
        if "addr.port" in pairs and pairs["addr.port"].isdigit():
            return Address(host=pairs.get("addr.host") or "127.0.0.1", port=int(pairs["addr.port"]))
    return None


def _listening(pid: int) -> list[str]:
    """Paths of the unix sockets that a process listens on; connections of it have no path of their own."""
    if not pid:
        return []
    try:
        found = psutil.Process(pid).net_connections(kind="unix")
    except (psutil.Error, OSError):
        return []
    paths = {str(item.laddr) for item in found if isinstance(item.laddr, str) and item.laddr.startswith("/")}
    return sorted(paths)[:SOCKETS_MAX]


async def _greets(path: str, pid: int) -> bool:
    """Whether an NBD server of this process greets on the path."""
    if not pid:
        return False
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await loop.sock_connect(sock, path)
                peer = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                return peer == pid and await loop.sock_recv(sock, 8) == nbd.NBD_MAGIC.to_bytes(8, "big")
        except (OSError, TimeoutError):
            return False
