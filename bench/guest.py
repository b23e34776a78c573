"""The guest's side: what protection costs a running guest, and how much it can write before the journal holds it up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Figure, Run, alternating, median
from bench.peers import (
    closed_loop,
    mirrored_into_null,
    mirrored_into_ours,
    producer_performance,
    producing,
    unprotected,
)
from bench.rig import GIB, KIB, MIB, Rig, fio, rig, scratch_folder, write_at_random
from qsd import StorageDaemon
from rephub.agent.delays import BOUNDS_SECONDS
from rephub.core.config import Settings
from stack import bootstrap

WRITES = "guest writes, async"
BURSTS = "bursts and sustained writes, async"
JOURNAL = "policy journal, 4 KiB"
COSTS = "recovery point and costs"
SIZE = 1 * GIB
LINGER_MS = Settings().agent.linger_ms
NULL = "mirror into null"
OURS = "mirror into our NBD server, doing nothing"
BESIDE = "mirror into null beside a producer"
UNPROTECTED = "no mirror"
IN_TURN = "mirror into null, then"

Result = dict[str, Any]


def measure(run: Run) -> None:
    """All figures of the guest's side."""
    seconds = 1.0 if run.quick else 2.0
    with ExitStack() as stack:
        found = stack.enter_context(rig())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rhp", dir=scratch_folder())))
        ours = found.protect("vm1", SIZE)
        null = stack.enter_context(mirrored_into_null(folder / "null", SIZE))
        disks = {
            "protected": ours,
            NULL: null,
            OURS: stack.enter_context(mirrored_into_ours(folder / "ours", SIZE)),
            UNPROTECTED: stack.enter_context(unprotected(folder / "bare", SIZE)),
        }
        _warm(*disks.values())
        unhindered = _writes(run, seconds, disks)
        for depth in (1, 32):
            _writes_beside(found, run, folder, depth, ours, null, seconds)
        _recovery_point(found, run, ours)
        _bursts(found, run, ours, null)
        _sustained(found, run, folder, ours, seconds, unhindered)
        _journal(found, run, null, seconds)


def _warm(*disks: StorageDaemon) -> None:
    """Every block once, and a JVM that has compiled what is hot."""
    for disk in disks:
        fio(disk.uri(), "write", 1 * MIB, 4, size=SIZE)
    fio(disks[0].uri(), "randwrite", 4 * KIB, 32, time_based=1, runtime="8s", size=SIZE)


def random_writes(disk: StorageDaemon, block: int, depth: int, seconds: float, **options: Any) -> Result:
    """The `write` part of fio's answer."""
    job = fio(
        disk.uri(), "randwrite", block, depth, time_based=1, runtime=f"{seconds:g}s", size=SIZE, **options
    )
    result: Result = job["write"]
    return result


def _iops(result: Result) -> float:
    return float(result["iops"])


def _iops_of(disk: StorageDaemon, depth: int, seconds: float) -> float:
    return _iops(random_writes(disk, 4 * KIB, depth, seconds))


def _p99_us(result: Result) -> float:
    return float(result["clat_ns"]["percentile"]["99.000000"]) / 1e3


def _all(rounds: int, *measures: Callable[[], Result]) -> list[list[Result]]:
    """As `alternating`, of whole results."""
    found: list[list[Result]] = [[] for _ in measures]
    for _ in range(rounds):
        for results, one in zip(found, measures, strict=True):
            results.append(one())
            time.sleep(0.3)  # what was captured is published and read: it shall not disturb the next
    return found


def _in_turn(*per_second: float) -> float:
    """What is done a second if each takes its time after the other, or if they need the same cores."""
    return 1 / sum(1 / one for one in per_second)


