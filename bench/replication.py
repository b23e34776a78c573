"""From source to recovery volume: the first sync, and applying a journal."""

from __future__ import annotations

import time

from bench.harness import Figure, Run, alternating, median
from bench.peers import nbdcopy_mb_per_second, producer_performance
from bench.rig import GIB, KIB, MIB, Rig, fio, rig, write_at_random
from qsd import StorageDaemon
from stack import bootstrap

SYNC = "first sync"
APPLY = "applying the journal"
SIZE = 1 * GIB


def measure(run: Run) -> None:
    """All figures between source and recovery volume."""
    with rig() as found:
        _sync(found, run)
        for block in (4 * KIB,) if run.quick else (4 * KIB, 64 * KIB):
            _apply(found, run, block)


def _sync(found: Rig, run: Run) -> None:
    """A disk full of random bytes, protected anew in each round."""
    size = SIZE // 2 if run.quick else SIZE
    qsd = StorageDaemon(found.folder / "source", [size])
    try:
        fio(qsd.uri(), "write", 1 * MIB, 4, size=size)
        copy = found.folder / "copy"

        def ours() -> float:
            found.stack.run("protect", "synced", "--qmp", str(qsd.qmp), "--node", "disk0")
            began = time.monotonic()
            found.stack.run("wait", "synced", "--state", "protected", "--timeout", "300", timeout=310)
            seconds = time.monotonic() - began
            found.stack.run("unprotect", "synced", "--purge")
            return size / 1e6 / seconds

        def to_file() -> float:
            speed = nbdcopy_mb_per_second(qsd.uri(), str(copy), size)
            copy.unlink()
            return speed

        def producer() -> float:
            return producer_performance(bootstrap(found.stack), found.folder, MIB, 2.0) * MIB / 1e6

        mine, null, file, journal = alternating(
            1 if run.quick else 3,
            ours,
            lambda: nbdcopy_mb_per_second(qsd.uri(), "null:", size),
            to_file,
            producer,
        )
    finally:
        qsd.stop()
    for peer, speeds, aim in (
        ("nbdcopy to null:", null, 0.5),
        ("nbdcopy to a file", file, 0.8),
        ("ProducerPerformance, 1 MiB", journal, 0.8),
    ):
        run.add(
            Figure(SYNC, f"against {peer}", median(mine), "MB/s", peer, median(speeds), aim, samples=mine)
        )


def _apply(found: Rig, run: Run, block: int) -> None:
    """What promote applies a second, against a consumer that only reads the same topic."""
    total = SIZE // 4 if run.quick else SIZE // 2
    mine, theirs = [], []
    for number in range(1 if run.quick else 3):
        volume = f"applied-{block}-{number}"
        qsd = found.protect(volume, SIZE)
        write_at_random(qsd.uri(), block, 32, total // block, SIZE)
        found.caught_up(volume)
        theirs.append(found.consumer_mb_per_second(volume, total // block))
        plan = found.stack.run("promote", volume, "--latest", "--dry-run", "--timeout", "300")
        found.stack.run("promote", volume, "--latest", "--yes", "--timeout", "900", timeout=1000)
        seconds = (found.event_at("Promoted") - found.event_at("PromoteStarted")) / 1e6
        mine.append(plan["applied_bytes"] / 1e6 / seconds)
        found.stack.run("unprotect", volume, "--purge")
    run.add(Figure(
        APPLY, f"promote, events of {block // KIB} KiB", median(mine), "MB/s", "ConsumerPerformance", median(theirs), 1.0,
        samples=mine,
    ))  # fmt: skip
