"""The search for the last good point finds it, with few tests, whatever is skipped."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rephub.projections.bisect import Search


@given(st.data())
def test_the_last_good_point_is_found(data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, 3000), min_size=2, max_size=8)))
    ranges = [(first, last - 1) for first, last in zip(edges[::2], edges[1::2], strict=False) if last > first]
    inside = [offset for first, last in ranges for offset in range(first, last + 1)]
    if len(inside) < 2:
        return
    good, bad = sorted(data.draw(st.sets(st.sampled_from(inside), min_size=2, max_size=2)))
    turned = data.draw(st.sampled_from([offset for offset in inside if good < offset <= bad]))
    marks = data.draw(st.lists(st.integers(0, 3000), max_size=20))
    untestable = data.draw(st.sets(st.sampled_from(inside), max_size=5)) - {good, bad}
    search = Search(good, bad, marks, ranges)
    asked: list[int] = []
    while (offset := search.next()) is not None:
        assert offset not in asked
        assert offset in inside
        assert search.good < offset < search.bad
        asked.append(offset)
        search.tell(offset, "skip" if offset in untestable else "bad" if offset >= turned else "good")
    sure = [offset for offset in inside if search.good < offset < search.bad]
    assert search.good < turned <= search.bad
    assert search.between == sure
    assert set(sure) <= untestable
    tests = 2 * math.log2(len(inside) + 1) + math.log2(len(marks) + 1) + 4
    assert len(asked) <= tests + len(untestable) + 5


def test_checkpoints_come_first() -> None:
    search = Search(0, 1000, [100, 500, 900], [(0, 1000)])
    assert search.next() == 500
    search.tell(500, "bad")
    assert search.next() == 100
    search.tell(100, "good")
    assert 100 < (search.next() or 0) < 500
