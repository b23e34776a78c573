"""What goes wrong in one run, drawn from the seed, and how often it did."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection

KINDS = (
    "lost_ack", "lost_batch", "late_batch", "duplicate_batch", "delayed_batch", "outage", "bitrot",
    "agent_crash", "agent_hang", "agent_takeover", "diskbox_kill", "diskbox_power_cut", "torn_write", "eio", "enospc",
    "failed_sync", "bitmap_away", "bitmap_emptied",
)  # fmt: skip
"""Each fires at least `FIRED_MIN` times in the normal run of the tests."""

FIRED_MIN = 100


class Faults:
    """The faults of one run.

    Args:
        seed: of the run.
        enabled: which kinds may happen; None: what the seed says.
    """

    def __init__(self, seed: random.Random, enabled: Collection[str] | None = None) -> None:
        self.random = seed
        self.fired: Counter[str] = Counter()
        self.on = True
        """False: from here on everything works."""
        count = seed.choice((0, 1, 2, 2, 3, 4, 6))
        drawn = seed.sample(KINDS, count)
        self.enabled = frozenset(drawn if enabled is None else enabled)

    def fire(self, kind: str, chance: float) -> bool:
        """Whether it happens now; it is counted if so."""
        if not self.on or kind not in self.enabled or self.random.random() >= chance:
            return False
        self.fired[kind] += 1
        return True
