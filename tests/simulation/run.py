"""Runs seeds. `python -m simulation.run --seed N` repeats one and says what happened; `--seeds N` runs many."""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from simulation.world import World


@dataclass(slots=True)
class Outcome:
    """Of some seeds."""

    seeds: int = 0
    steps: int = 0
    views: int = 0
    events: int = 0
    fenced: int = 0
    seconds: float = 0.0
    """That the simulated world lived."""
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take in another one."""
        for name in ("seeds", "steps", "views", "events", "fenced", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fired.update(other.fired)
        self.failures += other.failures

    def line(self) -> str:
        """What the last line of a run says."""
        fired = " ".join(f"{kind}={count}" for kind, count in sorted(self.fired.items()))
        return (
            f"seeds={self.seeds} failed={len(self.failures)} events={self.events} fenced={self.fenced} "
            f"views={self.views} steps={self.steps} simulated_hours={self.seconds / 3600:.1f} faults: {fired}"
        )


def run_seed(seed: int, enabled: Collection[str] | None = None) -> Outcome:
    """Run one seed; a failure is in the outcome."""
    world = World(seed, enabled)
    outcome = Outcome(seeds=1)
    try:
        world.run()
    except Exception as exc:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        outcome.failures.append((seed, f"{type(exc).__name__}: {exc} ({where.name})"))
    outcome.steps, outcome.seconds = world.loop.steps, world.loop.time()
    outcome.views, outcome.events, outcome.fenced = (
        world.judge.views,
        world.ledger.next_offset,
        world.ledger.fenced,
    )
    outcome.fired = world.faults.fired
    return outcome


def run_seeds(seeds: Iterable[int]) -> Outcome:
    """Run some seeds, one after the other."""
    # What was there before is no garbage: looking at it again and again costs a fifth of the time.
    gc.freeze()
    total = Outcome()
    for seed in seeds:
        total.add(run_seed(seed))
    return total


def explain(seed: int) -> int:
    """Run one seed and tell what happened."""
    world = World(seed)
    try:
        world.run()
    except Exception:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    print("\n".join(world.notes))
    print(
        f"seed={seed} {'failed' if status else 'holds'} trace={world.loop.trace:08x} steps={world.loop.steps} "
        f"faults={dict(world.faults.fired)} policy={world.policy} history={world.history}"
    )
    return status


def _chunk(bounds: tuple[int, int]) -> Outcome:
    logging.disable()
    return run_seeds(range(*bounds))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="simulation.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and tell what happened")
    parser.add_argument("--seeds", type=int, default=2000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    arguments = parser.parse_args()
    logging.disable()
    if arguments.seed is not None:
        return explain(arguments.seed)
    began, total = time.perf_counter(), Outcome()
    first, end, step = arguments.first, arguments.first + arguments.seeds, 100
    chunks = [(start, min(start + step, end)) for start in range(first, end, step)]
    with multiprocessing.Pool(arguments.jobs) as pool:
        for part in pool.imap_unordered(_chunk, chunks):
            total.add(part)
            for seed, why in part.failures:
                print(f"seed={seed} {why}; make simulate SEED={seed}", flush=True)
    print(f"{total.line()} seconds={time.perf_counter() - began:.1f}")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