def _writes(run: Run, seconds: float, disks: dict[str, StorageDaemon]) -> float:
    """Returns writes a second at depth 32, mirrored into null."""
    for depth in (1, 32):
        results = _all(
            run.rounds, *(partial(random_writes, disk, 4 * KIB, depth, seconds) for disk in disks.values())
        )
        of = dict(zip(disks, results, strict=True))
        values = {name: median([_iops(result) for result in found]) for name, found in of.items()}
        tails = {name: median([_p99_us(result) for result in found]) for name, found in of.items()}
        what = f"4 KiB, depth {depth}"
        samples = [_iops(result) for result in of["protected"]]
        run.add(
            Figure(WRITES, what, values["protected"], "writes/s", NULL, values[NULL], 0.8, samples=samples)
        )
        run.add(Figure(
            WRITES, f"{what}: p99 latency", tails["protected"], "µs", NULL, tails[NULL], 1.2, less_is_better=True,
        ))  # fmt: skip
        for peer in (OURS, UNPROTECTED):
            run.add(
                Figure(WRITES, f"{what}: against {peer}", values["protected"], "writes/s", peer, values[peer])
            )
        run.series[f"latency depth {depth}"] = {name: _percentiles(found) for name, found in of.items()}
    if run.quick:
        return values[NULL]
    run.series["writes/s over depth"] = {
        name: {depth: _iops(random_writes(disk, 4 * KIB, depth, 1.0)) for depth in (1, 2, 4, 8, 16, 32)}
        for name, disk in disks.items()
    }
    run.series["MB/s over size"] = {
        name: {
            size: _iops(random_writes(disk, size * KIB, 4, 1.0)) * size * KIB / 1e6
            for size in (4, 16, 64, 256, 1024)
        }
        for name, disk in disks.items()
    }
    return values[NULL]


def _writes_beside(
    found: Rig,
    run: Run,
    folder: Path,
    depth: int,
    ours: StorageDaemon,
    null: StorageDaemon,
    seconds: float,
) -> None:
    """What is left of the peer's speed while Kafka's own producer journals as many writes on the same cores."""
    mine = [random_writes(ours, 4 * KIB, depth, seconds) for _ in range(max(1, run.rounds - 2))]
    found.wait_acked("vm1")
    rate = median([_iops(result) for result in mine])
    with producing(bootstrap(found.stack), folder, 4 * KIB, rate, LINGER_MS, len(mine) * (seconds + 1) + 1):
        theirs = [random_writes(null, 4 * KIB, depth, seconds) for _ in mine]
    what = f"4 KiB, depth {depth}"
    run.add(Figure(
        WRITES, f"{what}: of what the cores leave", rate, "writes/s", BESIDE, median([_iops(one) for one in theirs]), 0.8,
        samples=[_iops(result) for result in mine],
    ))  # fmt: skip
    run.add(Figure(
        WRITES, f"{what}: p99 latency, of what the cores leave", median([_p99_us(one) for one in mine]), "µs", BESIDE,
        median([_p99_us(one) for one in theirs]), 1.2, less_is_better=True,
    ))  # fmt: skip


def _percentiles(results: list[Result]) -> dict[str, float]:
    """Percentile → µs, medians over the rounds."""
    names = results[0]["clat_ns"]["percentile"]
    return {
        f"{float(name):g}": median([result["clat_ns"]["percentile"][name] / 1e3 for result in results])
        for name in names
    }


