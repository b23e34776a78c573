"""Fail-over tests with virtual machines under load: every point boots, and holds what was sure by then and nothing younger."""

from __future__ import annotations

import bisect
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from guests import Found, count, halted_vm, look, make_disk, vm_with_disk, vm_with_drive, write_numbers
from rephub.core.units import parse_time
from stack import Stack, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(400)]

OFFSETS = 20
RPO_SECONDS_MAX = 5.0
"""Two guests in emulation on two cores, broker beside them: what is asserted is that protection does not fall behind."""


@dataclass(frozen=True, slots=True)
class Sure:
    """By this time the guest had said that everything up to the number is fsynced and committed."""

    at: int
    number: int


@pytest.fixture
def vm1(folder: Path) -> Iterator[Any]:
    """A VM that writes numbered files, and rows of an SQLite database, one synced after the other."""
    vm = vm_with_disk(folder / "vm1", str(make_disk(folder / "vm1.raw")))
    try:
        vm.run("mount -t ext4 /dev/vda /mnt")
        write_numbers(vm, database=True)
        yield vm
    finally:
        vm.stop()


def _watch(vm: Any, numbers: int, seconds: float = 90) -> list[Sure]:
    """What the guest says, and when it was heard, until it has written so many."""
    heard: list[Sure] = []
    deadline = time.monotonic() + seconds
    while not heard or heard[-1].number < numbers:
        assert time.monotonic() < deadline, f"the guest wrote {heard[-1].number if heard else 0} numbers only"
        number = count(vm)
        heard.append(Sure(time.time_ns() // 1000, number))
        time.sleep(0.02)
    return heard


def _check(found: Found, heard: list[Sure], captured_at: int) -> None:
    """A prefix: all that was sure at the point's time, and no more than could have been begun by the next report."""
    index = bisect.bisect_left(heard, captured_at, key=lambda sure: sure.at)
    least = heard[index - 1].number if index else 0
    assert found.last >= least, f"{least} was fsynced before the point's time"
    # A report is heard after what it reports: the next one bounds what had been begun.
    if index < len(heard):
        assert found.last <= heard[index].number + 1
    assert found.rows is not None
    assert found.integrity == "ok"
    assert found.rows == list(range(1, len(found.rows) + 1)), "rows are a prefix, too"
    # Each number's file comes before its row.
    assert least <= len(found.rows) <= found.last


def test_any_point_boots(stack: Stack, vm1: Any, folder: Path) -> None:
    """20 random offsets under load: the file system and the database recover to a prefix."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    # 1.-2. VM1 is protected, Vol1R follows; VM1 writes all the time.
    stack.protect("points", vm1.qmp, "data")
    first = stack.status("points")["head_offset"]
    sure = count(vm1)
    heard = [Sure(time.time_ns() // 1000, sure), *_watch(vm1, sure + 25)]
    last = stack.status("points")["head_offset"]
    offsets = sorted(draw.sample(range(first, last), OFFSETS))
    # 3. VM1R is a new VM.
    vm1r = halted_vm(folder / "vm1r")
    booted = False
    try:
        for offset in offsets:
            # 4.-5. Vol1R is connected to VM1R; every I/O of VM1R is answered by RepHub.
            fot = stack.run("fot", "start", "points", "--offset", str(offset), "--qmp", str(vm1r.qmp))
            if not booted:
                vm1r.wait_booted()
                booted = True
            # 6. Reads come from journal and recovery volume, writes (the replay of ext4's journal) go to scratch.
            found = look(vm1r)
            _check(found, heard, parse_time(fot["resolved"]["captured_at"]))
            vm1r.run("umount /mnt/r")
            content = folder / "content"
            content.write_bytes(read_uri(fot["uri"], folder / "copy"))
            subprocess.run(["e2fsck", "-fn", content], check=True, capture_output=True)
            stack.run("fot", "stop", fot["fot"])
        # And one that boots from the URI without us in its QEMU.
        fot = stack.run("fot", "start", "points", "--offset", str(offsets[OFFSETS // 2]))
        assert ET.fromstring(fot["libvirt"]).find("source").attrib["protocol"] == "nbd"
        other = vm_with_drive(folder / "other", fot["qemu"])
        try:
            _check(look(other), heard, parse_time(fot["resolved"]["captured_at"]))
        finally:
            other.stop()
        stack.run("fot", "stop", fot["fot"])
    finally:
        vm1r.stop()
    assert stack.status("points")["state"] == "protected"
    stack.run("unprotect", "points", "--purge")


def test_vm1_is_not_disturbed(stack: Stack, vm1: Any, folder: Path) -> None:
    """VM1R writes as much as it can: VM1 loses no write, its RPO stays in its bound, nothing of VM1R is seen elsewhere."""
    stack.protect("undisturbed", vm1.qmp, "data")
    _watch(vm1, count(vm1) + 3)
    point = stack.run("checkpoint", "create", "undisturbed-a", "--volume", "undisturbed")["offsets"][
        "undisturbed"
    ]
    reference = stack.read_view("undisturbed", "--offset", str(point))
    _watch(vm1, count(vm1) + 2)
    vm1r = halted_vm(folder / "vm1r")
    try:
        fot = stack.run("fot", "start", "undisturbed", "--offset", str(point), "--qmp", str(vm1r.qmp))
        later = stack.run("fot", "start", "undisturbed", "--latest", "--read-only")
        vm1r.wait_booted()
        look(vm1r)
        vm1r.run(
            "(while :; do dd if=/dev/urandom of=/mnt/r/junk bs=64k count=100 conv=fsync; done) >/dev/null 2>&1 &"
        )
        worst, before = 0.0, count(vm1)
        for _ in range(10):
            status = stack.status("undisturbed")
            assert status["state"] == "protected", status
            worst = max(worst, status["rpo_seconds"])
            _watch(vm1, count(vm1) + 1)
        assert count(vm1) >= before + 10
        assert worst < RPO_SECONDS_MAX
        assert stack.read_view("undisturbed", "--offset", str(point)) == reference, "scratch is nobody else's"
        assert read_uri(later["uri"], folder / "copy") == stack.read_view(
            "undisturbed", "--offset", str(later["offset"])
        )
        stack.run("fot", "stop", later["fot"])
    finally:
        vm1r.stop()
    stack.run("fot", "stop", fot["fot"])
    with vm1.frozen():
        stack.wait_until("everything is acked", lambda: stack.status("undisturbed")["lag_bytes"] == 0)
        assert stack.read_view("undisturbed", "--latest") == (folder / "vm1.raw").read_bytes()
    stack.run("unprotect", "undisturbed", "--purge")
