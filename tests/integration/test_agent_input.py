"""What the RepAgent says to monitors, nodes and jobs that it cannot use; QEMU is left as it was."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Rig, fresh
from qsd import StorageDaemon
from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError, from_json
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [4 * MIB])
    yield daemon
    daemon.stop()


async def refused(rig: Rig, qmp: Path | str, node: str, size: int = 4 * MIB) -> RephubError:
    """The error with which a protect fails."""
    volume = fresh()
    await rig.protect(volume, qmp, node, size)
    await rig.until("protect failed", lambda: rig.of(ev.ProtectFailed, volume))
    (failed,) = rig.of(ev.ProtectFailed, volume)
    error = from_json(failed.error)
    assert error.hint, error
    assert "\n" not in error.message
    # The hub's side of it: what had begun is undone.
    await rig.until("released", lambda: rig.of(ev.CaptureDetached, volume))
    assert not rig.of(ev.FilterAttached, volume)
    return error


def qemu_version() -> str:
    """Of the qemu-storage-daemon on PATH."""
    shown = subprocess.run(["qemu-storage-daemon", "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.split()[2]


async def probe(rig: Rig, qmp: Path | str) -> Any:
    """The answer to the hub's question about a monitor."""
    await rig.tell(ev.VmProbeRequested, agent=rig.agent, qmp=str(qmp))
    await rig.until("answer", lambda: rig.of(ev.VmAnnounced, str(qmp)) or rig.of(ev.VmProbeFailed, str(qmp)))
    return (rig.of(ev.VmAnnounced, str(qmp)) or rig.of(ev.VmProbeFailed, str(qmp)))[0]


async def command(qsd: StorageDaemon, execute: str, arguments: dict[str, Any]) -> None:
    """An administrator's QMP command."""

    def run() -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(qsd.qmp))
            lines = monitor.makefile("rw")
            lines.readline()
            for order in ({"execute": "qmp_capabilities"}, {"execute": execute, "arguments": arguments}):
                lines.write(json.dumps(order) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
                assert "return" in answer, answer

    await asyncio.to_thread(run)


async def test_probe_announces_all_volumes(rig: Rig, qsd: StorageDaemon) -> None:
    announced = await probe(rig, qsd.qmp)
    assert isinstance(announced, ev.VmAnnounced)
    assert announced.version == qemu_version()
    (node,) = announced.nodes
    assert (node.node, node.device, node.size_bytes, node.read_only) == ("disk0", "guest0", 4 * MIB, False)
    # The monitor is free again.
    assert await asyncio.to_thread(qsd.query, "query-block-jobs") == []


async def test_a_second_process_of_one_agent_id_ends(rig: Rig, short_dir: Path) -> None:
    """It would report the first one's attachments as lost."""
    folder = short_dir / "second"
    folder.mkdir()
    second = Rig(folder, rig.bootstrap, rig.redis_url)
    second.agent = rig.agent
    second.launch()
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, 30) != 0
    assert f"agent {rig.agent} runs already" in second.tail()
    assert rig.ready()
    await second.close()


async def test_monitors_that_are_none(rig: Rig, qsd: StorageDaemon, short_dir: Path) -> None:
    missing = await refused(rig, short_dir / "none", "disk0")
    assert isinstance(missing, NotFoundError)
    assert "none" in missing.message
    plain = short_dir / "file"
    plain.write_text("")
    assert isinstance(await refused(rig, plain, "disk0"), NotFoundError)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_dir / "dead"))
    assert isinstance(await refused(rig, short_dir / "dead", "disk0"), UnavailableError)
    # An NBD server is no monitor, and neither is one that somebody else holds.
    foreign = from_json((await probe(rig, qsd.folder / "nbd")).error)
    assert isinstance(foreign, ConflictError), foreign
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(qsd.qmp))
        other.recv(10)
        busy = from_json((await probe(rig, qsd.qmp)).error)
    assert isinstance(busy, UnavailableError)
    assert "of its own" in busy.hint


