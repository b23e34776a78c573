"""Fail-over, commit, rollback and move from the command line, all parts real."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from rephub.schemas import events as ev
from stack import Stack, events, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK_BYTES = 64 * MIB


@pytest.fixture
def disk(folder: Path) -> Iterator[StorageDaemon]:
    """VM1's disk."""
    daemon = StorageDaemon(folder / "vm1", [DISK_BYTES])
    yield daemon
    daemon.stop()


def _at_rest(stack: Stack, volume: str) -> None:
    stack.wait_until("everything is acked", lambda: stack.status(volume)["lag_bytes"] == 0)


def _content(stack: Stack, uri: str) -> bytes:
    return read_uri(uri, stack.state_dir / "read")


def _kill_diskbox(stack: Stack) -> None:
    """SIGKILL; the supervisor starts another."""
    pids = [part["pid"] for part in stack.run("status")["parts"] if part["kind"] == "diskbox"]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    def others() -> bool:
        parts = [part for part in stack.run("status")["parts"] if part["kind"] == "diskbox"]
        return all(part["alive"] and part["pid"] not in pids for part in parts)

    stack.wait_until("the diskbox was started again", others)


def test_failover_and_commit(own_stack: Stack, disk: StorageDaemon) -> None:
    """VM1R runs at once from the point, while what VM1 writes is nobody's; in the end from the recovery volume alone."""
    stack, vm1 = own_stack, Load(disk.uri())
    stack.protect("fo", disk.qmp, "disk0")
    vm1("write", start=0, length=8 * MIB, seed=1)
    _at_rest(stack, "fo")
    before = disk.content()
    point = stack.run("checkpoint", "create", "fo-point", "--volume", "fo")
    vm1("write", start=MIB, length=MIB, seed=2)
    _at_rest(stack, "fo")
    plan = stack.run("failover", "fo", "--checkpoint", "fo-point", "--dry-run")
    assert plan["dry_run"]
    assert (plan["lost_bytes"], stack.status("fo")["state"]) == (MIB, "protected")
    error = stack.fails("failover", "fo", "--checkpoint", "fo-point", code=2)
    assert error["plan"]["lost_bytes"] == MIB
    opened = stack.run("failover", "fo", "--checkpoint", "fo-point", "--yes")
    assert opened["offset"] == opened["resolved"]["offset"] == point["offsets"]["fo"]
    assert opened["lost_bytes"] == MIB
    assert stack.run("failover", "fo", "--latest", "--yes")["already"]
    status = stack.status("fo")
    assert (status["state"], status["consistent"]) == ("failed_over", False)
    assert "rolled back" in status["reason"] or "roll back" in status["reason"]
    code, _ = stack.call("status", "fo", "--check")
    assert code == 3
    # VM1 is not disturbed, and what it writes is in nobody's view.
    vm1("write", start=2 * MIB, length=MIB, seed=3)
    vm1.close()
    assert _content(stack, opened["uri"]) == before
    vm1r = Load(opened["uri"])
    for number in range(4):
        vm1r("write", start=(10 + number) * MIB + 512, length=MIB, seed=10 + number)
    vm1r("flush")
    vm1r.close()
    expected = _content(stack, opened["uri"])
    assert expected[: 10 * MIB] == before[: 10 * MIB]
    assert expected[10 * MIB :] != before[10 * MIB :]
    _kill_diskbox(stack)
    assert stack.wait_until("served again", lambda: _served(stack, opened["uri"])) == expected
    stack.fails("commit", "fo", code=2)
    committed = stack.run("commit", "fo", "--yes")
    assert (committed["state"], stack.status("fo")["state"]) == ("committed", "promoted")
    (path,) = [Path(item["path"]) for item in committed["volumes"]]
    assert path.read_bytes() == expected
    assert _content(stack, opened["uri"]) == expected
    stack.fails("rollback", "fo", "--yes", code=5)
    stack.fails("unprotect", "fo", "--purge", code=5)
    assert stack.run("commit", "fo", "--yes")["already"]
    assert stack.run("commit", "fo", "--yes", "--close")["state"] == "closed"
    assert path.read_bytes() == expected
    stack.run("unprotect", "fo", "--purge")


