"""`rephub fot bisect` on a file system that was damaged by one write among many."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import StorageDaemon
from stack import REPHUB, Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

DISK_BYTES = 16 << 20
FSCK = 'nbdcopy "$REPHUB_FOT_URI" "$0" && e2fsck -fn "$0" >/dev/null 2>&1'


def _open_tests(stack: Stack) -> list[str]:
    return [fot["fot"] for fot in stack.run("fot", "list")["fots"] if fot["volume"] == "broken"]


@pytest.fixture
def disk(folder: Path) -> Iterator[StorageDaemon]:
    """An ext4 file system in a storage daemon."""
    (folder / "vm").mkdir()
    with (folder / "vm/disk0.raw").open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-qF", folder / "vm/disk0.raw"], check=True)
    daemon = StorageDaemon(folder / "vm", [DISK_BYTES])
    yield daemon
    daemon.stop()


def _interrupt(stack: Stack, search: tuple[str, ...]) -> None:
    """Ctrl-C while a probe runs: nothing stays open."""
    command = [REPHUB, "--json", "--state-dir", str(stack.state_dir), *search, "--", "sleep", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    stack.wait_until("a probe runs", lambda: len(_open_tests(stack)) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert _open_tests(stack) == []


def _write(disk: StorageDaemon, start: int, pattern: int) -> None:
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", f"write -P {pattern} {start} 4096", disk.uri()],
        check=True,
        capture_output=True,
    )


def test_the_write_that_broke_it_is_found(stack: Stack, disk: StorageDaemon, folder: Path) -> None:
    stack.protect("broken", disk.qmp, "disk0")
    stack.run("checkpoint", "create", "broken-before", "--volume", "broken")
    free = 12 << 20  # data blocks that no file has: harmless
    for number in range(10):
        _write(disk, free + 4096 * number, number)
    stack.run("checkpoint", "create", "broken-between", "--volume", "broken")
    for number in range(7):
        _write(disk, free + 4096 * number, 50 + number)
    stack.wait_until("everything is acked", lambda: stack.status("broken")["lag_bytes"] == 0)
    last_good = stack.status("broken")["head_offset"]
    _write(disk, 0, 0xFF)  # the superblock
    for number in range(9):
        _write(disk, free + 4096 * number, 90 + number)
    stack.run("checkpoint", "create", "broken-after", "--volume", "broken")
    _write(disk, free, 1)
    stack.wait_until("everything is acked", lambda: stack.status("broken")["lag_bytes"] == 0)
    copy = str(folder / "copy")
    search = (
        "fot",
        "bisect",
        "broken",
        "--good",
        "checkpoint:broken-before",
        "--bad",
        "checkpoint:broken-after",
    )
    found = stack.run(*search, "--", "sh", "-c", FSCK, copy)
    first_bad = found["first_bad"]["offset"]
    assert stack.read_view("broken", "--offset", str(first_bad))[:4096] == b"\xff" * 4096
    assert stack.read_view("broken", "--offset", str(first_bad - 1))[:4096] != b"\xff" * 4096
    assert found["last_good"]["offset"] == first_bad - 1 >= last_good
    assert found["untested"] == []
    assert len(found["probes"]) < 12
    assert _open_tests(stack) == []
    # A point that cannot be tested is passed over; here it is the first bad one that nobody can tell.
    skips = f'[ "$REPHUB_OFFSET" = {first_bad} ] && exit 125; {FSCK}'
    unsure = stack.run(*search, "--read-only", "--", "sh", "-c", skips, copy)
    assert unsure["untested"] == [first_bad]
    assert (unsure["last_good"]["offset"], unsure["first_bad"]["offset"]) == (first_bad - 1, first_bad + 1)
    _interrupt(stack, search)
    # What is not so is said before anything is searched, and nothing stays open.
    wrong = ("fot", "bisect", "broken", "--good", "checkpoint:broken-after", "--bad", "latest")
    assert "is bad" in stack.fails(*wrong, "--", "sh", "-c", FSCK, copy, code=5)["message"]
    assert "cannot run" in stack.fails(*search, "--", "/no/such/program", code=2)["message"]
    assert "the search ends" in stack.fails(*search, "--", "sh", "-c", "kill -9 $$", code=5)["message"]
    assert (
        "did not end"
        in stack.fails(*search, "--probe-timeout", "0.2", "--", "sleep", "60", code=5)["message"]
    )
    stack.fails("fot", "bisect", "broken", "--good", "nonsense", "--bad", "latest", "--", "true", code=2)
    assert _open_tests(stack) == []
    stack.run("unprotect", "broken", "--purge")
