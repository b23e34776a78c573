"""VMs that change: disks come and go, the VM goes and comes back, the guest reboots; the agent says so by itself."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Rig, fresh
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
async def rig(
    short_dir: Path, kafka: str, redis_url: str, request: pytest.FixtureRequest
) -> AsyncIterator[Rig]:
    seconds = getattr(request, "param", 0.3)
    rig = Rig(short_dir, kafka, redis_url, discover_seconds=seconds, watchdog_seconds=20.0)
    try:
        await rig.start()
        yield rig
    finally:
        await rig.close()


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE, SIZE])
    yield daemon
    daemon.stop()


def announced(rig: Rig, qmp: Path) -> list[dict[str, str]]:
    """What was announced so far: node → device, each time."""
    return [{node.node: node.device for node in event.nodes} for event in rig.of(ev.VmAnnounced, str(qmp))]


def ours(nodes: dict[str, str]) -> list[str]:
    return [name for name in nodes if name.startswith("rephub-")]


async def same_as(rig: Rig, volume: str, file: Path, size: int = SIZE) -> None:
    """At quiescence the journal's replay equals the disk."""
    offset = (await rig.checkpoint(fresh("c"), volume))[volume]
    image, state = await rig.replay(volume, size, offset)
    assert state.gap_first_offset is None
    assert image == file.read_bytes()


async def test_nodes_that_come_and_go_are_announced(rig: Rig, qsd: StorageDaemon) -> None:
    first, second = fresh(), fresh()
    await rig.protect(first, qsd.qmp, "disk0", SIZE)
    await rig.protected(first)
    both = {"disk0": "guest0", "disk1": "guest1"}
    assert announced(rig, qsd.qmp) == [both]
    added = qsd.execute("blockdev-add", driver="null-co", node_name="hot", size=MIB, read_zeroes=True)
    assert "return" in added, added
    await rig.until("the new node", lambda: len(announced(rig, qsd.qmp)) == 2)
    # Filters, exports and bitmaps that come and go with an attachment are no news.
    await rig.protect(second, qsd.qmp, "disk1", SIZE)
    await rig.protected(second)
    await rig.tell(ev.UnprotectRequested, volume=second, purge=False)
    await rig.until("detached", lambda: rig.of(ev.CaptureDetached, second))
    # A look drains nothing: it goes on while a write waits for a worker that hangs.
    load = Load(qsd.uri())
    freeze(rig.workers()[0])
    load.send("write", start=0, length=4096, seed=1)
    waiting = asyncio.create_task(asyncio.to_thread(load.receive))
    removed = qsd.execute("blockdev-del", node_name="hot")
    assert "return" in removed, removed
    await rig.until("the node gone", lambda: len(announced(rig, qsd.qmp)) == 3)
    assert not waiting.done()
    thaw(rig.workers()[0])
    assert "error" not in await waiting
    load.close()
    assert announced(rig, qsd.qmp) == [both, both | {"hot": ""}, both]
    assert len({event.id for event in rig.of(ev.VmAnnounced, str(qsd.qmp))}) == 3
    assert not [item for item in rig.catalogue.ignored if item["event"] == "VmAnnounced"]
    assert len(rig.of(ev.FilterAttached, first)) == 1
    await same_as(rig, first, qsd.files[0])


def write(daemon: StorageDaemon, number: int, seed: int) -> None:
    load = Load(daemon.uri(number))
    load("write", start=seed * 1000, length=70_000, seed=seed)
    load.close()


