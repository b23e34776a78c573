"""The recovery side: opening a point whatever the length of the journal, reading it, promoting it, running from it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from bench.harness import Figure, Run, alternating, median
from bench.rig import GIB, KIB, Rig, fio, qemu_nbd, reads_per_second, rig
from qsd import StorageDaemon
from rephub.core.nbd.client import NbdClient

OPEN = "opening a point"
READ = "random reads of 4 KiB, depth 32"
REST = "restart, promote, fail-over"
SIZE = 1 * GIB


def measure(run: Run) -> None:
    """All figures of the recovery side."""
    counts = [10_000, 100_000] if run.quick else [10_000, 100_000, 1_000_000]
    with rig() as found:
        qsd = found.protect("vm1", SIZE)
        done, first = 0, {}
        for count in counts:
            fio(qsd.uri(), "randwrite", 4 * KIB, 32, number_ios=count - done, size=SIZE * 8, filesize=SIZE)
            done = count
            found.caught_up("vm1")
            opened, read = _opening(found, run, "vm1")
            first.setdefault("open", opened)
            first.setdefault("read", read)
            for what, value in (("open", opened), ("read", read)):
                name = "view open" if what == "open" else "connect and read 4 KiB from the journal"
                is_first = count == counts[0]
                run.add(Figure(
                    OPEN, f"{name} after {count:,} writes", value * 1000, "ms",
                    "" if is_first else f"after {counts[0]:,}", None if is_first else first[what] * 1000,
                    None if is_first else 2.0, less_is_better=True,
                ))  # fmt: skip
        _reading(found, run)
        _restart(found, run)
        _failover(found, run, counts[-1])
        _promote(found, run, qsd)


def _opening(found: Rig, run: Run, volume: str) -> tuple[float, float]:
    """Seconds from FotRequested to FotStarted, and from connecting to the first bytes of a journaled block; medians."""
    opens, reads = [], []
    for _ in range(run.rounds):
        view = found.stack.run("fot", "start", volume, "--latest", "--read-only")
        requested = found.event_at("FotRequested", fot=view["fot"])
        opens.append((found.event_at("FotStarted", fot=view["fot"]) - requested) / 1e6)
        reads.append(asyncio.run(_first_read(view["uri"])))
        found.stack.run("fot", "stop", view["fot"])
    return median(opens), median(reads)


async def _first_read(uri: str) -> float:
    client = await NbdClient.connect_uri(uri)
    start, journaled = 0, []
    while start < SIZE:
        for length, flags in await client.block_status(start, SIZE - start):
            journaled += [] if flags else range(start, start + length, 4096)
            start += length
    await client.close()
    began = time.monotonic()
    client = await NbdClient.connect_uri(uri)
    await client.read(random.choice(journaled), 4096)
    seconds = time.monotonic() - began
    await client.close()
    return seconds


def _reading(found: Rig, run: Run) -> None:
    """Cold, hydrating and hydrated, each against qemu-nbd on the same point as a file."""
    copy = found.folder / "copy.raw"
    found.stack.run("promote", "vm1", "--latest", "--to", str(copy), "--yes", "--timeout", "600", timeout=700)
    seconds = 2.0 if run.quick else 4.0
    view = found.stack.run("fot", "start", "vm1", "--latest", "--read-only")
    fot, uri = view["fot"], view["uri"]
    found.stack.run("fot", "hydrate", fot, "--stop")
    with qemu_nbd(copy, found.folder) as peer:

        def pair(what: str, aim: float | None, rounds: int) -> None:
            ours, theirs = alternating(
                rounds, lambda: reads_per_second(uri, seconds), lambda: reads_per_second(peer, seconds)
            )
            run.add(
                Figure(READ, what, median(ours), "reads/s", "qemu-nbd", median(theirs), aim, samples=ours)
            )

        pair("cold: from the journal alone", None, 1)
        found.stack.run("fot", "hydrate", fot, "--resume", "--rate", "64MiB")
        pair("while it is hydrated at 64 MiB/s", None, 1)
        began = time.monotonic()
        found.stack.run("fot", "hydrate", fot, "--rate", "none", "--wait")
        run.notes.append(f"the rest of the hydration took {time.monotonic() - began:.1f} s")
        pair("hydrated", 1.0, run.rounds)
    found.stack.run("fot", "stop", fot)
    copy.unlink()


def _restart(found: Rig, run: Run) -> None:
    """A diskbox killed: until it has read up to the head again, with its sections and without."""
    index = next((found.stack.state_dir / "diskbox").glob("*/volumes/vm1/index"))

    def restart(*, sections: bool) -> float:
        head = found.caught_up("vm1")["head_offset"]
        kept = index.rename(index.with_name("kept")) if not sections else None
        pid = found.diskbox_pid()
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while found.diskbox_pid() in (0, pid) or (found.stack.status("vm1")["head_offset"] or -1) < head:
            time.sleep(0.05)
        seconds = time.monotonic() - began
        if kept is not None:
            for path in index.iterdir() if index.exists() else ():
                path.unlink()
            if index.exists():
                index.rmdir()
            kept.rename(index)
        return seconds

    with_, without = alternating(
        1 if run.quick else 3, lambda: restart(sections=True), lambda: restart(sections=False)
    )
    run.add(Figure(
        REST, "restart of the diskbox until it is at the head", median(with_), "s", "without sections", median(without),
        less_is_better=True, samples=with_,
    ))  # fmt: skip


def _failover(found: Rig, run: Run, count: int) -> None:
    """From the command to the first write of a VM that runs from the point, after few and after many writes."""
    few = found.protect("few", SIZE)
    fio(few.uri(), "randwrite", 4 * KIB, 32, number_ios=1000, size=SIZE, filesize=SIZE)
    found.caught_up("few")

    def failover(volume: str) -> float:
        answer = found.stack.run("failover", volume, "--latest", "--yes")
        requested = found.event_at("FailoverRequested", failover=answer["failover"])
        asyncio.run(_first_write(answer["uri"]))
        seconds = time.time() - requested / 1e6
        found.stack.run("rollback", volume, "--yes")
        found.stack.run("wait", volume, "--state", "protected", "--timeout", "120")
        return seconds

    short, long = alternating(run.rounds, lambda: failover("few"), lambda: failover("vm1"))
    run.add(Figure(
        REST, f"fail-over to the first write, {count:,} writes in the journal", median(long), "s",
        "1,000 writes", median(short), 1.5, less_is_better=True, samples=long,
    ))  # fmt: skip


async def _first_write(uri: str) -> None:
    client = await NbdClient.connect_uri(uri)
    await client.write(8192, b"first" * 100)
    await client.close()


def _promote(found: Rig, run: Run, qsd: StorageDaemon) -> None:
    """What promote applies a second, against a consumer that only reads."""
    # What was there is in the recovery volume since the fail-overs.
    count = 50_000 if run.quick else 200_000
    fio(qsd.uri(), "randwrite", 4 * KIB, 32, number_ios=count, size=SIZE * 8, filesize=SIZE)
    found.caught_up("vm1")
    consumer = [found.consumer_mb_per_second("vm1", count) for _ in range(1 if run.quick else 3)]
    plan = found.stack.run("promote", "vm1", "--latest", "--dry-run", "--timeout", "300")
    found.stack.run("promote", "vm1", "--latest", "--yes", "--timeout", "900", timeout=1000)
    seconds = (found.event_at("Promoted") - found.event_at("PromoteStarted")) / 1e6
    run.add(Figure(
        REST, "promote: journal applied", plan["applied_bytes"] / 1e6 / seconds, "MB/s", "ConsumerPerformance", median(consumer),
    ))  # fmt: skip
