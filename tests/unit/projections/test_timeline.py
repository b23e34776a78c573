"""Timeline, points, window and curves against a plain list of what holds at every offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal_model import JournalModel
from rephub.core.codec import decode_journal
from rephub.core.errors import NotFoundError, PointNotAvailableError, UsageError
from rephub.projections import envelope
from rephub.projections.envelope import ByteCurve, Envelope
from rephub.projections.journal_fold import JournalFold, fresh_state
from rephub.projections.points import resolve, resolve_group
from rephub.projections.timeline import Timeline
from rephub.projections.window import History, floor_target, window_seconds
from rephub.schemas.journal import SyncCompleted

STEPS = st.lists(
    st.sampled_from(["epoch", "sync", "write", "write", "mark", "late"]), min_size=1, max_size=40
)


def build(steps: list[str]) -> tuple[Timeline, list[bool], list[str | None], list[int]]:
    """A fed timeline and, for each offset: is it good, which checkpoint is it, the running maximum."""
    model = JournalModel(size=8192)
    model.start_epoch()
    for number, step in enumerate(steps):
        if step == "epoch":
            model.start_epoch("lost")
        elif step == "sync":
            model.put(SyncCompleted, total_bytes=1)
        elif step == "mark":
            model.checkpoint(f"c{number}")
        elif step == "late":
            model.at -= 5000
            model.write(0, b"late")
        else:
            model.write(0, b"x")
    fold = JournalFold(fresh_state(-1, 8192))
    timeline = Timeline(fold.state)
    good, names, maxima = [], [], []
    is_good = False
    for offset, value in enumerate(model.values):
        record = decode_journal(value)
        verdict = fold.feed(offset, record)
        timeline.feed(fold.state, record, verdict, len(value))
        is_good = {"EpochStarted": False, "SyncCompleted": True}.get(type(record).__name__, is_good)
        good.append(is_good)
        names.append(record.checkpoint if type(record).__name__ == "Checkpoint" and is_good else None)
        maxima.append(max([record.captured_at, *maxima[-1:]]))
    return timeline, good, names, maxima


@given(STEPS, st.data())
def test_points_resolve_as_the_list_says(steps, data) -> None:
    timeline, good, names, maxima = build(steps)
    floor = data.draw(st.integers(-1, len(good) - 1))
    timeline.drop(floor)
    usable = [offset for offset in range(max(floor, 0), len(good)) if good[offset]]
    assert timeline.earliest_offset() == next((offset for offset in usable), None) or not usable
    assert timeline.latest_offset() == (usable[-1] if usable else None)
    for offset in range(-2, len(good) + 2):
        if offset in usable:
            found = resolve(timeline, "offset", str(offset))
            assert (found.offset, found.captured_at, found.checkpoint) == (
                offset,
                maxima[offset],
                names[offset],
            )
        else:
            with pytest.raises(PointNotAvailableError) as caught:
                resolve(timeline, "offset", str(offset))
            nearest = caught.value.fields["nearest_offset"]
            best = min((abs(offset - one) for one in usable), default=None)
            assert nearest is None if best is None else abs(offset - nearest) == best
    for name in {name for name in names if name}:
        where = names.index(name)
        if where in usable:
            assert resolve(timeline, "checkpoint", name).offset == where
    for at in {maxima[0] - 1, *maxima, maxima[-1] + 1}:
        meant = max((offset for offset, maximum in enumerate(maxima) if maximum <= at), default=-1)
        if meant in usable:
            assert resolve(timeline, "time", str(at)).offset == meant
        elif usable:
            with pytest.raises(PointNotAvailableError):
                resolve(timeline, "time", str(at))
    covered = []
    for item in timeline.ranges():
        for offset in range(item["first_offset"], item["last_offset"] + 1):
            covered.append(offset)
            assert good[offset] == (item["kind"] == "restorable")
    assert covered == list(range(max(floor, 0), len(good)))
    assert [mark["offset"] for mark in timeline.checkpoints()] == [
        offset for offset in usable if names[offset]
    ]


@given(STEPS, st.integers(0, 60), st.integers(0, 9000), st.lists(st.integers(0, 40), max_size=2))
def test_the_floor_rises_only_where_it_may(steps, milliseconds, byte_limit, pins) -> None:
    timeline, good, _, _ = build(steps)
    usable = [offset for offset, is_good in enumerate(good) if is_good]
    pins = [pin for pin in pins if pin in usable]
    history = History(0, byte_limit)
    floor = timeline.floor_offset
    for _ in range(3):
        target = floor_target(timeline, history, pins)
        assert target >= floor
        assert all(target <= pin for pin in pins)
        if usable and not pins:
            assert timeline.latest_offset() is not None
            assert target <= timeline.latest_offset()
        left = timeline.gap_at(floor) is None
        assert not left or good[target], "a later gap is crossed in one go"
        timeline.drop(target)
        floor = target
        if usable:
            assert timeline.latest_offset() is not None, "a good point is never given up without another"
    if not usable:
        assert floor == len(good) - 1, "without a good point everything is applied at once"
    elif not pins:
        assert floor == usable[-1], "no history asked for: the newest good point"


def test_the_window_keeps_what_is_asked_for() -> None:
    timeline, good, _, maxima = build(["sync"] + ["write"] * 5000)
    first = good.index(True)
    timeline.drop(floor_target(timeline, History(86400, 1 << 40), []))
    assert timeline.floor_offset == first
    seconds = 2
    timeline.drop(floor_target(timeline, History(seconds, 1 << 40), []))
    assert maxima[-1] - maxima[timeline.floor_offset] == seconds * 1_000_000
    assert window_seconds(timeline) == seconds
    total = timeline.bytes.total
    assert floor_target(timeline, History(seconds, total), []) == timeline.floor_offset


def test_the_byte_limit_puts_the_floor_beyond_a_closed_gap_and_never_into_it(monkeypatch) -> None:
    monkeypatch.setattr(envelope, "SAMPLE_BYTES", 1)
    steps = ["sync"] + ["write"] * 10 + ["epoch"] + ["write"] * 50 + ["sync"] + ["write"] * 10
    timeline, good, _, _ = build(steps)
    timeline.drop(good.index(True))
    gap_first = good.index(False, good.index(True))
    gap_next = good.index(True, gap_first)
    targets = {
        floor_target(timeline, History(86400, limit), [])
        for limit in range(0, timeline.bytes.total + 100, 10)
    }
    assert all(good[target] for target in targets)
    assert gap_next in targets
    assert any(target < gap_first for target in targets)


@given(st.lists(st.integers(-50, 100), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 30))
def test_curves(steps, chunk, floor) -> None:
    old = envelope.CHUNK_ENTRIES, envelope.SAMPLE_BYTES
    envelope.CHUNK_ENTRIES, envelope.SAMPLE_BYTES = chunk, 1
    try:
        curve, volume = Envelope(), ByteCurve()
        at, maxima, lengths = 10**15, [], []
        for offset, step in enumerate(steps):
            at += step
            maxima.append(max([at, *maxima[-1:]]))
            curve.note(offset, maxima[-1])
            lengths.append(abs(step) + 1)
            volume.note(offset, lengths[-1])
        floor = min(floor, len(steps) - 1)
        curve.drop(floor)
        volume.drop(floor)
        for offset in range(floor, len(steps)):
            assert curve.at(offset) == maxima[offset]
            assert volume.held_after(offset) == sum(lengths[offset + 1 :])
        for value in range(maxima[floor], maxima[-1] + 2, 7):
            assert curve.next_growth(value) == next(
                (o for o, maximum in enumerate(maxima) if maximum > value), None
            )
        for limit in range(0, volume.total, 9):
            within = volume.first_within(limit)
            assert sum(lengths[within + 1 :]) <= limit < sum(lengths[within:])
    finally:
        envelope.CHUNK_ENTRIES, envelope.SAMPLE_BYTES = old


def test_a_group_is_opened_at_one_instant() -> None:
    one, _, names, maxima = build(["sync", "mark", "write", "mark", "write"])
    two, _, others, _ = build(["sync", "mark", "write"])
    found = resolve_group({"one": one, "two": two}, "latest", "")
    assert {name: point.checkpoint for name, point in found.items()} == {"one": "c1", "two": "c1"}
    assert resolve_group({"one": one}, "latest", "")["one"].offset == len(names) - 1
    assert others[found["two"].offset] == "c1"
    with pytest.raises(PointNotAvailableError):
        resolve_group({"one": one, "two": two}, "time", str(maxima[0]))
    with pytest.raises(UsageError):
        resolve_group({"one": one, "two": two}, "offset", "2")
    with pytest.raises(NotFoundError):
        resolve_group({"one": one, "two": two}, "checkpoint", "c3")