async def test_nodes_that_cannot_be_protected(rig: Rig, qsd: StorageDaemon) -> None:
    unknown = await refused(rig, qsd.qmp, "disk7")
    assert isinstance(unknown, NotFoundError)
    assert "disk0" in unknown.hint
    await command(
        qsd,
        "blockdev-add",
        {"driver": "null-co", "node-name": "ro", "read-only": True, "size": MIB},
    )
    assert isinstance(await refused(rig, qsd.qmp, "ro", MIB), ConflictError)
    await command(
        qsd,
        "blockdev-add",
        {"driver": "raw", "node-name": "top", "file": {"driver": "null-co", "node-name": "low", "size": MIB}},
    )
    lower = await refused(rig, qsd.qmp, "low", MIB)
    assert isinstance(lower, ConflictError)
    assert "top" in lower.message
    await command(qsd, "blockdev-add", {"driver": "null-co", "node-name": "other", "size": 4 * MIB})
    await command(
        qsd,
        "blockdev-mirror",
        {"job-id": "admins", "device": "disk0", "target": "other", "sync": "none"},
    )
    before = await asyncio.to_thread(qsd.query, "query-named-block-nodes")
    busy = await refused(rig, qsd.qmp, "disk0")
    assert isinstance(busy, ConflictError)
    assert await asyncio.to_thread(qsd.query, "query-named-block-nodes") == before


async def test_disk_on_an_iothread_is_refused_on_qemu_7_only(rig: Rig, short_dir: Path) -> None:
    folder = short_dir / "io"
    folder.mkdir()
    (folder / "disk.raw").write_bytes(bytes(MIB))
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [
            "qemu-storage-daemon", "--object", "iothread,id=io0",
            "--chardev", f"socket,id=qmp,path={folder}/qmp,server=on,wait=off", "--monitor", "chardev=qmp",
            "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
            "--blockdev", f"driver=file,node-name=disk0,filename={folder}/disk.raw",
            "--export", "type=nbd,id=e0,node-name=disk0,writable=on,iothread=io0",
        ]
    )  # fmt: skip
    try:
        await rig.until("daemon", (folder / "nbd").exists)
        if qemu_version().startswith("7.2"):
            error = await refused(rig, folder / "qmp", "disk0", MIB)
            assert isinstance(error, ConflictError)
            assert "iothread" in error.message
            assert "7.2" in error.message
        else:
            volume = fresh()
            await rig.protect(volume, folder / "qmp", "disk0", MIB)
            await rig.protected(volume)
    finally:
        process.terminate()
        process.wait()


async def test_nbd_server_of_our_own_where_qemu_has_none(rig: Rig, short_dir: Path) -> None:
    folder = short_dir / "own"
    folder.mkdir()
    (folder / "disk.raw").write_bytes(b"x" * MIB)
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [
            "qemu-storage-daemon",
            "--chardev", f"socket,id=qmp,path={folder}/qmp,server=on,wait=off", "--monitor", "chardev=qmp",
            "--blockdev", f"driver=file,node-name=disk0,filename={folder}/disk.raw",
        ]
    )  # fmt: skip
    try:
        await rig.until("daemon", (folder / "qmp").exists)
        volume = fresh()
        await rig.protect(volume, folder / "qmp", "disk0", MIB)
        await rig.protected(volume)
        image, _ = await rig.replay(volume, MIB)
        assert image == b"x" * MIB
        await rig.tell(ev.UnprotectRequested, volume=volume, purge=False)
        await rig.until("detached", lambda: rig.of(ev.CaptureDetached, volume))
        # Ours is stopped: the administrator can start one.
        qsd = StorageDaemon.__new__(StorageDaemon)
        qsd.qmp = folder / "qmp"
        await command(qsd, "nbd-server-start", {"addr": {"type": "unix", "data": {"path": f"{folder}/nbd"}}})
    finally:
        process.terminate()
        process.wait()
