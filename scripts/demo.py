"""`make demo`: the main job on a real virtual machine, from protect to promote, with real Kafka, Redis and QEMU.

A guest with an ext4 file system works on its disk all the time. The demo protects that disk, names a checkpoint,
lets a "disaster" overwrite every document, looks at the checkpoint in a fail-over test (a second VM boots from it),
makes it permanent and compares the result, byte for byte, with a copy that RepHub had no hand in.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guest import Guest, GuestError, build
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
REPHUB = ROOT / ".venv/bin/rephub"
CACHE = ROOT / ".cache/guest"
DISK_BYTES = 256 << 20
VOLUME = "vm1-data"
CHECKPOINT = "before-disaster"

DOCUMENTS = """
mkdir -p /mnt/docs && cd /mnt/docs
for i in $(seq 1 40); do dd if=/dev/urandom of=doc$i bs=64k count=8 2>/dev/null; done
sha256sum doc* > /mnt/manifest; sync
"""
LOAD = """
cat > /tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1))
  echo "entry $i" | dd of=/mnt/log.$((i % 500)) conv=fsync 2>/dev/null
  echo $i > /tmp/count
done
END
sh /tmp/load &
"""
DISASTER = "cd /mnt/docs; for f in doc*; do echo 'YOUR FILES ARE ENCRYPTED' > $f; done; sync; ls | wc -l"
CHECK = (
    "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt && cd /mnt/docs && sha256sum -c /mnt/manifest | grep -c OK"
)

console = Console(stderr=False, highlight=False)


class DemoError(Exception):
    """A step did not show what it must."""


def rephub(state: Path, *arguments: str, timeout: float = 120) -> dict[str, Any]:
    """Run the product as a person would; returns its JSON document."""
    done = subprocess.run(
        [REPHUB, *arguments, "--state-dir", state, "--json"],
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=False,
    )
    document: dict[str, Any] = json.loads(done.stdout or b"{}")
    if done.returncode != 0:
        error = document.get("error", {})
        raise DemoError(f"rephub {' '.join(arguments)}: {error.get('message')} ({error.get('hint')})")
    return document


@contextlib.contextmanager
def step(text: str) -> Iterator[Progress]:
    """A line with a spinner and the time it takes."""
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=None)
        yield progress
        progress.update(task, total=1, completed=1)


def wait_protected(state: Path, progress: Progress) -> dict[str, Any]:
    """Follow the sync to its end."""
    deadline = time.monotonic() + 120
    task = progress.task_ids[0]
    while time.monotonic() < deadline:
        (volume,) = rephub(state, "status", VOLUME)["volumes"]
        if volume["state"] == "protected":
            return dict(volume)
        if volume["sync"]:
            progress.update(task, total=volume["sync"]["total_bytes"], completed=volume["sync"]["done_bytes"])
        time.sleep(0.2)
    raise DemoError(f"the volume is {volume['state']}: {volume['reason']}")


def fsck(uri: str, folder: Path) -> None:
    """Check the file system on a copy of the view: its journal is replayed, then it must be clean."""
    copy = folder / "fsck.raw"
    subprocess.run(["nbdcopy", uri, copy], check=True)
    subprocess.run(["e2fsck", "-fp", copy], check=False, stdout=subprocess.DEVNULL)
    subprocess.run(["e2fsck", "-fn", copy], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    copy.unlink()


def count(guest: Guest) -> int:
    """How many entries the load has written."""
    # The guest's shell empties the file before it writes the next number.
    while not (shown := guest.run("cat /tmp/count").strip()):
        pass
    return int(shown)


def drive(where: str) -> list[str]:
    """QEMU's arguments for the data disk."""
    return ["-drive", f"{where},if=none,id=drive0,node-name=data", "-device", "virtio-blk-pci,drive=drive0"]


def protect(state: Path, vm1: Guest, figures: list[tuple[str, str]]) -> None:
    """Protect the running disk and wait for the first sync."""
    with step("protect the running disk; first sync") as progress:
        began = time.monotonic()
        rephub(state, "protect", VOLUME, "--qmp", str(vm1.qmp), "--node", "data")
        attached = time.monotonic() - began
        volume = wait_protected(state, progress)
        figures += [
            ("protect until captured", f"{attached:.2f} s"),
            ("first sync of 256 MiB", f"{time.monotonic() - began:.2f} s"),
            ("events journaled by then", str(volume["head_offset"] + 1)),
        ]


