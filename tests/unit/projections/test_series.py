"""The last minutes of samples, as pages and `rephub top` show them; minutes of the monitor's tables."""

from __future__ import annotations

from rephub.projections import minutes
from rephub.projections.series import ROWS_MAX, Row, Series
from rephub.schemas import stats
from sample_factory import START, capture, process, projection

SECOND = 1_000_000


def test_a_row_a_second_with_rates_and_what_is_not_known_is_none() -> None:
    series = Series()
    series.apply(
        capture(0, interval_us=2 * SECOND, writes=100, written_bytes=8192, rpo_us=None, acked_offset=50)
    )
    series.apply(projection(0, head_offset=45, window_us=60 * SECOND))
    series.apply(capture(1, sampled_blocks=4, entropy_sum=20.0, random_blocks=1, acked_offset=50))
    first, second = (Row(*row) for row in zip(*series.document(START)["v1"].values(), strict=True))
    assert (first.writes_per_second, first.written_bytes_per_second) == (50.0, 4096)
    assert (first.rpo_seconds, first.entropy, first.random_share) == (None, None, None)
    assert (first.lag_events, first.window_seconds) == (0, 0.0), "no diskbox had spoken"
    assert (second.entropy, second.random_share, second.rpo_seconds) == (5.0, 0.25, 0.02)
    assert (second.lag_events, second.window_seconds) == (5, 60.0)


def test_it_is_bounded_and_columns_are_equally_long() -> None:
    series = Series()
    for second in range(ROWS_MAX + 50):
        series.apply(capture(second))
    columns = series.document(0)["v1"]
    assert {len(column) for column in columns.values()} == {ROWS_MAX}
    assert columns["at"][-1] == START + (ROWS_MAX + 49) * SECOND
    assert series.document(0, last=1)["v1"]["at"] == columns["at"][-1:]
    assert series.document(columns["at"][-3])["v1"]["at"] == columns["at"][-3:]


def test_what_is_gone_is_forgotten() -> None:
    series = Series()
    series.apply(capture(0))
    series.apply(capture(0, volume="v2"))
    series.apply(projection(0, volume="v2"))
    series.apply(process(0, "agent/a1"))
    series.apply(process(60, "agent/a2", interval_us=0))
    series.apply("no sample")
    series.keep_only({"v1"}, START + 30 * SECOND)
    assert set(series.document(0)) == {"v1"}
    assert [(part["name"], part["cpu_share"]) for part in series.parts()] == [("agent/a2", None)]
    assert series.projections == {}


def test_a_minute_counts_a_sample_once() -> None:
    sample = capture(0, writes=7, written_bytes=100, rpo_us=5, random_blocks=2)
    once = minutes.add(minutes.empty(), 10, sample)
    assert minutes.add(once, 10, sample) == once
    twice = minutes.add(once, 11, capture(1, writes=1, written_bytes=1, rpo_us=3, attached=False))
    assert (twice["writes"], twice["written_bytes"], twice["rpo_us_max"], twice["detached"]) == (8, 101, 5, 1)
    both = minutes.add(twice, 12, projection(1, pins=3, stopped="bad crc"))
    assert (both["pins_max"], both["stopped"], both["samples"], both["writes"]) == (3, 1, 3, 8)
    assert once["writes"] == 7, "a minute is a value"


def test_whose_minutes_a_sample_counts_in() -> None:
    assert minutes.keys(capture(0)) == ["agent/a1", "volume/v1", "group/g"]
    assert minutes.keys(capture(0, group="")) == ["agent/a1", "volume/v1"]
    assert minutes.keys(projection(0)) == ["diskbox/d1"]
    assert isinstance(capture(0), stats.CaptureSample)
