"""Single files from a point: the commands of docs/restore.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

PAGE = Path(__file__).resolve().parents[2] / "docs/restore.md"
DISK_BYTES = 32 << 20


def _open_tests(stack: Stack) -> list[str]:
    return [fot["fot"] for fot in stack.run("fot", "list")["fots"] if fot["volume"] == "files"]


@pytest.fixture
def disk(folder: Path) -> Iterator[StorageDaemon]:
    """A storage daemon on a disk with files."""
    tree = folder / "tree"
    (tree / "www").mkdir(parents=True)
    (tree / "etc-hosts").write_text("127.0.0.1 before\n")
    (tree / "www/index.html").write_text("<p>before</p>\n")
    (folder / "vm").mkdir()
    with (folder / "vm/disk0.raw").open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-qF", "-d", tree, folder / "vm/disk0.raw"], check=True)
    daemon = StorageDaemon(folder / "vm", [DISK_BYTES])
    yield daemon
    daemon.stop()


def test_the_documented_commands(stack: Stack, disk: StorageDaemon, folder: Path) -> None:
    stack.protect("files", disk.qmp, "disk0")
    stack.run("checkpoint", "create", "files-before", "--volume", "files")
    # Everything is lost after that.
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 255 0 32M", disk.uri()], check=True, capture_output=True
    )
    tested = PAGE.read_text().partition("## Not tested here")[0]
    blocks = re.findall(r"```sh\n(.*?)```", tested, re.DOTALL)
    assert len(blocks) == 4
    script = "set -ex\n" + "\n".join(blocks)
    script = script.replace("VOLUME POINT", "files --checkpoint files-before")
    work = folder / "work"
    work.mkdir()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "REPHUB_STATE_DIR": str(stack.state_dir),
    }
    done = subprocess.run(
        ["sh", "-c", script], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "restored").read_text() == (work / "restored-by-fuse").read_text() == "127.0.0.1 before\n"
    assert (work / "www/index.html").read_text() == "<p>before</p>\n"
    assert "etc-hosts" in done.stdout
    assert _open_tests(stack) == []
    stack.run("unprotect", "files", "--purge")
