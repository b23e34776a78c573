"""What looking into written blocks costs (`agent.sampling`): guest's writes a second and the agent's CPU of each, with and without in turn.

.venv/bin/python tests/measure/sampling.py
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.rig import GIB, KIB, MIB, fio, scratch_folder
from qsd import StorageDaemon
from rephub.agent.queue import Kind, Queued
from rephub.agent.sampling import BLOCK_BYTES, GROUP_BLOCKS, BlockSampler
from rephub.agent.workers import ALLOCATOR

ROUNDS, SECONDS = 4, 2
LOADS = ((4 * KIB, 1), (4 * KIB, 32), (MIB, 4))


def alone() -> None:
    """The sampler by itself: an event of 4 KiB, and a look into a block."""
    sampler = BlockSampler(GIB)
    data = Path("/dev/urandom").open("rb").read(BLOCK_BYTES)  # noqa: SIM115
    events = [Queued(Kind.WRITE, 1, 0, number * BLOCK_BYTES, BLOCK_BYTES, data) for number in range(100_000)]
    began = time.process_time()
    for number, event in enumerate(events):
        sampler.note(event, number / 10_000)
    noted = (time.process_time() - began) / len(events)
    sampler, looks = BlockSampler(GIB), []
    event = Queued(Kind.WRITE, 1, 0, 0, MIB, data * 256)
    for number in range(1000):
        sampler.note(event, number)
        began = time.process_time()
        while sampler.look():
            pass
        looks.append((time.process_time() - began) / (MIB // BLOCK_BYTES // GROUP_BLOCKS))
    print(
        f"alone: {noted * 1e6:.2f} µs an event of 4 KiB, {statistics.median(looks) * 1e6:.0f} µs a look",
        flush=True,
    )


@contextlib.contextmanager
def captured(qsd: StorageDaemon, *, sampling: bool) -> Iterator[psutil.Process]:
    """The agent's data path behind the disk's mirror, synced."""
    command = [sys.executable, Path(__file__).parent / "captured.py", qsd.folder, str(GIB)]
    command += [] if sampling else ["no-sampling"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ALLOCATOR)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def main() -> None:
    """A disk and a capture for each turn; only the journal is in memory."""
    alone()
    rates: dict[tuple[int, int, bool], list[float]] = {}
    cpus: dict[tuple[int, int, bool], list[float]] = {}
    for number in range(ROUNDS):
        for sampling in (True, False) if number % 2 else (False, True):
            with tempfile.TemporaryDirectory(prefix="rhs", dir=scratch_folder()) as folder:
                qsd = StorageDaemon(Path(folder) / "q", [GIB])
                try:
                    with captured(qsd, sampling=sampling) as capture:
                        for block, depth in LOADS:
                            cpu = sum(capture.cpu_times()[:2])
                            timed = {"size": GIB, "time_based": 1, "runtime": f"{SECONDS}s"}
                            job = fio(qsd.uri(), "randwrite", block, depth, **timed)["write"]
                            spent = sum(capture.cpu_times()[:2]) - cpu
                            rates.setdefault((block, depth, sampling), []).append(job["iops"])
                            cpus.setdefault((block, depth, sampling), []).append(
                                spent / job["total_ios"] * 1e6
                            )
                finally:
                    qsd.stop()
    for block, depth in LOADS:
        said = []
        for sampling in (True, False):
            rate, cpu_us = rates[block, depth, sampling], cpus[block, depth, sampling]
            said.append(
                f"{'with' if sampling else 'without'} {statistics.median(rate):,.0f} writes/s "
                f"({min(rate):,.0f}–{max(rate):,.0f}), {statistics.median(cpu_us):,.1f} µs ({min(cpu_us):,.1f}–{max(cpu_us):,.1f})"
            )
        ratio = statistics.median(rates[block, depth, True]) / statistics.median(rates[block, depth, False])
        print(f"{block // KIB} KiB, depth {depth}: {'; '.join(said)}; ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