def _served(stack: Stack, uri: str) -> bytes | None:
    """The content, once somebody serves it."""
    try:
        return _content(stack, uri)
    except subprocess.CalledProcessError:
        return None


def test_a_test_goes_on_when_its_diskbox_is_killed(
    own_stack: Stack, disk: StorageDaemon, folder: Path
) -> None:
    """SIGKILL, twice: the same URI, the same bytes, and a client that was connected sees no error."""
    stack, vm1 = own_stack, Load(disk.uri())
    stack.protect("kept", disk.qmp, "disk0")
    vm1("write", start=0, length=4 * MIB, seed=1)
    vm1.close()
    fot = stack.run("fot", "start", "kept", "--latest")
    # A QEMU's block layer, which waits through a restart of the diskbox as that of a recovery VM does.
    client = StorageDaemon(folder / "vm1r", [DISK_BYTES], view=fot["uri"])
    try:
        vm1r = Load(client.uri())
        for number in range(2):
            vm1r("write", start=(8 + number) * MIB, length=MIB, seed=20 + number)
            seen = client.content()
            _kill_diskbox(stack)
            assert client.content() == seen
            (shown,) = stack.run("fot", "list")["fots"]
            assert (shown["fot"], shown["state"], shown["uri"]) == (fot["fot"], "started", fot["uri"])
        vm1r("write", start=0, length=MIB, seed=30)
        vm1r.close()
    finally:
        client.stop()
    stack.run("fot", "stop", fot["fot"])
    assert stack.read_view("kept", "--latest") == disk.content()


def test_rollback_loses_nothing_on_the_protected_side(stack: Stack, disk: StorageDaemon) -> None:
    """VM1 writes before, at and after the fence; after the rollback a delta brings all of it."""
    vm1 = Load(disk.uri())
    stack.protect("back", disk.qmp, "disk0")
    vm1("write", start=0, length=4 * MIB, seed=1)
    opened = stack.run("failover", "back", "--latest", "--yes", "--rollback-after", "1h")
    vm1("write", start=5 * MIB, length=MIB, seed=2)
    vm1r = Load(opened["uri"])
    vm1r("write", start=0, length=2 * MIB, seed=9)
    vm1r.close()
    assert stack.run("rollback", "back", "--yes")["state"] == "rolled_back"
    stack.run("wait", "back", "--state", "protected", "--timeout", "60")
    started = [
        event for event in events(stack) if isinstance(event, ev.VolumeSyncStarted) and event.volume == "back"
    ]
    assert [event.mode for event in started] == ["full", "delta"]
    vm1("write", start=6 * MIB, length=MIB, seed=3)
    vm1.close()
    _at_rest(stack, "back")
    assert stack.read_view("back", "--latest") == disk.content()
    assert stack.run("rollback", "back", "--yes")["already"]
    # And once more, by itself.
    stack.run("failover", "back", "--latest", "--yes", "--rollback-after", "1s")
    stack.run("wait", "back", "--state", "protected", "--timeout", "60")
    assert stack.read_view("back", "--latest") == disk.content()
    stack.run("unprotect", "back", "--purge")


def test_a_move_loses_nothing(stack: Stack, disk: StorageDaemon) -> None:
    """Drained first; what is opened is the disk, to the last byte."""
    vm1 = Load(disk.uri())
    stack.protect("moved", disk.qmp, "disk0")
    vm1("write", start=0, length=4 * MIB, seed=1)
    vm1.close()
    opened = stack.run("move", "moved", "--yes")
    assert (opened["lost_events"], opened["lost_bytes"]) == (0, 0)
    stack.wait_until("VM1 is let go", disk.is_let_go)
    assert _content(stack, opened["uri"]) == disk.content()
    stack.run("commit", "moved", "--yes", "--close")
    stack.fails("move", "moved", "--yes", code=5)
    stack.run("unprotect", "moved", "--purge")
