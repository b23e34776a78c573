"""When a part is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rephub.cli.restarts import (
    DELAY_FIRST_SECONDS,
    DELAY_SECONDS_MAX,
    FLAPPING_DEATHS,
    FLAPPING_SECONDS,
    RestartRule,
)


def test_the_first_death_is_answered_at_once_and_later_ones_ever_later() -> None:
    rule = RestartRule()
    delays = [rule.on_death(float(at)).delay_seconds for at in range(6)]
    assert delays[0] == DELAY_FIRST_SECONDS
    assert delays == sorted(delays)
    assert delays[-1] == DELAY_SECONDS_MAX


def test_a_part_that_dies_now_and_then_never_flaps() -> None:
    rule = RestartRule()
    for at in range(50):
        restart = rule.on_death(at * (FLAPPING_SECONDS + 1))
        assert restart.delay_seconds == DELAY_FIRST_SECONDS
        assert not restart.flapping


def test_calm_returns() -> None:
    rule = RestartRule()
    for at in range(FLAPPING_DEATHS):
        restart = rule.on_death(float(at))
    assert restart.flapping
    assert not rule.is_calm(FLAPPING_DEATHS + 1.0)
    assert rule.is_calm(FLAPPING_DEATHS + FLAPPING_SECONDS)


@given(st.lists(st.floats(0, 100), max_size=40))
def test_it_flaps_exactly_when_so_many_deaths_lie_within_the_span(gaps: list[float]) -> None:
    rule, now, deaths = RestartRule(), 0.0, []
    for gap in gaps:
        now += gap
        deaths.append(now)
        recent = [at for at in deaths if now - at <= FLAPPING_SECONDS]
        restart = rule.on_death(now)
        assert restart.flapping == (len(recent) >= FLAPPING_DEATHS)
        assert 0 < restart.delay_seconds <= DELAY_SECONDS_MAX
