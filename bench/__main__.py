"""`make bench`: figures as ratios to peers of the same run."""

from __future__ import annotations

import argparse
import time

from bench import guest, monitoring, nbd, recovery, replication, scale
from bench.harness import Run, console
from bench.report import write_page

MEASUREMENTS = {
    "nbd": nbd.measure,
    "guest": guest.measure,
    "replication": replication.measure,
    "recovery": recovery.measure,
    "scale": scale.measure,
    "monitoring": monitoring.measure,
}

SLOW = {"recovery", "monitoring"}
"""Not in a quick run: a journal is not long in seconds, and two stacks are not started in them."""


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of it, once, in three minutes")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="one part; may be repeated")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md from the results")
    options = parser.parse_args()
    run = Run(options.quick, 1 if options.quick else 5)
    try:
        for name in options.only or [name for name in MEASUREMENTS if not (options.quick and name in SLOW)]:
            console.print(f"[bold]{name}[/]")
            began = time.monotonic()
            MEASUREMENTS[name](run)
            console.print(f"  in {time.monotonic() - began:.0f} s")
    finally:
        # Minutes of measuring are not to be lost by what fails at the end.
        path = run.save()
        run.show()
    console.print(f"saved: bench/results/{path.name}")
    if options.page:
        write_page(path)


main()
