"""Bad input: each a clear one-line error with a hint, the right exit code, nothing lost, nothing half-made left."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A short path for the whole module."""
    path = Path(tempfile.mkdtemp(prefix="rh-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def daemon(short: Path) -> Iterator[StorageDaemon]:
    """Two disks; the first is protected as `bad1` with a few writes and a checkpoint `bad1-a` at its end."""
    daemon = StorageDaemon(short / "q", [32 * MIB, 32 * MIB])
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def volume(stack: Stack, daemon: StorageDaemon) -> Iterator[str]:
    """The protected one."""
    stack.protect("bad1", daemon.qmp, "disk0")
    with contextlib.closing(Load(daemon.uri())) as load:
        for number in range(20):
            load("write", start=number * MIB, length=4096, seed=number)
    stack.run("checkpoint", "create", "bad1-a", "--volume", "bad1")
    yield "bad1"
    stack.run("unprotect", "bad1", "--purge")


@pytest.fixture
def tiny() -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = Path(tempfile.mkdtemp(prefix="rh-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


@pytest.mark.parametrize(
    "verb",
    [
        ("status", "nobody"),
        ("timeline", "nobody"),
        ("unprotect", "nobody"),
        ("fot", "start", "nobody", "--latest"),
        ("promote", "nobody", "--latest", "--yes"),
        ("checkpoint", "create", "x", "--volume", "nobody"),
        ("checkpoint", "create", "x", "--group", "nobody"),
        ("fot", "stop", "nothing"),
        ("wait", "nobody", "--state", "protected", "--timeout", "1"),
    ],
)
def test_unknown_names(stack: Stack, verb: tuple[str, ...]) -> None:
    """A thing that is not there."""
    error = stack.fails(*verb, code=4)
    assert error["class"] == "NotFoundError"
    assert "nobody" in error["message"] or "nothing" in error["message"]


def test_unknown_node_and_socket(stack: Stack, daemon: StorageDaemon, volume: str) -> None:
    """The hint lists the nodes; nothing of the volume is left."""
    error = stack.fails("protect", "bad2", "--qmp", str(daemon.qmp), "--node", "nope", code=4)
    assert "disk1" in error["hint"]
    stack.fails("protect", "bad2", "--qmp", "/nowhere/qmp", "--node", "disk1", code=4)
    stack.fails("status", "bad2", code=4)


def test_node_protected_twice(stack: Stack, daemon: StorageDaemon, volume: str) -> None:
    """The same again is no error; another name for the node is."""
    again = stack.run("protect", volume, "--qmp", str(daemon.qmp), "--node", "disk0")
    assert again["already"] is True
    stack.fails("protect", "bad2", "--qmp", str(daemon.qmp), "--node", "disk0", code=5)
    stack.fails("protect", volume, "--qmp", str(daemon.qmp), "--node", "disk1", code=5)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "ä", "x" * 101, "../../etc"])
def test_bad_names(stack: Stack, daemon: StorageDaemon, name: str) -> None:
    """Names are what the contract says, nothing else."""
    stack.fails("protect", "--qmp", str(daemon.qmp), "--node", "disk1", "--", name, code=2)
    stack.fails("checkpoint", "create", "--volume", "bad1", "--", name, code=2)


def test_points(stack: Stack, volume: str) -> None:
    """Outside the window: the nearest good one is named. Not exactly one kind: usage."""
    status = stack.status(volume)
    low, high = status["earliest_offset"], status["latest_offset"]
    for verb in (("fot", "start"), ("promote",)):
        options = ("--yes",) if verb == ("promote",) else ()
        error = stack.fails(*verb, volume, "--offset", "0", *options, code=9)
        assert error["nearest_offset"] == low
        error = stack.fails(*verb, volume, "--offset", str(10**9), *options, code=9)
        assert error["nearest_offset"] >= high
        stack.fails(*verb, volume, *options, code=2)
        stack.fails(*verb, volume, "--latest", "--offset", str(high), *options, code=2)
        stack.fails(*verb, volume, "--offset", "-1", *options, code=2)
        stack.fails(*verb, volume, "--time", "yesterday", *options, code=2)
        stack.fails(*verb, volume, "--time", "2001-01-01T00:00:00Z", *options, code=9)
        stack.fails(*verb, volume, "--checkpoint", "never-made", *options, code=4)
    assert stack.status(volume)["state"] == "protected"
    assert stack.run("fot", "list")["fots"] == []


def test_promote_while_a_failover_test_pins_lower(stack: Stack, volume: str) -> None:
    """The test is named, and the volume stays protected."""
    low = stack.status(volume)["earliest_offset"]
    fot = stack.run("fot", "start", volume, "--offset", str(low))
    error = stack.fails("promote", volume, "--checkpoint", "bad1-a", "--yes", code=5)
    assert fot["fot"] in error["message"] + error["hint"]
    stack.run("fot", "stop", fot["fot"])
    assert stack.status(volume)["state"] == "protected"


def test_promote_asks(stack: Stack, volume: str) -> None:
    """Without --yes and without a terminal: exit 2; a dry run changes nothing."""
    stack.fails("promote", volume, "--latest", code=2)
    plan = stack.run("promote", volume, "--checkpoint", "bad1-a", "--dry-run")
    assert plan["applied_events"] >= 0
    assert stack.status(volume)["state"] == "protected"


def test_full_disk_under_a_copy(stack: Stack, volume: str, tiny: Path) -> None:
    """`promote --to` a small disk: a storage error and no partial file."""
    source = tiny / "copy.raw"
    filler = tiny / "filler"
    filler.write_bytes(bytes(8 * MIB - 65536))
    stack.fails("promote", volume, "--latest", "--to", str(source), "--yes", code=12)
    assert list(tiny.iterdir()) == [filler]
    assert stack.status(volume)["state"] == "protected"


def test_full_disk_under_the_recovery_volume(stack: Stack, daemon: StorageDaemon, tiny: Path) -> None:
    """Said by status while it lasts, nothing lost; it goes on by itself when there is space."""
    filler = tiny / "filler"
    filler.write_bytes(bytes(7 * MIB))
    recovery = tiny / "recovery.raw"
    with contextlib.closing(Load(daemon.uri(1))) as load:
        load("write", start=0, length=4 * MIB, seed=3)
        stack.run("protect", "bad3", "--qmp", str(daemon.qmp), "--node", "disk1", "--recovery", str(recovery))
        stack.wait_until("status says why", lambda: "space" in stack.status("bad3")["reason"])
        assert stack.call("status", "bad3", "--check")[0] == 3
        filler.unlink()
        stack.wait_until("it goes on", lambda: stack.status("bad3")["reason"] == "", timeout=60)
        stack.run("wait", "bad3", "--state", "protected", "--timeout", "60")
        load("write", start=5 * MIB, length=100, seed=4)
    stack.run("checkpoint", "create", "bad3-a", "--volume", "bad3")
    assert stack.read_view("bad3", "--checkpoint", "bad3-a") == daemon.files[1].read_bytes()
    stack.run("unprotect", "bad3", "--purge")
    assert list(tiny.iterdir()) == []


def test_wrong_kafka_address(short: Path) -> None:
    """`up` with a broker that is not there ends with an error, and nothing runs afterwards."""
    stack = Stack(short / "s")
    error = stack.fails("up", "--detach", "--bootstrap", "127.0.0.1:1", code=6)
    assert "127.0.0.1:1" in error["message"]
    assert stack.run("down")["already"] is True


def test_full_disk_under_the_state_directory(tiny: Path) -> None:
    """`up` on a full disk ends with an error, and nothing runs afterwards."""
    filler = tiny / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], check=False, stderr=subprocess.DEVNULL)
    stack = Stack(tiny / "s")
    stack.fails("up", "--detach", code=12)
    filler.unlink()
