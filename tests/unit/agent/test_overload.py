"""Throttling: never beyond its limit, never against `gap`, more when fuller."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rephub.agent.overload import (
    OUTRUN_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    Policy,
    answer_delay_seconds,
    is_full,
    rest_seconds,
)

Fill = st.integers(0, 2000)


@given(Fill, Fill, st.integers(0, 10_000))
def test_delay_rises_within_its_limit(low: int, high: int, delay_max_ms: int) -> None:
    low, high = sorted((low, high))
    first = answer_delay_seconds(Policy.THROTTLE, low, 1000, delay_max_ms)
    second = answer_delay_seconds(Policy.THROTTLE, high, 1000, delay_max_ms)
    assert 0 <= first <= second <= delay_max_ms / 1000
    assert answer_delay_seconds(Policy.GAP, high, 1000, delay_max_ms) == 0


def test_bursts_are_free_and_a_buffer_three_quarters_full_is_not() -> None:
    assert answer_delay_seconds(Policy.THROTTLE, 500, 1000, 50) == 0
    assert answer_delay_seconds(Policy.THROTTLE, 750, 1000, 50) == 0.05
    assert not is_full(1000, 1000)
    assert is_full(1001, 1000)


def test_rest_after_the_guest_outran_the_journal_grows() -> None:
    rests = [rest_seconds(lives, outran=True) for lives in range(8)]
    assert rests == sorted(rests)
    assert rests[0] > 1
    assert rests[-1] == OUTRUN_SECONDS_MAX
    assert rest_seconds(0, outran=False) == 0
    assert 0 < rest_seconds(1, outran=False) < rest_seconds(50, outran=False) <= RETRY_SECONDS_MAX
