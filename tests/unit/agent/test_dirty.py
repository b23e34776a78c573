"""Region marks against a model of the store: no answer without a mark, no clear before the ack."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.agent import dirty
from rephub.agent.dirty import QUIET_SECONDS, DirtyRegions

MIB = 1 << 20
REGIONS = 5


class Run:
    """Writes, marks, clears and acks as `marks.py` orders them; checks the promises after every step."""

    def __init__(self, hot_max: int) -> None:
        self.regions = DirtyRegions(REGIONS * MIB, hot_max)
        self.store: set[int] = set()
        self.unacked: list[tuple[int, int]] = []
        self.wanted: set[int] = set()
        self.now = 0.0
        self.regions.synced(0, REGIONS * MIB)

    def write(self, start: int, length: int) -> None:
        fresh = self.regions.touch(start, length)
        self.unacked.append((start, length))
        self.wanted |= set(fresh)
        touched = set(dirty.regions(start, length))
        # What may be answered at once is marked in the store.
        assert touched - set(fresh) <= self.store

    def mark(self, ok: bool) -> None:
        wanted, self.wanted = self.wanted, set()
        if ok:
            self.store |= wanted
            self.regions.marks_stored(wanted, self.now)
        else:
            self.regions.marks_unknown()
            self.wanted = self.regions.unmarked_pending()

    def ack(self) -> None:
        if self.unacked:
            self.regions.acked(*self.unacked.pop(0), self.now)

    def clear(self, seconds: float) -> None:
        self.now += seconds
        self.store -= set(self.regions.take_clearable(self.now))

    def check(self) -> None:
        pending = {region for extent in self.unacked for region in dirty.regions(*extent)}
        # A write that nobody has to wait for any more and that is not acked is marked.
        assert pending - self.wanted <= self.store
        assert self.regions.marked <= self.store
        assert self.regions.dirty_bytes == len(pending | self.regions.marked) * MIB


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, REGIONS * MIB - 1), st.integers(1, 2 * MIB)),
        st.tuples(st.just("mark"), st.booleans()),
        st.tuples(st.just("ack")),
        st.tuples(st.just("clear"), st.sampled_from((0.0, QUIET_SECONDS))),
    ),
    max_size=50,
)


def play(steps: list[tuple[Any, ...]], hot_max: int = 1) -> Run:
    run = Run(hot_max)
    for name, *arguments in steps:
        if name == "write":
            arguments[1] = min(arguments[1], REGIONS * MIB - arguments[0])
        getattr(run, name)(*arguments)
        run.check()
    return run


@given(Steps, st.integers(0, 3))
def test_marks_cover_what_is_answered(steps: list[tuple[Any, ...]], hot_max: int) -> None:
    run = play(steps, hot_max)
    while run.unacked:
        run.ack()
    run.mark(ok=True)
    run.clear(QUIET_SECONDS)
    run.check()
    assert run.regions.dirty_bytes == 0, "a quiet volume ends clean"


EARLY_CLEAR = [("write", 0, 10), ("mark", True), ("ack",), ("write", 5, 10), ("clear", QUIET_SECONDS)]


def test_a_clear_before_the_ack_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    play(EARLY_CLEAR)
    original = DirtyRegions.touch

    def forgets_quiet(self: DirtyRegions, start: int, length: int) -> list[int]:
        quiet = dict(self._quiet)
        fresh = original(self, start, length)
        self._quiet.update(quiet)
        return fresh

    monkeypatch.setattr(DirtyRegions, "touch", forgets_quiet)
    play(EARLY_CLEAR)  # the rule itself still holds it back
    monkeypatch.setattr(dirty, "may_clear", lambda **_: True)
    with pytest.raises(AssertionError):
        play(EARLY_CLEAR)


def test_unsynced_regions_keep_their_marks_until_sync_is_acked() -> None:
    regions = DirtyRegions(2 * MIB + 5)
    assert regions.dirty_bytes == 3 * MIB
    regions.touch(0, 10)
    regions.marks_stored([0], 0.0)
    regions.acked(0, 10, 0.0)
    assert regions.take_clearable(100.0) == []
    regions.hold(0, MIB)
    regions.synced(0, MIB)
    assert regions.take_clearable(200.0) == [], "SyncData is not acked"
    regions.acked(0, MIB, 200.0)
    assert regions.take_clearable(300.0) == [0]
    regions.synced(MIB, MIB + 5)
    assert regions.dirty_bytes == 0


def test_hot_regions_keep_their_marks() -> None:
    regions = DirtyRegions(4 * MIB, hot_max=2)
    regions.synced(0, 4 * MIB)
    for number in range(4):
        regions.touch(number * MIB, 1)
        regions.marks_stored([number], 0.0)
        regions.acked(number * MIB, 1, float(number) / 10)
    assert regions.take_clearable(0.5) == [0, 1], "the two that were quiet longest"
    assert regions.touch(2 * MIB, 1) == []
    assert regions.touch(0, 1) == [0]
