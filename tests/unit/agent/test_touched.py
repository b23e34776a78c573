"""Who wrote what a record of QEMU has."""

from __future__ import annotations

from rephub.agent.touched import GRANULES_MAX, Touched

KIB = 1 << 10


def test_what_no_guest_wrote_is_foreign() -> None:
    touched = Touched()
    touched.add(10, 4096)
    assert touched.turn() == 64 * KIB
    touched.add(64 * KIB - 1, 2)
    assert touched.turn() == 128 * KIB
    record = [(0, 64 * KIB), (64 * KIB, 128 * KIB)]
    assert touched.foreign(record) == [(128 * KIB, 64 * KIB)]


def test_what_was_captured_before_the_turn_may_be_in_the_record_after() -> None:
    touched = Touched()
    touched.add(0, 1)
    touched.turn()
    assert touched.turn() == 0
    assert touched.foreign([(0, 64 * KIB)]) == []
    touched.turn()
    assert touched.foreign([(0, 64 * KIB)]) == [(0, 64 * KIB)]


def test_a_guest_that_writes_everywhere_is_not_watched_for_two_turns() -> None:
    touched = Touched()
    touched.add(0, (GRANULES_MAX + 1) * 64 * KIB)
    assert touched.turn() is None
    assert touched.foreign([(1 << 50, 64 * KIB)]) == []
    assert touched.turn() == 0
    assert touched.foreign([(1 << 50, 64 * KIB)]) == []
    touched.turn()
    assert touched.foreign([(1 << 50, 64 * KIB)]) == [(1 << 50, 64 * KIB)]
