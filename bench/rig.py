"""The product under load: a stack of its own, protected disks, and the tools that measure them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from qsd import StorageDaemon
from rephub.core.names import journal_topic
from rephub.infra.kafka.broker import LIBS
from stack import Stack, bootstrap, events

SCRATCH_BYTES = 16 << 30
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Rig:
    """One stack and what runs beside it; use `rig()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack(folder / "state")
        self._daemons: list[StorageDaemon] = []

    def protect(self, volume: str, size_bytes: int, *options: str) -> StorageDaemon:
        """A disk of that size, protected."""
        qsd = StorageDaemon(self.folder / volume, [size_bytes])
        self._daemons.append(qsd)
        self.stack.protect(volume, qsd.qmp, "disk0", "--history", "24h,100GiB", *options)
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

    def wait_acked(self, volume: str) -> dict[str, Any]:
        """Wait until Kafka has all that was captured; the volume's status."""
        while True:
            status = self.stack.status(volume)
            if not status["lag_bytes"]:
                return status
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        """The agent's data path processes."""
        return psutil.Process(self.pid("agent")).children()

    def cpu_seconds(self) -> dict[str, float]:
        """Of the agent's workers, the broker and the diskbox since they started."""
        of = {"agent": self.workers()} | {
            kind: [psutil.Process(self.pid(kind))] for kind in ("broker", "diskbox")
        }
        return {kind: sum(sum(process.cpu_times()[:2]) for process in found) for kind, found in of.items()}

    def ack_delays(self, volume: str) -> list[float]:
        """Writes by the time from capture to ack, cumulative, as the agent's `/metrics` has them."""
        text = ask(f"{self.daemon_url('agent')}/metrics")
        pattern = rf'rephub_agent_ack_delay_seconds_bucket{{[^}}]*volume="{volume}"[^}}]*}} (\S+)'
        return [float(count) for count in re.findall(pattern, text)]

    def daemon_url(self, kind: str) -> str:
        """Of a daemon's status server."""
        ports = json.loads((self.stack.state_dir / "ports.json").read_text())
        return f"http://127.0.0.1:{ports[kind]}"

    def diskbox_status(self, volume: str) -> dict[str, Any]:
        """What the diskbox says of a volume."""
        document = json.loads(ask(f"{self.daemon_url('diskbox')}/status"))
        found: dict[str, Any] = document["volumes"][volume]
        return found

    def pid(self, kind: str) -> int:
        """Of a daemon."""
        (part,) = [part for part in self.stack.run("status")["parts"] if part["kind"] == kind]
        return int(part["pid"] or 0)

    def diskbox_pid(self) -> int:
        """Of the diskbox."""
        return self.pid("diskbox")

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


def wait_for(path: Path) -> None:
    """Wait until a server has made its socket."""
    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} is not there")
        time.sleep(0.01)


def ask(url: str) -> str:
    """What a daemon's status server answers."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - always http
        text: str = answer.read().decode()
    return text


def scratch_folder() -> str | None:
    """Memory, where there is enough: a disk that others use disturbs whatever is measured; None: the usual place."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    free = psutil.disk_usage(str(memory)).free if memory.is_dir() else 0
    return str(memory) if free >= SCRATCH_BYTES else None


@contextlib.contextmanager
def rig(*options: str, on_disk: bool = False, **settings: str) -> Iterator[Rig]:
    """A running stack in a folder of its own.

    Args:
        *options: of `up`.
        on_disk: in the usual place of temporary files, and not in memory: files in memory cannot be read without a thread.
        **settings: as in the environment: `REPHUB_AGENT__WORKERS="2"`.
    """
    with tempfile.TemporaryDirectory(
        prefix="rhb", dir=None if on_disk else scratch_folder(), ignore_cleanup_errors=True
    ) as name:
        found = Rig(Path(name))
        try:
            os.environ.update(settings)
            try:
                found.stack.run("up", "--detach", *options)
            finally:
                for key in settings:
                    del os.environ[key]
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


def write_at_random(uri: str, block_bytes: int, depth: int, count: int, size_bytes: int) -> dict[str, Any]:
    """So many writes all over a disk; the `write` part of fio's answer.

    `number_ios` alone ends with the first pass over the disk.
    """
    job = fio(uri, "randwrite", block_bytes, depth, io_size=count * block_bytes, size=size_bytes)
    found: dict[str, Any] = job["write"]
    if found["total_ios"] != count:
        raise RuntimeError(f"fio: {found['total_ios']} writes instead of {count}")
    return found


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
        wait_for(socket)
        yield f"nbd+unix:///v?socket={socket}"
    finally:
        process.terminate()
        process.wait()
