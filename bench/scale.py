"""How it grows: more volumes, more workers, more history."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bench.harness import Figure, Run, alternating, median
from bench.rig import GIB, KIB, MIB, Rig, fio, rig, write_at_random
from bench.views import opening
from qsd import StorageDaemon

VOLUMES = "more volumes, more workers"
HISTORY = "rewriting the same 64 MiB"
COUNT = 8
SIZE = 128 * MIB


def measure(run: Run) -> None:
    """All figures of growth."""
    if not run.quick:
        with rig() as one, rig(REPHUB_AGENT__WORKERS="2") as two:
            _volumes(one, two, run)
    with rig() as found:
        _history(found, run)


def _volumes(one: Rig, two: Rig, run: Run) -> None:
    seconds = 4.0
    first = one.protect("vm0", SIZE)
    idle = _memory(one)
    disks = [first, *(one.protect(f"vm{number}", SIZE) for number in range(1, COUNT))]
    others = [two.protect(f"vm{number}", SIZE) for number in range(COUNT)]
    run.add(
        Figure(
            VOLUMES,
            "worker's memory of one more idle volume",
            (_memory(one) - idle) / (COUNT - 1) / MIB,
            "MiB",
        )
    )
    single, many, workers = alternating(
        run.rounds - 2,
        lambda: _events_per_second(one, disks[:1], seconds),
        lambda: _events_per_second(one, disks, seconds),
        lambda: _events_per_second(two, others, seconds),
    )
    run.add(Figure(
        VOLUMES, f"{COUNT} volumes, one worker", median(many), "events/s", "1 volume", median(single), 1.0, samples=many,
    ))  # fmt: skip
    run.add(Figure(
        VOLUMES, f"{COUNT} volumes, two workers", median(workers), "events/s", "one worker", median(many), samples=workers,
    ))  # fmt: skip
    run.add(
        Figure(
            VOLUMES,
            "worker's memory of one more volume after full load",
            (_memory(one) - idle) / (COUNT - 1) / MIB,
            "MiB",
        )
    )
    run.series["events/s over volumes"] = {"one worker": {1: median(single), COUNT: median(many)}}
    for count in (2, 4):
        run.series["events/s over volumes"]["one worker"][count] = _events_per_second(
            one, disks[:count], seconds
        )


def _memory(found: Rig) -> int:
    """Resident bytes of the workers."""
    return sum(worker.memory_info().rss for worker in found.workers())


def _events_per_second(found: Rig, disks: list[StorageDaemon], seconds: float) -> float:
    """What all guests together write, each 4 KiB at depth 4; all of it is acked before the next begins."""

    def load(disk: StorageDaemon) -> float:
        job = fio(
            disk.uri(),
            "randwrite",
            4 * KIB,
            4,
            time_based=1,
            ramp_time="1s",
            runtime=f"{seconds:g}s",
            size=SIZE,
        )
        return float(job["write"]["iops"])

    with ThreadPoolExecutor(len(disks)) as pool:
        total = sum(pool.map(load, disks))
    for number in range(len(disks)):
        found.wait_acked(f"vm{number}")
    return total


def _history(found: Rig, run: Run) -> None:
    """Does anything slow down with the length of the history?"""
    block, step = 16 * KIB, 1 * GIB // 4 if run.quick else 1 * GIB
    total = 4 * step if run.quick else 10 * step
    qsd = found.protect("vm1", 64 * MIB)
    speeds: dict[int, float] = {}
    opens: dict[int, float] = {}
    written = 0
    while written < total:
        began = time.monotonic()
        write_at_random(qsd.uri(), block, 16, step // block, 64 * MIB)
        head = found.wait_acked("vm1")["acked_offset"]
        while (found.diskbox_status("vm1")["head_offset"] or 0) < head:
            time.sleep(0.02)
        written += step
        speeds[written // MIB] = step / 1e6 / (time.monotonic() - began)
        if written in (step, total):
            found.caught_up("vm1")
            opens[written // MIB] = opening(found, run.rounds, "vm1")[0] * 1000
    status = found.diskbox_status("vm1")
    per_event = status["index_bytes"] / max(1, status["index_events"])
    run.add(
        Figure(
            HISTORY,
            f"index, {status['index_events']:,} events",
            per_event,
            "bytes an event",
            "limit",
            48.0,
            1.0,
            less_is_better=True,
        )
    )
    mib = list(speeds)
    run.add(Figure(
        HISTORY, f"written and read by the projector, {mib[-1]:,} MiB of history", speeds[mib[-1]], "MB/s", f"{mib[0]:,} MiB",
        speeds[mib[0]], 0.8,
    ))  # fmt: skip
    run.add(Figure(
        HISTORY, f"view open, {mib[-1]:,} MiB of history", opens[mib[-1]], "ms", f"{mib[0]:,} MiB", opens[mib[0]], 2.0,
        less_is_better=True,
    ))  # fmt: skip
    run.series["MB/s over history (MiB)"] = {"guest to projector": speeds}
