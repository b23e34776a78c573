"""Checkpoints for a screen: one a column, none of them invented, names before periodic ones."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rephub.projections.columns import in_columns


def marks(times: list[tuple[int, bool]]) -> list[dict[str, Any]]:
    return [
        {
            "checkpoint": f"c{number}",
            "offset": number,
            "captured_at": at,
            "kind": "crash",
            "periodic": periodic,
        }
        for number, (at, periodic) in enumerate(sorted(times, key=lambda item: item[0]))
    ]


TIMES = st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), max_size=200)


@given(TIMES, st.integers(1, 50), st.integers(0, 10_000), st.integers(0, 10_000))
def test_at_most_one_a_column_and_named_ones_stay(
    times: list[tuple[int, bool]], columns: int, one: int, other: int
) -> None:
    first, last = min(one, other), max(one, other)
    given_marks = marks(times)
    kept = in_columns(given_marks, columns, first, last)
    assert len(kept) <= columns
    inside = [mark for mark in given_marks if first <= mark["captured_at"] <= last]
    assert [mark for mark in inside if mark in kept] == kept
    width = -(-(last + 1 - first) // columns)
    of = {(mark["captured_at"] - first) // width: mark for mark in kept}
    assert set(of) == {(mark["captured_at"] - first) // width for mark in inside}, "no column is left out"
    for column, mark in of.items():
        named = [
            other["captured_at"]
            for other in inside
            if not other["periodic"] and (other["captured_at"] - first) // width == column
        ]
        assert mark["periodic"] == (not named)
        assert not named or mark["captured_at"] == max(named)


@given(TIMES, st.integers(1, 50))
def test_without_a_span_it_is_that_of_the_checkpoints(times: list[tuple[int, bool]], columns: int) -> None:
    given_marks = marks(times)
    kept = in_columns(given_marks, columns, None, None)
    if given_marks:
        first, last = given_marks[0]["captured_at"], given_marks[-1]["captured_at"]
        assert kept == in_columns(given_marks, columns, first, last) != []
    else:
        assert kept == []
