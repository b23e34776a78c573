"""The product under load: a stack of its own, protected disks, and the tools that measure them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsd import StorageDaemon
from rephub.core.names import journal_topic
from rephub.infra.kafka.broker import LIBS
from stack import Stack, bootstrap, events

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Rig:
    """One stack and what runs beside it; use `rig()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack(folder / "state")
        self._daemons: list[StorageDaemon] = []

    def protect(self, volume: str, size_bytes: int) -> StorageDaemon:
        """A disk of that size, protected."""
        qsd = StorageDaemon(self.folder / volume, [size_bytes])
        self._daemons.append(qsd)
        self.stack.protect(volume, qsd.qmp, "disk0", "--history", "24h,100GiB")
        return qsd

    def close(self) -> None:
        """Stop all."""
        self.stack.down()
        for qsd in self._daemons:
            qsd.process.kill()
            qsd.process.wait()

    def event_at(self, kind: str, **fields: Any) -> int:
        """When the newest event of a kind with these fields was written, microseconds."""
        return int(
            next(
                event.at
                for event in reversed(events(self.stack))
                if type(event).__name__ == kind
                and all(getattr(event, key) == value for key, value in fields.items())
            )
        )

    def caught_up(self, volume: str) -> dict[str, Any]:
        """Wait until the diskbox has read all; the volume's status."""
        before = -1
        while True:
            status = self.stack.status(volume)
            if status["head_offset"] == before and not status.get("unacked"):
                return status
            before = status["head_offset"]
            time.sleep(1.0)

    def diskbox_pid(self) -> int:
        """Of the diskbox."""
        (part,) = [part for part in self.stack.run("status")["parts"] if part["kind"] == "diskbox"]
        return int(part["pid"] or 0)

    def consumer_mb_per_second(self, volume: str, messages: int) -> float:
        """Kafka's own ConsumerPerformance on the volume's topic, in MB/s (10^6)."""
        done = subprocess.run(
            [
                "java", "-Xmx512m", "-cp", f"{LIBS}/*", "org.apache.kafka.tools.ConsumerPerformance",
                "--bootstrap-server", bootstrap(self.stack), "--topic", journal_topic(volume),
                "--messages", str(messages), "--timeout", "30000", "--hide-header",
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        line = next(line for line in reversed(done.stdout.splitlines()) if line.count(",") >= 9)
        cells = [cell.strip() for cell in line.split(",")]
        # data.consumed.in.MB is in MiB; fetch.time.ms leaves out the join of the group.
        return float(cells[2]) * MIB / 1e6 / (float(cells[7]) / 1e3)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """A running stack in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rhb", ignore_cleanup_errors=True) as name:
        found = Rig(Path(name))
        try:
            found.stack.run("up", "--detach")
            yield found
        finally:
            found.close()


def fio(uri: str, kind: str, block_bytes: int, depth: int, **options: Any) -> dict[str, Any]:
    """One fio job over NBD; its result.

    Args:
        uri: of the export.
        kind: randread, randwrite, …
        block_bytes: of a request.
        depth: under way at a time.
        **options: of fio; `_` stays.
    """
    arguments = {
        "name": "job", "ioengine": "nbd", "uri": uri, "rw": kind, "bs": block_bytes, "iodepth": depth,
        "output-format": "json", "randrepeat": 0, "norandommap": 1, "refill_buffers": 1, **options,
    }  # fmt: skip
    done = subprocess.run(
        ["fio", *(f"--{name}={value}" for name, value in arguments.items())],
        capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    document = json.loads(re.sub(r"^[^{]*", "", done.stdout, count=1))
    job: dict[str, Any] = document["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']} at {uri}")
    return job


def reads_per_second(uri: str, seconds: float, depth: int = 32) -> float:
    """Random reads of 4 KiB."""
    job = fio(uri, "randread", 4 * KIB, depth, time_based=1, runtime=f"{seconds:g}s")
    return float(job["read"]["iops"])


@contextlib.contextmanager
def qemu_nbd(path: Path, folder: Path) -> Iterator[str]:
    """A raw file served by qemu-nbd; its URI."""
    socket = folder / "qemu-nbd"
    process = subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "raw", "-k", socket, "-e", "8", "-t", "-x", "v", path]
    )
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield f"nbd+unix:///v?socket={socket}"
    finally:
        process.terminate()
        process.wait()
