"""What it costs a guest that its protection is watched: samples, the hub's feed and the monitor, against none of them.

CPU time first, of stacks side by side. Under load a broker's figure differs by more from that of another broker; so they have
nothing else to do, and what looking into blocks takes at its limit is measured alone and added. Where the cores are what
limits, writes get fewer by that share. Then how many writes: two stacks take turns of seconds, and the one whose turn
it is not stands still (SIGSTOP). Rounds differ by far more than what watching costs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import psutil

from bench.guest import random_writes
from bench.harness import Figure, Run, median
from bench.rig import GIB, KIB, MIB, Rig, fio, rig
from qsd import StorageDaemon
from rephub.agent.sampling import BLOCK_BYTES, LOOKS_PER_SECOND_MAX, entropy_bits, packed_part
from rephub.cli.part_spec import STOP_ORDER

SECTION = "what watching costs, 4 KiB"
SIZE = 1 * GIB
UNWATCHED = {"REPHUB_SAMPLES__PERIOD_SECONDS": "0", "REPHUB_AGENT__SAMPLING": "false"}
DEPTHS = (1, 32)
TURN_SECONDS = 2.0
REST_SECONDS = 1.0
"""After a stack goes on, before it counts: what waited is done by then. In all far below what makes a part be given up."""

CPU_ROUNDS, CPU_SECONDS = 5, 15
SETTLE_SECONDS = 5.0


class _Stack:
    def __init__(self, one: Rig) -> None:
        self.disk: StorageDaemon = one.protect("vm1", SIZE)
        fio(self.disk.uri(), "write", 1 * MIB, 4, size=SIZE)
        fio(self.disk.uri(), "randwrite", 4 * KIB, 32, time_based=1, runtime="5s", size=SIZE)
        one.wait_acked("vm1")
        parts = {part["kind"]: part["pid"] for part in one.stack.run("status")["parts"]}
        self._supervisor = psutil.Process(parts["supervisor"])
        self.processes: list[psutil.Process] = []
        for kind in STOP_ORDER:
            if parts.get(kind):
                process = psutil.Process(parts[kind])
                self.processes += [process, *process.children(recursive=True)]

    def suspend(self) -> None:
        """Stand still; the supervisor first, which would miss the others."""
        for process in (self._supervisor, *self.processes):
            process.suspend()

    def resume(self) -> None:
        """Go on, the broker first."""
        for process in (*reversed(self.processes), self._supervisor):
            process.resume()

    def iops(self, depth: int) -> float:
        """Of one turn."""
        return float(random_writes(self.disk, 4 * KIB, depth, TURN_SECONDS)["iops"])

    def cpu_seconds(self) -> float:
        """Of all parts since they started."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def measure(run: Run) -> None:
    """CPU time side by side, then throughput in turns."""
    with rig() as first, rig("--no-monitor", **UNWATCHED) as second:
        watched, unwatched = _Stack(first), _Stack(second)
        with rig("--no-monitor") as third:
            stacks = (watched, _Stack(third), unwatched)
            time.sleep(SETTLE_SECONDS)
            spent = [_cpu_shares(stacks) for _ in range(1 if run.quick else CPU_ROUNDS)]
        looks = _looks_share()
        for what, at in (("samples", 1), ("samples, and the monitor on the same machine", 0)):
            more = [shares[at] - shares[2] + looks for shares in spent]
            run.add(Figure(
                SECTION, f"CPU time of {what}, of all", median(more), "%", "limit", 2.0, 1.0, less_is_better=True,
                samples=more,
            ))  # fmt: skip
        unwatched.suspend()
        try:
            for depth in DEPTHS:
                with_it, without = _in_turns(watched, unwatched, depth, 3 if run.quick else 12)
                run.add(Figure(
                    SECTION, f"writes with both, depth {depth}", median(with_it), "writes/s", "without", median(without),
                    samples=with_it,
                ))  # fmt: skip
        finally:
            unwatched.resume()


def _in_turns(watched: _Stack, unwatched: _Stack, depth: int, pairs: int) -> tuple[list[float], list[float]]:
    """Begins and ends with the unwatched one standing still."""
    with_it, without = [], []
    for _ in range(pairs):
        with_it.append(watched.iops(depth))
        _change(watched, unwatched)
        without.append(unwatched.iops(depth))
        _change(unwatched, watched)
    return with_it, without


def _change(stops: _Stack, goes_on: _Stack) -> None:
    stops.suspend()
    goes_on.resume()
    time.sleep(REST_SECONDS)


def _cpu_shares(stacks: Sequence[_Stack]) -> list[float]:
    """CPU time of each stack, in percent of what all cores have."""
    began, before = time.monotonic(), [one.cpu_seconds() for one in stacks]
    time.sleep(CPU_SECONDS)
    all_seconds = (time.monotonic() - began) * (psutil.cpu_count() or 1)
    return [100 * (one.cpu_seconds() - then) / all_seconds for one, then in zip(stacks, before, strict=True)]


def _looks_share() -> float:
    """CPU time of looking into as many of a guest's blocks as are looked into at most, in percent of what all cores have."""
    blocks = [os.urandom(BLOCK_BYTES), bytes(range(64)) * (BLOCK_BYTES // 64)]
    samples = []
    for number in range(2000):
        began = time.perf_counter()
        entropy_bits(blocks[number % 2]), packed_part(blocks[number % 2])
        samples.append(time.perf_counter() - began)
    return 100 * LOOKS_PER_SECOND_MAX * median(samples) / (psutil.cpu_count() or 1)
