"""QEMU's mirror filter in front of our server, as capture uses it: every write arrives, nothing is ever read."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.nbd.loops import until
from conformance.nbd.running import LOOPS, Running, run, running
from qsd import StorageDaemon
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Connection, ExportInfo, Request
from rephub.core.nbd.server import NbdServer

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SIZE = 32 * MIB


class Capture:
    """Keeps writes in order, answers at once, refuses reads."""

    def __init__(self) -> None:
        self.copy = bytearray(SIZE)
        self.commands: set[int] = set()
        self.reads = 0
        self.closed: list[Exception | None] = []

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        for command, _, cookie, start, length, data in requests:
            self.commands.add(command)
            if command == nbd.CMD_READ:
                self.reads += 1
                connection.reply(cookie, errno.EIO)
                continue
            if command == nbd.CMD_WRITE:
                self.copy[start : start + length] = data
            elif command in {nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM}:
                self.copy[start : start + length] = bytes(length)
            connection.reply(cookie)

    def on_close(self, connection: Connection, exc: Exception | None) -> None:
        self.closed.append(exc)


class Monitor:
    """QMP in its simplest form."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.events: list[dict[str, Any]] = []
        self("qmp_capabilities")

    def __call__(self, execute: str, **arguments: Any) -> Any:
        self._lines.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._lines.flush()
        while "event" in (answer := json.loads(self._lines.readline())):
            self.events.append(answer)
        assert "return" in answer, answer
        return answer["return"]

    def wait_event(self, name: str) -> None:
        while name not in [event["event"] for event in self.events]:
            self.events.append(json.loads(self._lines.readline()))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[StorageDaemon]:
    found = StorageDaemon(short_dir / "q", [SIZE])
    yield found
    found.stop()


@pytest.fixture(params=list(LOOPS))
def capture(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[tuple[Running, Capture]]:
    handler = Capture()
    info = ExportInfo("vol", SIZE)
    with running(
        short_dir / "c",
        request.param,
        make=lambda: NbdServer({"vol": (info, handler)}, one_connection=True),
    ) as found:
        yield found, handler


def attach(monitor: Monitor, path: Path) -> None:
    monitor(
        "blockdev-add",
        **{"driver": "nbd", "node-name": "target", "export": "vol"},
        server={"type": "unix", "path": str(path)},
    )
    monitor(
        "blockdev-mirror",
        **{"job-id": "mirror", "device": "disk0", "target": "target", "sync": "none"},
        **{"copy-mode": "write-blocking", "on-target-error": "report"},
        **{"granularity": 4096, "filter-node-name": "filter"},
    )


def test_every_write_arrives_and_nothing_is_read(
    daemon: StorageDaemon, capture: tuple[Running, Capture]
) -> None:
    server, handler = capture
    monitor = Monitor(daemon.qmp)
    attach(monitor, server.path)
    monitor.wait_event("BLOCK_JOB_READY")
    assert handler.commands <= {nbd.CMD_FLUSH}, "the job itself flushes its target when it gets ready"
    handler.commands.clear()
    assert not server.path.exists(), "one connection, then nobody listens"
    run(
        "qemu-io",
        *("-f", "raw", "-t", "writeback", daemon.uri()),
        *("-c", "write -P 1 0 4M", "-c", "write -P 2 513 7", "-c", "write -P 3 1M 1"),
        *("-c", "write -z 2M 100k", "-c", "write -z -u 3000001 4097", "-c", "discard 8M 1M"),
        *("-c", "write -P 4 4095 8194", "-c", "flush"),
    )
    fio = ["fio", "--name=w", "--ioengine=nbd", f"--uri={daemon.uri()}", "--rw=randwrite", "--thread"]
    fio += ["--iodepth=32", "--bsrange=512-256k", "--bs_unaligned=1", "--size=32M", "--randseed=7"]
    run(*fio, "--buffer_pattern=0xdeadbeef", "--number_ios=1500")
    assert handler.copy == daemon.files[0].read_bytes()
    assert handler.reads == 0
    assert handler.commands >= {nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES}
    assert nbd.CMD_FLUSH not in handler.commands
    monitor("block-job-cancel", device="mirror")
    monitor.wait_event("BLOCK_JOB_COMPLETED")
    monitor("blockdev-del", **{"node-name": "target"})
    server.call(_gone(handler))
    run("qemu-io", "-f", "raw", daemon.uri(), "-c", "write -P 9 0 4k", "-c", "read -P 9 0 4k")
    monitor.close()


def test_the_guest_goes_on_when_the_server_dies(
    daemon: StorageDaemon, capture: tuple[Running, Capture]
) -> None:
    server, _ = capture
    monitor = Monitor(daemon.qmp)
    attach(monitor, server.path)
    monitor.wait_event("BLOCK_JOB_READY")
    server.call(server.server.close())
    run("qemu-io", "-f", "raw", daemon.uri(), "-c", "write -P 9 0 4k", "-c", "read -P 9 0 4k")
    monitor.wait_event("BLOCK_JOB_COMPLETED")
    monitor.close()


async def _gone(handler: Capture) -> None:
    await until(lambda: handler.closed != [])
