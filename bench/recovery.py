"""The recovery side: opening a point whatever the length of the journal, reading it, running from it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from bench.harness import Figure, Run, alternating, median
from bench.rig import GIB, KIB, Rig, qemu_nbd, reads_per_second, rig, write_at_random
from bench.views import opening
from rephub.core.nbd.client import NbdClient

OPEN = "opening a point"
READ = "random reads of 4 KiB, depth 32"
REST = "restart, fail-over"
SIZE = 1 * GIB


def measure(run: Run) -> None:
    """All figures of the recovery side."""
    counts = [10_000, 100_000] if run.quick else [10_000, 100_000, 1_000_000]
    with rig(on_disk=True) as found:
        qsd = found.protect("vm1", SIZE)
        done, first = 0, {}
        for count in counts:
            write_at_random(qsd.uri(), 4 * KIB, 32, count - done, SIZE)
            done = count
            found.caught_up("vm1")
            opened, read = opening(found, run.rounds, "vm1")
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
    write_at_random(few.uri(), 4 * KIB, 32, 1000, SIZE)
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
