"""Fail-over and planned moves with virtual machines that boot: the sketch's FO flow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guests import DISK_BYTES, goes_on, halted_vm, look, make_disk, stop_writing, vm_with_disk, write_numbers
from rephub.schemas import events as ev
from stack import Stack, events, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]


@pytest.fixture
def vm1(folder: Path) -> Iterator[Any]:
    """A VM with an ext4 disk that it writes to all the time, every file fsynced."""
    vm = vm_with_disk(folder / "vm1", str(make_disk(folder / "vm1.raw")))
    try:
        vm.run("mount -t ext4 /dev/vda /mnt")
        write_numbers(vm)
        yield vm
    finally:
        vm.stop()


def test_failover_of_the_sketch(stack: Stack, vm1: Any, folder: Path) -> None:
    """VM1R runs from the point at once; the commit goes on beside it; then the disk is a file that a VM boots from."""
    stack.protect("fovm", vm1.qmp, "data")
    sure = goes_on(vm1, 20)
    # 1. Management system creates VM1R as a FO machine.
    vm1r = halted_vm(folder / "vm1r")
    try:
        # 2.-3. RepHub opens Vol1R at the point, connects it to VM1R and starts the VM, the history is written behind it.
        opened = stack.run("failover", "fovm", "--latest", "--yes", "--qmp", str(vm1r.qmp))
        assert "warning" not in opened
        vm1r.wait_booted()
        found = look(vm1r)
        assert found.last >= sure
        # VM1 is alive, and what it writes from now on is lost: that is what fail-over means.
        goes_on(vm1)
        write_numbers(vm1r, "/mnt/r")
        goes_on(vm1r, 10)
        stack.run("commit", "fovm", "--yes")
        goes_on(vm1r, 10)
        last = stop_writing(vm1r)
        vm1r.run("umount /mnt/r")
        vm1r.stop()
        (item,) = stack.run("commit", "fovm", "--yes", "--close")["volumes"]
    finally:
        vm1r.stop()
    subprocess.run(["e2fsck", "-fn", item["path"]], check=True, capture_output=True)
    again = vm_with_disk(folder / "again", item["path"])
    try:
        assert look(again).last == last
    finally:
        again.stop()
    stack.run("unprotect", "fovm", "--purge")


def test_a_move_stops_the_vm_and_loses_nothing(stack: Stack, vm1: Any, folder: Path) -> None:
    """VM1 is stopped, its last write is in VM1R; a rollback lets VM1 go on as if nothing had been."""
    stack.protect("movevm", vm1.qmp, "data")
    sure = goes_on(vm1)
    opened = stack.run("move", "movevm", "--yes")
    assert (opened["lost_events"], opened["lost_bytes"], opened["lost_seconds"]) == (0, 0, 0)
    assert vm1.query("query-status")["status"] == "paused"
    # To the last byte: VM1's disk stands still.
    assert read_uri(opened["uri"], folder / "copy") == (folder / "vm1.raw").read_bytes()
    vm1r = vm_with_disk(folder / "vm1r", opened["uri"])
    try:
        found = look(vm1r)
        vm1r.run("echo other > /mnt/r/other; umount /mnt/r")
    finally:
        vm1r.stop()
    assert found.last >= sure
    stack.run("rollback", "movevm", "--yes")
    stack.wait_until("VM1 runs again", lambda: vm1.query("query-status")["status"] == "running")
    stack.run("wait", "movevm", "--state", "protected", "--timeout", "60")
    assert goes_on(vm1) > found.last
    stack.run("unprotect", "movevm", "--purge")


def test_there_and_back_with_machines(stack: Stack, vm1: Any, folder: Path) -> None:
    """VM1 is moved, VM1R writes on, is protected onto VM1's disk and moved home: only what VM1R wrote is looked at."""
    stack.protect("home", vm1.qmp, "data")
    goes_on(vm1)
    vm1r = halted_vm(folder / "vm1r")
    try:
        stack.run("move", "home", "--yes", "--qmp", str(vm1r.qmp))
        stack.wait_until("VM1 is let go", lambda: vm1.query("query-block-jobs") == [])
        vm1.process.kill()
        vm1.process.wait()
        vm1r.wait_booted()
        found = look(vm1r)
        write_numbers(vm1r, "/mnt/r")
        goes_on(vm1r)
        stack.run("commit", "home", "--yes")
        # Monitor and node are those that the move gave it.
        stack.run("failback", "home", "--recovery", str(folder / "vm1.raw"), "--yes")
        stack.run("wait", "home", "--state", "protected", "--timeout", "60")
        (digested,) = [
            event
            for event in events(stack)
            if isinstance(event, ev.ExtentsDigested) and event.volume == "home"
        ]
        assert digested.digested_bytes < DISK_BYTES // 4
        sure = goes_on(vm1r)
        assert stack.run("move", "home", "--yes")["lost_events"] == 0
    finally:
        vm1r.stop()
    stack.run("commit", "home", "--yes", "--close")
    again = vm_with_disk(folder / "again", str(folder / "vm1.raw"))
    try:
        assert look(again).last >= sure > found.last
    finally:
        again.stop()
    stack.run("unprotect", "home", "--purge")
