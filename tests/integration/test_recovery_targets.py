"""Recovery volumes behind NBD servers and on a block device, with the whole stack: `rephub protect --recovery …`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from recovery_servers import NbdProcess, attach_loop, detach_loop, qemu_nbd, storage_daemon
from stack import Stack, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(200)]

MIB = 1 << 20
DISK_BYTES = 32 * MIB


@pytest.fixture
def source(folder: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(folder / "src", [DISK_BYTES])
    yield daemon
    daemon.stop()


@pytest.fixture
def disk(folder: Path) -> Path:
    """What lies behind the target: 1 MiB larger than the protected disk."""
    path = folder / "r.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES + MIB)
    return path


@pytest.fixture(params=[qemu_nbd, storage_daemon], ids=["qemu-nbd", "qemu"])
def server(request, folder: Path, disk: Path) -> Iterator[NbdProcess]:
    server = request.param(folder, disk)
    yield server
    server.kill()


def write_something(load: Load, seed: int) -> None:
    for number in range(8):
        load("write", start=number * 3 * MIB + 512 * seed, length=MIB + 512, seed=seed * 100 + number)
    load("zero", start=9 * MIB, length=2 * MIB)
    load("flush")


def test_nbd_server_killed_while_applying(
    stack: Stack, source, server: NbdProcess, disk: Path, folder: Path
) -> None:
    """One second of history: applying goes on all the time. The server dies under it and comes back."""
    volume = f"nbd-{server.uri[-2:]}"
    with contextlib.closing(Load(source.uri())) as load:
        write_something(load, 1)
        stack.protect(volume, source.qmp, "disk0", "--recovery", server.uri, "--history", "1s,1GiB")
        assert stack.status(volume)["recovery"] == server.uri
        assert stack.read_view(volume, "--latest") == source.files[0].read_bytes()
        load.send("numbered", depth=4, count=4000, first=1, sectors=DISK_BYTES // 512, seed=5)
        applied = stack.status(volume)["applied_offset"]
        stack.wait_until("it applies", lambda: stack.status(volume)["applied_offset"] > applied)
        server.kill()
        reason = stack.wait_until("status says why", lambda: stack.status(volume)["reason"])
        assert "recovery volume nbd" in reason
        assert stack.call("status", volume, "--check")[0] == 3
        load.receive()
        stopped_at = stack.status(volume)["applied_offset"]
        server.start()
        stack.wait_until("it goes on by itself", lambda: stack.status(volume)["reason"] == "")
        stack.run("wait", volume, "--state", "protected", "--timeout", "30")
        write_something(load, 2)
        made = stack.run("checkpoint", "create", f"{volume}-a", "--volume", volume)
        expected = source.files[0].read_bytes()
        offset = made["offsets"][volume]
        fot = stack.run("fot", "start", volume, "--latest", "--read-only")
        assert read_uri(fot["uri"], folder / "view") == expected
        stack.run("fot", "stop", fot["fot"])
        stack.wait_until("applied", lambda: stack.status(volume)["applied_offset"] >= offset > stopped_at)
        copy = stack.run("promote", volume, "--latest", "--to", str(folder / "copy"), "--yes")
        assert Path(copy["path"]).read_bytes() == expected
        done = stack.run("promote", volume, "--latest", "--yes")
    assert done["path"] == server.uri
    assert disk.read_bytes() == expected + bytes(MIB)
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "read 0 4k", server.uri], check=True, timeout=20, capture_output=True
    )  # the diskbox has let go of a server that takes one client
    gone = stack.run("unprotect", volume, "--purge")
    assert gone == {"volume": volume, "purged": True, "kept": server.uri}
    assert disk.read_bytes() == expected + bytes(MIB)
    refused = stack.fails(
        "protect", volume, "--qmp", str(source.qmp), "--node", "disk0", "--recovery", server.uri, code=5
    )
    assert "not empty" in refused["message"]


def test_block_device(stack: Stack, source, disk: Path) -> None:
    device = attach_loop(disk)
    if device is None:
        pytest.skip("losetup gives no loop device here")
    try:
        with contextlib.closing(Load(source.uri())) as load:
            write_something(load, 1)
            stack.protect("dev", source.qmp, "disk0", "--recovery", str(device))
            refused = stack.fails(
                "protect",
                "dev2",
                "--qmp",
                str(source.qmp),
                "--node",
                "disk0",
                "--recovery",
                str(device),
                code=5,
            )
            assert refused
            write_something(load, 2)
        stack.run("checkpoint", "create", "dev-a", "--volume", "dev")
        expected = source.files[0].read_bytes()
        assert stack.read_view("dev", "--checkpoint", "dev-a") == expected
        done = stack.run("promote", "dev", "--checkpoint", "dev-a", "--yes")
        assert done["path"] == str(device)
        with device.open("rb") as file:
            assert file.read() == expected + bytes(MIB)
        assert stack.run("unprotect", "dev", "--purge")["kept"] == str(device)
        with device.open("rb") as file:
            assert file.read() == expected + bytes(MIB)
    finally:
        detach_loop(device)


def test_targets_that_are_refused(stack: Stack, source, folder: Path, disk: Path) -> None:
    """One clear error each; nothing is left of the protect, and nothing was changed."""
    disk.write_bytes(b"data" * (DISK_BYTES // 4))
    server = qemu_nbd(folder, disk, "--read-only")

    def refused(recovery: str, code: int) -> str:
        command = (
            "protect",
            "bad-target",
            "--qmp",
            str(source.qmp),
            "--node",
            "disk0",
            "--recovery",
            recovery,
        )
        return str(stack.fails(*command, code=code)["message"])

    try:
        assert "read-only" in refused(server.uri, 5)
        assert "no export" in refused(server.uri.replace("///r", "///x"), 12)
    finally:
        server.kill()
    assert "No such file" in refused(f"nbd+unix:///r?socket={folder}/nobody", 12)
    assert "no device" in refused("/dev/rephub-nothing", 4)
    assert "no block device" in refused("/dev/null", 5)
    assert "bad NBD URI" in refused("http://x/y", 2)
    server = qemu_nbd(folder, disk)
    try:
        assert "not empty" in refused(server.uri, 5)
    finally:
        server.kill()
    stack.wait_until("nothing is left", lambda: stack.call("status", "bad-target")[0] == 4)
    assert disk.read_bytes() == b"data" * (DISK_BYTES // 4)
    assert source.query("query-block-jobs") == []
