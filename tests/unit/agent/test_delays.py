"""The histogram of ack delays against counting one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rephub.agent.delays import BOUNDS_SECONDS, AckDelays
from rephub.agent.queue import FLAG_SYNC, Kind, Queued

NOW = 1_700_000_000_000_000
ages = st.lists(st.integers(0, 20_000_000), max_size=50)


@given(ages, ages)
def test_buckets_count_what_waited_at_most_so_long(first, second) -> None:
    delays = AckDelays()
    for batch in (first, second):
        delays.note([Queued(Kind.WRITE, 1, NOW - age) for age in sorted(batch, reverse=True)], NOW)
    both = first + second
    stats = delays.stats()
    assert stats["buckets"] == [sum(age <= bound * 1e6 for age in both) for bound in BOUNDS_SECONDS]
    assert stats["count"] == len(both)
    assert abs(stats["sum_seconds"] - sum(both) / 1e6) < 1e-6


def test_only_what_the_guest_wrote_counts() -> None:
    delays = AckDelays()
    made_by_us = [
        Queued(Kind.CHECKPOINT, 1, NOW),
        Queued(Kind.SYNC_DATA, 2, NOW),
        Queued(Kind.ZERO, 3, NOW, flags=FLAG_SYNC),
    ]
    delays.note([*made_by_us, Queued(Kind.ZERO, 4, NOW - 500)], NOW)
    assert delays.stats()["count"] == 1
