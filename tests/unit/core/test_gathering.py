"""How long requests gather: longer where many flow, and short again once they do not."""

from __future__ import annotations

from rephub.core.gathering import FACTOR_MAX, FLOWING_SECONDS, Gathering


def test_one_or_two_gather_for_the_shortest_time() -> None:
    gathering = Gathering(0.02)
    assert gathering.seconds("a", 10.0) == 0.02
    assert gathering.seconds("b", 10.0) == 0.02
    assert gathering.seconds("a", 10.1) == 0.02


def test_many_gather_longer_but_within_the_limit() -> None:
    gathering = Gathering(0.02)
    found = [gathering.seconds(number, 10.0) for number in range(40)]
    assert found == sorted(found)
    assert found[3] == 0.04
    assert found[-1] == 0.02 * FACTOR_MAX


def test_who_stopped_counts_no_more() -> None:
    gathering = Gathering(0.02)
    for number in range(40):
        gathering.seconds(number, 10.0)
    assert gathering.seconds(0, 10.0 + 2 * FLOWING_SECONDS) == 0.02
