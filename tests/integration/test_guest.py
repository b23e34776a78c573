"""Real virtual machines under TCG, with Debian's kernel and guest agent: quiesced checkpoints, recovery VMs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guests import halted_vm, make_disk, vm_with_disk, vm_with_drive
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

WRITER = """
mount -t ext4 /dev/vda /mnt
cat > /tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1))
  echo "entry $i" | dd of=/mnt/file.$((i % 200)) conv=fsync 2>/dev/null
  echo $i > /tmp/count
done
END
sh /tmp/load > /dev/null 2>&1 &
"""


@pytest.fixture
def guest(folder: Path) -> Iterator[Any]:
    """A VM whose ext4 data disk (node `data`) is written to all the time, every file fsynced."""
    vm = vm_with_disk(folder / "vm1", str(make_disk(folder / "vm1.raw")))
    try:
        vm.run(WRITER)
        yield vm
    finally:
        vm.stop()


def _count(vm: Any) -> int:
    """How often the guest has written; its shell empties the file before each number."""
    while not (shown := vm.run("cat /tmp/count").strip()):
        pass
    return int(shown)


def _needs_recovery(stack: Stack, folder: Path, checkpoint: str, volume: str) -> bool:
    """Whether the file system of a checkpoint has a journal to replay; its copy must pass fsck as it is if not."""
    fot = stack.run("fot", "start", volume, "--checkpoint", checkpoint, "--read-only")
    copy = folder / "copy.raw"
    try:
        subprocess.run(["nbdcopy", fot["uri"], copy], check=True)
    finally:
        stack.run("fot", "stop", fot["fot"])
    shown = subprocess.run(["dumpe2fs", "-h", copy], capture_output=True, text=True, check=True).stdout
    (features,) = (line for line in shown.splitlines() if line.startswith("Filesystem features"))
    needed = "needs_recovery" in features
    if not needed:
        subprocess.run(["e2fsck", "-fn", copy], check=True, capture_output=True)
    copy.unlink()
    return needed


def _go_on(stack: Stack, vm: Any, more: int = 20) -> None:
    """The guest writes on: it is not frozen."""
    before = _count(vm)
    stack.wait_until("the guest goes on", lambda: _count(vm) > before + more)


def test_a_quiesced_checkpoint_needs_no_recovery(stack: Stack, guest: Any, folder: Path) -> None:
    """With --quiesce the file system is at rest in the checkpoint, without it is not; the guest goes on at once."""
    stack.protect("quiesce", guest.qmp, "data")
    _go_on(stack, guest)
    for number in range(3):
        app = stack.run("checkpoint", "create", f"app-{number}", "--volume", "quiesce", "--quiesce")
        assert app["kind"] == "app"
        assert "warning" not in app
        _go_on(stack, guest)
        crash = stack.run("checkpoint", "create", f"crash-{number}", "--volume", "quiesce")
        assert crash["kind"] == "crash"
        assert not _needs_recovery(stack, folder, f"app-{number}", "quiesce")
        assert _needs_recovery(stack, folder, f"crash-{number}", "quiesce")
    kinds = {entry["checkpoint"]: entry["kind"] for entry in stack.run("checkpoint", "list")["checkpoints"]}
    assert (kinds["app-0"], kinds["crash-0"]) == ("app", "crash")
    marks = {entry["checkpoint"]: entry["kind"] for entry in stack.run("timeline", "quiesce")["checkpoints"]}
    assert (marks["app-0"], marks["crash-0"]) == ("app", "crash")
    assert stack.status("quiesce")["state"] == "protected"
    stack.run("unprotect", "quiesce", "--purge")


def test_a_guest_that_cannot_freeze_yields_a_crash_consistent_checkpoint(
    stack: Stack, guest: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guest agent is stopped, then killed: the answer says crash and why, the checkpoint is good, the VM goes on."""
    stack.protect("noquiesce", guest.qmp, "data")
    guest.run("kill -STOP $(pidof qemu-ga)")
    stuck = stack.run("checkpoint", "create", "stuck", "--volume", "noquiesce", "--quiesce")
    guest.run("kill -KILL $(pidof qemu-ga); sleep 0.2")
    gone = stack.run("checkpoint", "create", "gone", "--volume", "noquiesce", "--quiesce")
    stderr = capsys.readouterr().err
    for made, words in ((stuck, "does not answer"), (gone, "no guest agent runs")):
        assert made["kind"] == "crash"
        assert words in made["warning"]
        assert made["offsets"]["noquiesce"] > 0
        assert f"warning: {made['warning']}" in stderr
        assert _needs_recovery(stack, folder, made["checkpoint"], "noquiesce")
    _go_on(stack, guest)
    stack.run("unprotect", "noquiesce", "--purge")


