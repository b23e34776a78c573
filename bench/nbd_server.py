"""How many writes per second the NBD server takes when its handler does nothing, next to nbdkit's memory plugin.

    .venv/bin/python bench/nbd_server.py [--seconds 3] [--rounds 3] [--no-uvloop]

Both servers run as child processes behind unix sockets and take turns, so that a busy machine disturbs both; the ratio
is what counts. fio's nbd engine is the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from rephub.core.nbd.export import Connection, ExportInfo, Request
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import unix_uri

SIZE_BYTES = 1 << 30
CASES = (("4 KiB depth 1", "4k", 1), ("4 KiB depth 32", "4k", 32), ("64 KiB depth 8", "64k", 8))


class DoNothing:
    """Answers every write at once."""

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        """Answer all."""
        for request in requests:
            connection.reply(request.cookie)

    def on_close(self, connection: Connection, exc: Exception | None) -> None:
        """Nothing to do."""


async def serve(path: Path) -> None:
    """Serve until SIGTERM."""
    info = ExportInfo("bench", SIZE_BYTES)
    server = NbdServer({"bench": (info, DoNothing())})
    await server.listen_unix(path)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.close()


def fio(uri: str, block: str, depth: int, seconds: float) -> float:
    """Writes per second."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", f"--bs={block}"]
    command += [f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--size=1g", "--thread"]
    command += ["--output-format=json", "--norandommap", "--randrepeat=1"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    document = json.loads(found.stdout[found.stdout.index("{") :])
    return float(document["jobs"][0]["write"]["iops"])


def wait_for(path: Path) -> None:
    """Wait until a server made its socket."""
    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-uvloop", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        runner = (
            asyncio.Runner() if arguments.no_uvloop else asyncio.Runner(loop_factory=uvloop.new_event_loop)
        )
        with runner:
            runner.run(serve(arguments.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "rephub"), Path(folder, "nbdkit")
        own = [sys.executable, __file__, "--serve", str(ours)] + ["--no-uvloop"] * arguments.no_uvloop
        servers = {
            "rephub": subprocess.Popen(own),
            "nbdkit": subprocess.Popen(["nbdkit", "-f", "-U", str(theirs), "memory", "1G"]),
        }
        paths = {"rephub": ours, "nbdkit": theirs}
        try:
            table(servers, paths, arguments.seconds, arguments.rounds)
        finally:
            for process in servers.values():
                process.terminate()
                process.wait()


def table(
    servers: dict[str, subprocess.Popen[bytes]], paths: dict[str, Path], seconds: float, rounds: int
) -> None:
    """Measure and print."""
    for path in paths.values():
        wait_for(path)
    print(f"{'':16} {'rephub':>10} {'nbdkit':>10} {'ratio':>7} {'rephub µs CPU':>14} {'nbdkit µs CPU':>14}")
    for title, block, depth in CASES:
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, process in servers.items():
                before = cpu_seconds(process.pid)
                rate = fio(unix_uri(paths[name], "bench"), block, depth, seconds)
                rates[name].append(rate)
                costs[name].append((cpu_seconds(process.pid) - before) / (rate * seconds) * 1e6)
        a, b = (statistics.median(rates[name]) for name in servers)
        cost_a, cost_b = (statistics.median(costs[name]) for name in servers)
        print(f"{title:16} {a:10,.0f} {b:10,.0f} {a / b:7.2f} {cost_a:14.1f} {cost_b:14.1f}", flush=True)


if __name__ == "__main__":
    main()