def checkpoint_with_copy(state: Path, vm1: Guest, disk: Path, copy: Path) -> int:
    """Name a checkpoint; take the independent copy while the VM stands still for a moment."""
    with step("checkpoint, and an independent copy of the disk at that instant"), vm1.frozen():
        made = rephub(state, "checkpoint", "create", CHECKPOINT, "--volume", VOLUME)
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    return int(made["offsets"][VOLUME])


def test_failover(state: Path, folder: Path, vm1: Guest, figures: list[tuple[str, str]]) -> None:
    """Open the checkpoint, fsck it, boot a recovery VM from it, while VM1 goes on."""
    before = count(vm1)
    with step("fail-over test of the checkpoint: open, fsck"):
        began = time.monotonic()
        fot = rephub(state, "fot", "start", VOLUME, "--checkpoint", CHECKPOINT)
        figures.append(("fail-over test opened in", f"{time.monotonic() - began:.2f} s"))
        fsck(fot["uri"], folder)
    with step("boot VM1R from it; every document as it was"):
        began = time.monotonic()
        vm1r = Guest(CACHE, folder / "vm1r", drive(f"file={fot['uri']},format=raw"))
        try:
            good = int(vm1r.run(CHECK, check=False).split()[-1])
            vm1r.run("echo scratch > /mnt/scratch; sync")
        finally:
            vm1r.stop()
        figures.append(("recovery VM booted and checked in", f"{time.monotonic() - began:.2f} s"))
        if good != 40:
            raise DemoError(f"{good} of 40 documents are as they were")
    after = count(vm1)
    if after <= before:
        raise DemoError("VM1 did not go on during the fail-over test")
    figures.append(("entries VM1 wrote meanwhile", str(after - before)))
    rephub(state, "fot", "stop", fot["fot"])


def promote(state: Path, copy: Path, offset: int, figures: list[tuple[str, str]]) -> None:
    """Make the checkpoint permanent and compare."""
    with step("promote to the checkpoint's offset"):
        began = time.monotonic()
        done = rephub(state, "promote", VOLUME, "--offset", str(offset), "--yes")
        figures += [
            ("promoted in", f"{time.monotonic() - began:.2f} s"),
            ("events applied by promote", str(done["applied_events"])),
        ]
    with step("compare the recovery volume with the independent copy"):
        if subprocess.run(["cmp", done["path"], copy], check=False).returncode:
            raise DemoError("the recovery volume differs from the copy")
        figures.append(("bytes that differ from the copy", "0"))


def play(state: Path, folder: Path, figures: list[tuple[str, str]]) -> None:
    """The whole story."""
    disk, copy = folder / "vm1.raw", folder / "independent-copy.raw"
    with step("build the guest (Debian's cloud kernel, busybox), boot VM1, fill its file system"):
        build(CACHE)
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-qF", disk], check=True)
        vm1 = Guest(CACHE, folder / "vm1", drive(f"file={disk},format=raw"))
    try:
        vm1.run("mount -t ext4 /dev/vda /mnt")
        vm1.run(DOCUMENTS)
        vm1.run(LOAD)
        protect(state, vm1, figures)
        offset = checkpoint_with_copy(state, vm1, disk, copy)
        with step("more writes, then the disaster: every document overwritten"):
            begun = count(vm1)
            while count(vm1) < begun + 100:
                pass
            vm1.run(DISASTER)
        test_failover(state, folder, vm1, figures)
        promote(state, copy, offset, figures)
        vm1.run("touch /tmp/stop; sync; dmesg | grep -c 'I/O error' || true")
        figures.append(("entries VM1 wrote in all", str(count(vm1))))
    finally:
        vm1.stop()


def main() -> int:
    """Play the demo in a folder of its own and leave nothing running."""
    began = time.monotonic()
    figures: list[tuple[str, str]] = []
    folder = Path(tempfile.mkdtemp(prefix="rephub-demo-"))
    state = folder / "state"
    failure = ""
    try:
        with step("start Kafka, Redis, hub, agent and diskbox"):
            rephub(state, "up", "--detach")
        play(state, folder, figures)
    except (DemoError, GuestError, subprocess.SubprocessError) as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    with step("stop everything"):
        subprocess.run([REPHUB, "down", "--state-dir", state], check=False, stdout=subprocess.DEVNULL)
    if failure:
        console.print(f"[red]failed:[/red] {failure}\nlogs are in {state / 'logs'}")
        return 1
    shutil.rmtree(folder)
    table = Table("what", "figure", title="What the demo did")
    for name, figure in (*figures, ("the whole demo", f"{time.monotonic() - began:.0f} s")):
        table.add_row(name, figure)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
