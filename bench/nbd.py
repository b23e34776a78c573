"""The NBD server alone: how many writes a second it takes when its handler does nothing, next to nbdkit's memory plugin."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import uvloop

from bench.harness import Figure, Run, alternating, median
from bench.rig import GIB, KIB, fio, scratch_folder, wait_for
from rephub.core.nbd.export import Connection, ExportInfo, Request
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import unix_uri

SERVER = "NBD server alone"
SIZE = 1 * GIB


class DoNothing:
    """Answers every write at once."""

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        """Answer all."""
        for request in requests:
            connection.reply(request.cookie)

    def on_close(self, connection: Connection, exc: Exception | None) -> None:
        """Nothing to do."""


def measure(run: Run) -> None:
    """Ours and nbdkit's behind unix sockets, in turns."""
    with tempfile.TemporaryDirectory(prefix="rhn", dir=scratch_folder()) as folder:
        ours, theirs = Path(folder, "rephub"), Path(folder, "nbdkit")
        servers = [
            subprocess.Popen([sys.executable, "-m", "bench.nbd", str(ours)]),
            subprocess.Popen(["nbdkit", "-f", "-U", str(theirs), "memory", str(SIZE)]),
        ]
        try:
            for path in (ours, theirs):
                wait_for(path)
            for block, depth in ((4 * KIB, 1), (4 * KIB, 32), (64 * KIB, 8)):
                mine, peer = alternating(
                    run.rounds, *(partial(_writes_per_second, path, block, depth) for path in (ours, theirs))
                )
                run.add(Figure(
                    SERVER, f"{block // KIB} KiB, depth {depth}", median(mine), "writes/s", "nbdkit memory", median(peer),
                    samples=mine,
                ))  # fmt: skip
        finally:
            for server in servers:
                server.terminate()
                server.wait()


def _writes_per_second(path: Path, block: int, depth: int) -> float:
    job = fio(unix_uri(path, ""), "randwrite", block, depth, time_based=1, runtime="1s", size=SIZE)
    return float(job["write"]["iops"])


async def _serve(path: Path) -> None:
    """Serve until SIGTERM."""
    server = NbdServer({"": (ExportInfo("", SIZE), DoNothing())})
    await server.listen_unix(path)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.close()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
