"""What it costs a guest that its protection is watched: samples, the hub's feed and the monitor, against none of them."""

from __future__ import annotations

from bench.guest import random_writes
from bench.harness import Figure, Run, median
from bench.rig import GIB, KIB, MIB, fio, rig

SECTION = "what watching costs, 4 KiB"
SIZE = 1 * GIB
UNWATCHED = {"REPHUB_SAMPLES__PERIOD_SECONDS": "0", "REPHUB_AGENT__SAMPLING": "false"}
DEPTHS = (1, 32)


def measure(run: Run) -> None:
    """One stack after the other, not side by side: an idle one takes its share of the cores as well."""
    watched: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    unwatched: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(1 if run.quick else 3):
        _stack(run, watched)
        _stack(run, unwatched, "--no-monitor", **UNWATCHED)
    for depth in DEPTHS:
        run.add(Figure(
            SECTION, f"depth {depth}", median(watched[depth]), "writes/s", "no samples, no monitor",
            median(unwatched[depth]), 0.98, samples=watched[depth],
        ))  # fmt: skip


def _stack(run: Run, found: dict[int, list[float]], *options: str, **settings: str) -> None:
    with rig(*options, **settings) as one:
        disk = one.protect("vm1", SIZE)
        fio(disk.uri(), "write", 1 * MIB, 4, size=SIZE)
        fio(disk.uri(), "randwrite", 4 * KIB, 32, time_based=1, runtime="5s", size=SIZE)
        for depth in DEPTHS:
            for _ in range(min(3, run.rounds)):
                found[depth].append(float(random_writes(disk, 4 * KIB, depth, 2.0)["iops"]))
                one.wait_acked("vm1")
