"""Virtual machines for tests: VM1 with a data disk that it writes to all the time, and VM1R that gets the recovered one."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache/guest"
DISK_BYTES = 64 << 20

NUMBERS = """
cat > /tmp/load <<'END'
mkdir -p $1/n
i=$(ls $1/n | sort -n | tail -1); i=${i:-0}
while [ ! -e /tmp/stop ]; do
  i=$((i+1))
  echo $i | dd of=$1/n/$i conv=fsync 2>/dev/null
  [ -z "$2" ] || /sqlite3 $1/db "pragma synchronous=extra; insert into t values($i)"
  echo $i > /tmp/count.new; mv /tmp/count.new /tmp/count
done
END
rm -f /tmp/stop; echo 0 > /tmp/count
sh /tmp/load MOUNT DATABASE > /tmp/load.log 2>&1 &
echo $! > /tmp/load.pid
"""
"""Numbered files, each fsynced before the next begins, and if asked a row of a database for each.

`synchronous=extra`: with `full` SQLite does not sync the directory after it has deleted its journal, and a crash may undo
a transaction that was committed.
"""


def guest_module() -> Any:
    """`scripts/guest.py`."""
    spec = importlib.util.spec_from_file_location("guest", ROOT / "scripts/guest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guest"] = module
    spec.loader.exec_module(module)
    return module


def make_disk(path: Path) -> Path:
    """An empty ext4 file system in a raw file."""
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-qF", path], check=True)
    return path


def vm_with_disk(folder: Path, disk: str, *, driver: str = "raw") -> Any:
    """A booted VM whose disk is node `data`, device `drive0`.

    Args:
        folder: a short path for its sockets.
        disk: a file, or an NBD URI.
        driver: of the format.
    """
    drive = f"file={disk},format={driver},if=none,id=drive0,node-name=data"
    return guest_module().Guest(
        CACHE, folder, ["-drive", drive, "-device", "virtio-blk-pci,drive=drive0,id=vd0"]
    )


def vm_with_drive(folder: Path, arguments: str) -> Any:
    """A booted VM with what `fot start` prints for QEMU."""
    return guest_module().Guest(CACHE, folder, shlex.split(arguments))


def halted_vm(folder: Path, *options: str) -> Any:
    """VM1R: a machine without a disk that waits for `cont`."""
    return guest_module().Guest(CACHE, folder, list(options), halted=True)


def write_numbers(vm: Any, mount: str = "/mnt", *, database: bool = False) -> None:
    """Let it write without end to what is mounted."""
    if database:
        vm.run(f"[ -e {mount}/db ] || /sqlite3 {mount}/db 'create table t(i integer primary key)'")
    vm.run(NUMBERS.replace("MOUNT", mount).replace("DATABASE", "yes" if database else ""))


def count(vm: Any) -> int:
    """The last number whose file is fsynced, and whose row is committed."""
    return int(vm.run("cat /tmp/count"))


def goes_on(vm: Any, more: int = 5, seconds: float = 30) -> int:
    """Wait until it has written so many more; returns the count."""
    first, deadline = count(vm), time.monotonic() + seconds
    while (now := count(vm)) < first + more:
        assert time.monotonic() < deadline, f"the guest stands at {now}: {vm.run('cat /tmp/load.log')}"
        time.sleep(0.05)
    return now


def stop_writing(vm: Any) -> int:
    """Let it finish what it writes; returns the last number."""
    vm.run("touch /tmp/stop; while kill -0 $(cat /tmp/load.pid) 2>/dev/null; do sleep 0.1; done")
    return count(vm)


@dataclass(frozen=True, slots=True)
class Found:
    """What a recovered file system holds."""

    files: list[int]
    rows: list[int] | None
    """None: there was no database to look at."""
    integrity: str

    @property
    def last(self) -> int:
        """Of the files, which have no gap."""
        assert self.files == list(range(1, len(self.files) + 1)), f"not a prefix: {self.files}"
        return len(self.files)


LOOK = """
i=0; until [ -e /sys/block/vda ] || [ $i = 100 ]; do i=$((i+1)); sleep 0.1; done
mkdir -p /mnt/r
mount -t ext4 /dev/vda /mnt/r || exit 1
for f in /mnt/r/n/*; do [ -s $f ] && [ "$(cat $f)" = "${f##*/}" ] && echo "file ${f##*/}"; done
[ -e /mnt/r/db ] || exit 0
/sqlite3 /mnt/r/db 'pragma integrity_check' | sed 's/^/integrity /'
/sqlite3 /mnt/r/db 'select i from t order by i' | sed 's/^/row /'
"""


def look(vm: Any) -> Found:
    """Mount what the VM has got, which replays its journal, and read it."""
    lines = [line.split(maxsplit=1) for line in vm.run(LOOK).splitlines() if " " in line]
    files = sorted(int(value) for kind, value in lines if kind == "file")
    rows = [int(value) for kind, value in lines if kind == "row"]
    checks = [value for kind, value in lines if kind == "integrity"]
    return Found(files, rows if checks else None, "; ".join(checks))
