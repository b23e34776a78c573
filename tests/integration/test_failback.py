"""There and back again: moved, recovered, protected in the other direction, moved home; byte-compared each time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from recovery_servers import attach_loop, detach_loop, qemu_nbd
from rephub.schemas import events as ev
from services import cannot
from stack import Stack, events

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(900)]

MIB = 1 << 20
DISK_BYTES = 32 * MIB


def _write(daemon: StorageDaemon, seed: int) -> None:
    """Here and there, as a guest does."""
    load = Load(daemon.uri())
    for number in range(4):
        start = (seed * 7 + number * 5) % 31 * MIB + 4096 * (seed % 9)
        load("write", start=start, length=64 << 10, seed=seed * 10 + number)
    load("flush")
    load.close()


def _protected(stack: Stack) -> None:
    stack.run("wait", "trip", "--state", "protected", "--timeout", "60")


@contextlib.contextmanager
def _offered(folder: Path, disk: Path, kind: str) -> Iterator[str]:
    """The disk of before as what `--recovery` takes."""
    if kind == "file":
        yield str(disk)
    elif kind == "nbd":
        server = qemu_nbd(folder, disk)
        try:
            yield server.uri
        finally:
            server.kill()
    else:
        device = attach_loop(disk)
        if device is None:
            cannot("losetup gives no loop device here")
        try:
            yield str(device)
        finally:
            detach_loop(device)


def _round_trip(
    stack: Stack, folder: Path, vm1: StorageDaemon, seed: int, kind: str = "file"
) -> StorageDaemon:
    """From VM1 to VM1R and back onto the disk of before as a file, device or export; VM1 is protected before and after."""
    _write(vm1, seed)
    # There: VM1 is moved to the recovery site, and its VM ends.
    opened = stack.run("move", "trip", "--yes")
    assert opened["lost_events"] == 0
    stack.wait_until("VM1 is let go", vm1.is_let_go)
    before = vm1.content()
    vm1.stop()
    vm1r = StorageDaemon(folder / "vm1r", [DISK_BYTES], view=opened["uri"])
    with contextlib.ExitStack() as offered:
        offered.callback(vm1r.stop)
        disk = offered.enter_context(_offered(folder, vm1.files[0], kind))
        assert vm1r.content() == before
        _write(vm1r, seed + 1)
        (done,) = stack.run("commit", "trip", "--yes")["volumes"]
        # Back: VM1R is protected, and its copy is the disk of before.
        assert stack.run("failback", "trip", "--recovery", disk, "--dry-run")["discarded"]["events"] == 0
        stack.fails("failback", "trip", "--recovery", disk, code=2)
        vm = ("--qmp", str(vm1r.qmp), "--node", "disk0")
        answer = stack.run("failback", "trip", *vm, "--recovery", disk, "--yes")
        assert answer["discarded"]["complete"]
        _protected(stack)
        _write(vm1r, seed + 2)
        after = vm1r.content()
        home = stack.run("move", "trip", "--yes")
        assert home["lost_events"] == 0
        vm1r.stop()
        stack.run("commit", "trip", "--yes", "--close")
    assert vm1.files[0].read_bytes() == after
    vm1 = StorageDaemon(folder / "vm1", [DISK_BYTES])
    try:
        stack.run(
            "failback", "trip", "--qmp", str(vm1.qmp), "--node", "disk0", "--recovery", done["path"], "--yes"
        )
        _protected(stack)
        assert stack.read_view("trip", "--latest") == vm1.content() == after
    except BaseException:
        vm1.stop()
        raise
    return vm1


def _trips(stack: Stack, folder: Path, count: int, kind: str = "file") -> None:
    vm1 = StorageDaemon(folder / "vm1", [DISK_BYTES])
    try:
        _write(vm1, 99)
        stack.protect("trip", vm1.qmp, "disk0")
        for number in range(count):
            vm1 = _round_trip(stack, folder, vm1, number * 3, kind)
        # Only what differed has travelled: each way back copied far less than the disk has.
        last = [
            event
            for event in events(stack)
            if isinstance(event, ev.VolumeSyncStarted) and event.volume == "trip"
        ]
        modes = [event.mode for event in last][-(1 + 2 * count) :]
        assert modes == ["full", *["compare"] * (2 * count)]
        stack.run("unprotect", "trip", "--purge")
    finally:
        vm1.stop()


def test_there_and_back(stack: Stack, folder: Path) -> None:
    _trips(stack, folder, 2)


@pytest.mark.parametrize("kind", ["nbd", "device"])
def test_back_onto_a_disk_that_is_no_file(stack: Stack, folder: Path, kind: str) -> None:
    _trips(stack, folder, 1, kind)


@pytest.mark.long
def test_there_and_back_twenty_times(own_stack: Stack, folder: Path) -> None:
    _trips(own_stack, folder, 20)