def _no_test_open(stack: Stack, volume: str) -> None:
    """The hub's list follows the event that the command has seen."""
    stack.wait_until(
        "no test is open",
        lambda: not [fot for fot in stack.run("fot", "list")["fots"] if fot.get("volume") == volume],
    )


RECOVERED = """
mkdir -p /mnt/r
mount -t ext4 /dev/vda /mnt/r
cat /mnt/r/marker
grep -c . /proc/partitions
"""


@pytest.mark.parametrize(
    "options", [(), ("-machine", "q35", "-device", "pcie-root-port,id=rp1,chassis=1")], ids=["pc", "q35"]
)
def test_failover_test_of_the_sketch(
    stack: Stack, guest: Any, folder: Path, options: tuple[str, ...]
) -> None:
    """The FOT flow: VM1R boots with the volume of a checkpoint while VM1 goes on; then its disk goes away again."""
    # VM1 runs; its disk Vol1 is protected and Vol1R follows.
    stack.protect("vm1", guest.qmp, "data")
    guest.run("echo 'before the checkpoint' > /mnt/marker; sync")
    made = stack.run("checkpoint", "create", "point", "--volume", "vm1", "--quiesce")
    guest.run("echo 'after the checkpoint' > /mnt/marker; sync")
    # VM1R is a new VM, which has no disk and does not run yet.
    vm1r = halted_vm(folder / "vm1r", *options)
    try:
        # The operator starts the FOT at the checkpoint; the diskbox opens Vol1R as it was, with scratch for writes.
        # The RepAgent redirects VM1R: by its QMP it gets the view as its disk, and runs.
        before = _count(guest)
        fot = stack.run("fot", "start", "vm1", "--checkpoint", "point", "--qmp", str(vm1r.qmp))
        assert fot["offset"] == made["offsets"]["vm1"]
        # VM1R boots, mounts it, and sees the files of the checkpoint.
        vm1r.wait_booted()
        assert "before the checkpoint" in vm1r.run(RECOVERED)
        # VM1R writes: to scratch alone.
        vm1r.run("echo scratch > /mnt/r/marker; dd if=/dev/urandom of=/mnt/r/big bs=64k count=32; sync")
        # Meanwhile VM1 goes on and stays protected.
        stack.wait_until("VM1 goes on", lambda: _count(guest) > before)
        assert guest.run("cat /mnt/marker").strip() == "after the checkpoint"
        assert stack.status("vm1")["state"] == "protected"
        # The FOT is stopped: VM1R lets go of the disk, the view closes, its scratch is gone.
        vm1r.run("umount /mnt/r")
        stack.run("fot", "stop", fot["fot"])
        _no_test_open(stack, "vm1")
        assert not any(line.split()[3:] == ["vda"] for line in vm1r.run("cat /proc/partitions").splitlines())
        # Another FOT, at another point, of the same VM, which runs by now: nothing of the first is in it.
        again = stack.run("fot", "start", "vm1", "--latest", "--qmp", str(vm1r.qmp))
        vm1r.run("i=0; until [ -e /sys/block/vda ] || [ $i = 50 ]; do i=$((i+1)); sleep 0.1; done")
        assert "after the checkpoint" in vm1r.run(RECOVERED)
        # VM1R is switched off without a word: the stop ends all the same.
        vm1r.stop()
        stack.run("fot", "stop", again["fot"])
        _no_test_open(stack, "vm1")
    finally:
        vm1r.stop()
    stack.run("unprotect", "vm1", "--purge")