async def test_a_vm_that_comes_back_is_announced_and_its_nodes_found_by_their_devices(
    rig: Rig, qsd: StorageDaemon
) -> None:
    named, by_device = fresh("named"), fresh("device")
    await rig.protect(named, qsd.qmp, "disk0", SIZE)
    await rig.protect(by_device, qsd.qmp, "disk1", SIZE, device="guest1")
    volumes = [named, by_device]
    for number, volume in enumerate(volumes):
        await rig.protected(volume)
        write(qsd, number, 1)
    qsd.stop()
    again = StorageDaemon(qsd.folder, [SIZE, SIZE], nodes=["new0", "new1"])
    try:
        for number, volume in enumerate(volumes):
            await rig.until("attached", lambda v=volume: len(rig.of(ev.FilterAttached, v)) == 2)
            await rig.protected(volume)
            write(again, number, 2)
            await same_as(rig, volume, again.files[number])
            assert rig.catalogue.volumes[volume].node == f"new{number}"
        first, second = (rig.of(ev.FilterAttached, volume)[-1] for volume in volumes)
        assert first.reason.endswith("node disk0 is gone, and its device guest0 has node new0 now")
        assert second.reason.endswith("device guest1 has node new1 now, and had disk1")
        assert (first.device, second.device) == ("guest0", "guest1")
        said = rig.of(ev.VmAnnounced, str(qsd.qmp))
        assert [event.pid for event in said] == [qsd.process.pid, again.process.pid]
    finally:
        again.stop()
    # Another size: what was named by its node may be another disk, what was named by its device is not.
    for file in again.files:
        os.truncate(file, 2 * SIZE)
    again = StorageDaemon(qsd.folder, [SIZE, SIZE], nodes=["newer0", "newer1"])
    try:
        await rig.until("attached", lambda: len(rig.of(ev.FilterAttached, by_device)) == 3)
        await rig.protected(by_device)
        await rig.until("the reason", lambda: "8388608 bytes" in rig.volume_status(named)["reason"])
        assert rig.state(named) == "gap"
        assert len(rig.of(ev.FilterAttached, named)) == 2
    finally:
        again.stop()


class Machine:
    """A VM whose firmware finds nothing to boot: writes are made in its disk's place, above the filter."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.qmp, self.admin, self.disk = folder / "qmp", folder / "admin", folder / "disk.raw"
        self.disk.touch()
        os.truncate(self.disk, SIZE)
        arguments = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64", "-accel", "tcg"]
        for path in (self.qmp, self.admin):
            arguments += ["-qmp", f"unix:{path},server=on,wait=off"]
        arguments += ["-blockdev", f"driver=raw,node-name=data,file.driver=file,file.filename={self.disk}"]
        arguments += ["-device", "virtio-blk-pci,drive=data,id=vd0"]
        with (folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        self._socket = self._connect(folder / "qemu.log")
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self("qmp_capabilities")

    def _connect(self, log: Path) -> socket.socket:
        """Once both monitors are there; a socket's file is there a moment before somebody listens on it."""
        deadline = time.monotonic() + 20
        while True:
            monitor = socket.socket(socket.AF_UNIX)
            monitor.settimeout(30)
            try:
                if self.qmp.exists():
                    monitor.connect(str(self.admin))
                    return monitor
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            monitor.close()
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(log.read_text())
            time.sleep(0.01)

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command."""
        fields = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.write(json.dumps({"execute": command, "arguments": fields}) + "\n")
        self._lines.flush()
        answer: dict[str, Any] = json.loads(self._lines.readline())
        while "event" in answer:
            answer = json.loads(self._lines.readline())
        return answer["return"]

    def write(self, start: int, length: int, pattern: int) -> None:
        """Write as the disk's device does."""
        order = f'qemu-io -d vd0/virtio-backend "write -P {pattern} {start} {length}"'
        self("human-monitor-command", command_line=order)

    def stop(self) -> None:
        self._lines.close()
        self._socket.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def machine(short_dir: Path) -> Iterator[Machine]:
    machine = Machine(short_dir / "vm")
    yield machine
    machine.stop()


@pytest.mark.parametrize("rig", [0], indirect=True)
async def test_a_reboot_leaves_capture_on_and_a_plugged_disk_is_seen_by_events(
    rig: Rig, machine: Machine
) -> None:
    volume = fresh()
    await rig.protect(volume, machine.qmp, "vd0", SIZE)
    await rig.protected(volume)
    machine.write(0, 65536, 1)
    machine("blockdev-add", driver="null-co", node_name="hot", size=MIB, read_zeroes=True)
    machine("device_add", driver="virtio-blk-pci", drive="hot", id="vd1")
    machine("stop")
    machine("cont")
    await rig.until("the new disk", lambda: len(announced(rig, machine.qmp)) == 2)
    # No guest is there to let go of it: the reboot takes it away.
    machine("device_del", id="vd1")
    machine("system_reset")
    await rig.until("the disk gone", lambda: len(announced(rig, machine.qmp)) == 3)
    machine.write(32768, 65536, 2)
    assert announced(rig, machine.qmp) == [
        {"data": "vd0"},
        {"data": "vd0", "hot": "vd1"},
        {"data": "vd0", "hot": ""},
    ]
    await same_as(rig, volume, machine.disk)
    assert machine.disk.read_bytes()[: 3 * 32768] == b"\1" * 32768 + b"\2" * 65536
    assert len(rig.of(ev.FilterAttached, volume)) == 1
    assert not rig.of(ev.CaptureLost, volume)
    assert rig.state(volume) == "protected"
