"""Throttling: never beyond its limit, never against `gap`, more when fuller."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rephub.agent.overload import Policy, answer_delay_seconds, is_full

Fill = st.integers(0, 2000)


@given(Fill, Fill, st.integers(0, 10_000))
def test_delay_rises_within_its_limit(low: int, high: int, delay_max_ms: int) -> None:
    low, high = sorted((low, high))
    first = answer_delay_seconds(Policy.THROTTLE, low, 1000, delay_max_ms)
    second = answer_delay_seconds(Policy.THROTTLE, high, 1000, delay_max_ms)
    assert 0 <= first <= second <= delay_max_ms / 1000
    assert answer_delay_seconds(Policy.GAP, high, 1000, delay_max_ms) == 0


def test_bursts_are_free_and_a_half_full_buffer_is_not() -> None:
    assert answer_delay_seconds(Policy.THROTTLE, 125, 1000, 50) == 0
    assert answer_delay_seconds(Policy.THROTTLE, 500, 1000, 50) == 0.05
    assert not is_full(1000, 1000)
    assert is_full(1001, 1000)