def test_a_recovery_vm_that_cannot_get_the_disk(stack: Stack, guest: Any, folder: Path) -> None:
    """No monitor, no free slot: one clear error, the test is gone, nothing is left in the VM."""
    stack.protect("vm2", guest.qmp, "data")
    error = stack.fails("fot", "start", "vm2", "--latest", "--qmp", str(folder / "nobody"), code=4)
    assert "is not there" in error["message"]
    vm1r = halted_vm(folder / "vm1r", "-machine", "q35")
    try:
        error = stack.fails("fot", "start", "vm2", "--latest", "--qmp", str(vm1r.qmp), code=5)
        assert "no free slot" in error["message"]
        assert "pcie-root-port" in error["hint"]
        _no_test_open(stack, "vm2")
        assert vm1r.query("query-named-block-nodes") == []
        assert vm1r.query("query-status")["status"] == "prelaunch"
    finally:
        vm1r.stop()
    _go_on(stack, guest)
    stack.run("unprotect", "vm2", "--purge")


BOTH = """
mkdir -p /mnt/a /mnt/b
mount -t ext4 /dev/vda /mnt/a; mount -t ext4 /dev/vdb /mnt/b
mkdir /mnt/a/n /mnt/b/n; echo 0 > /tmp/count
cat > /tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1))
  echo $i | dd of=/mnt/a/n/$i conv=fsync 2>/dev/null
  echo $i | dd of=/mnt/b/n/$i conv=fsync 2>/dev/null
  echo $i > /tmp/count
done
END
sh /tmp/load > /dev/null 2>&1 &
"""
RECOVERED_BOTH = """
i=0; until [ -e /sys/block/vdb ] || [ $i = 50 ]; do i=$((i+1)); sleep 0.1; done
mkdir -p /mnt/a /mnt/b
mount -t ext4 /dev/vda /mnt/a && mount -t ext4 /dev/vdb /mnt/b
ls /mnt/a/n | sort -n | tail -1
ls /mnt/b/n | sort -n | tail -1
"""


def test_a_group_test_shows_both_disks_of_a_vm_at_one_instant(stack: Stack, folder: Path) -> None:
    """VM1 writes each number to the first disk, then to the second: in VM1R the second is never ahead."""
    drives = " ".join(
        f"-drive file={make_disk(folder / f'{name}.raw')},format=raw,if=none,id=d{name},node-name={name} "
        f"-device virtio-blk-pci,drive=d{name}"
        for name in ("first", "second")
    )
    vm = vm_with_drive(folder / "vm1", drives)
    vm1r = None
    try:
        for name in ("first", "second"):
            stack.protect(f"both-{name}", vm.qmp, name, "--group", "both")
        vm.run(BOTH)
        for number in range(3):
            _go_on(stack, vm)
            made = stack.run("checkpoint", "create", f"both-{number}", "--group", "both")
            vm1r = halted_vm(folder / "vm1r")
            fot = stack.run(
                "fot", "start", "--group", "both", "--checkpoint", f"both-{number}", "--qmp", str(vm1r.qmp)
            )
            assert {view["volume"]: view["offset"] for view in fot["volumes"]} == made["offsets"]
            vm1r.wait_booted()
            first, second = map(int, vm1r.run(RECOVERED_BOTH).split())
            assert second <= first <= second + 1
            vm1r.run("umount /mnt/a /mnt/b")
            stack.run("fot", "stop", fot["fot"])
            vm1r.stop()
    finally:
        for machine in (vm, vm1r):
            if machine is not None:
                machine.stop()
    stack.run("unprotect", "both-first", "--purge")
    stack.run("unprotect", "both-second", "--purge")