def _bursts(found: Rig, run: Run, ours: StorageDaemon, null: StorageDaemon) -> None:
    """64 MiB at once, a quarter of the buffer; the journal has taken the one before."""

    def burst(disk: StorageDaemon, block: int, depth: int) -> float:
        found.wait_acked("vm1")
        return float(write_at_random(disk.uri(), block, depth, 64 * MIB // block, SIZE)["bw_bytes"]) / 1e6

    for block, depth in ((64 * KIB, 8), (1 * MIB, 4)):
        mine, theirs = alternating(
            2 * run.rounds, partial(burst, ours, block, depth), partial(burst, null, block, depth)
        )
        run.add(Figure(
            BURSTS, f"burst of 64 MiB in writes of {block // KIB} KiB, depth {depth}", median(mine), "MB/s", NULL,
            median(theirs), 0.9, samples=mine,
        ))  # fmt: skip


def _sustained(
    found: Rig, run: Run, folder: Path, ours: StorageDaemon, seconds: float, unhindered: float
) -> None:
    """More than the buffer holds: the journal's pace. Also events a second and the CPU of each.

    Args:
        found: where.
        run: takes the figures.
        folder: for the peer's payload.
        ours: the disk.
        seconds: of each sample.
        unhindered: writes of 4 KiB a second, mirrored into null.
    """
    epoch = found.stack.status("vm1")["epoch"]

    def guest(block: int, depth: int, longest: list[float], cpu: list[dict[str, float]]) -> float:
        before, acked = found.cpu_seconds(), found.stack.status("vm1")["acked_offset"]
        began = time.monotonic()
        result = random_writes(ours, block, depth, seconds)
        status = found.wait_acked("vm1")
        took = time.monotonic() - began
        longest.append(result["clat_ns"]["max"] / 1e6)
        events = status["acked_offset"] - acked
        after = found.cpu_seconds()
        cpu.append({kind: (after[kind] - before[kind]) / events * 1e6 for kind in after})
        return float(events / took)

    loads = ((4 * KIB, 32), (64 * KIB, 8), (1 * MIB, 4))
    for block, depth in loads[: 2 if run.quick else 3]:
        longest: list[float] = []
        cpu: list[dict[str, float]] = []
        mine, theirs = alternating(
            max(1, run.rounds - 2),
            partial(guest, block, depth, longest, cpu),
            partial(producer_performance, bootstrap(found.stack), folder, block, seconds),
        )
        run.add(Figure(
            BURSTS, f"sustained, {block // KIB} KiB, guest to acked in Kafka", median(mine), "events/s",
            "ProducerPerformance", median(theirs), 0.8, samples=mine,
        ))  # fmt: skip
        if block == 4 * KIB:
            run.add(Figure(
                BURSTS, "sustained, 4 KiB, against both in turn", median(mine), "events/s", f"{IN_TURN} ProducerPerformance",
                _in_turn(unhindered, median(theirs)), 0.8, samples=mine,
            ))  # fmt: skip
        run.add(Figure(BURSTS, f"sustained, {block // KIB} KiB: longest write", max(longest), "ms"))
        for kind in cpu[0]:
            value = median([one[kind] for one in cpu])
            limit = 40.0 if kind == "agent" and block == 4 * KIB else None
            run.add(Figure(
                COSTS, f"{kind}'s CPU of a write of {block // KIB} KiB", value, "µs", "limit" if limit else "", limit,
                limit and 1.0, less_is_better=True,
            ))  # fmt: skip
        if found.stack.status("vm1")["epoch"] != epoch:
            run.notes.append(f"a gap was opened under sustained writes of {block // KIB} KiB")


def _recovery_point(found: Rig, run: Run, ours: StorageDaemon) -> None:
    """5,000 writes a second: from the answer to Kafka's ack."""
    before = found.ack_delays("vm1")
    random_writes(ours, 4 * KIB, 8, 3.0 if run.quick else 10.0, rate_iops=5000)
    found.wait_acked("vm1")
    counts = [after - old for after, old in zip(found.ack_delays("vm1"), before, strict=True)]
    total = counts[-1]
    bounds = [*BOUNDS_SECONDS, float("inf")]
    for share in (0.5, 0.99):
        bound = next(bound for bound, count in zip(bounds, counts, strict=True) if count >= share * total)
        run.add(Figure(
            COSTS, f"RPO at 5,000 writes/s of 4 KiB, {share:.0%} at most", bound * 1000, "ms", "limit", 100.0, 1.0,
            less_is_better=True,
        ))  # fmt: skip


def _journal(found: Rig, run: Run, null: StorageDaemon, seconds: float) -> None:
    """Answered after Kafka's ack, against aiokafka alone without a disk, a mirror and NBD in front of it."""
    disk = found.protect("vm2", SIZE, "--ack", "journal")
    fio(disk.uri(), "write", 1 * MIB, 4, size=SIZE)
    for depth in (1, 32) if run.quick else (1, 8, 32):
        mine, theirs, mirror = alternating(
            run.rounds,
            partial(_iops_of, disk, depth, seconds),
            partial(closed_loop, bootstrap(found.stack), depth, 4 * KIB, seconds),
            partial(_iops_of, null, depth, seconds / 2),
        )
        run.add(Figure(
            JOURNAL, f"depth {depth}", median(mine), "writes/s", "aiokafka alone", median(theirs), 0.8, samples=mine,
        ))  # fmt: skip
        run.add(Figure(
            JOURNAL, f"depth {depth}, against both in turn", median(mine), "writes/s", f"{IN_TURN} aiokafka",
            _in_turn(median(mirror), median(theirs)), 0.8, samples=mine,
        ))  # fmt: skip
