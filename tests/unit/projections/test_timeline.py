"""Timeline, points, window and curves against a plain list of what holds at every offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal_model import JournalModel
from rephub.core.codec import decode_journal
from rephub.core.errors import NotFoundError, PointNotAvailableError, UsageError
from rephub.projections import envelope
from rephub.projections import timeline as timeline_module
from rephub.projections.envelope import ByteCurve, Envelope
from rephub.projections.journal_fold import JournalFold, fresh_state
from rephub.projections.points import newest_common, resolve, resolve_group
from rephub.projections.timeline import Mark, Timeline
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


def marked(*marks: Mark) -> Timeline:
    """A timeline with these markers."""
    timeline = Timeline(fresh_state(-1, 8192))
    timeline.head_offset = 1000
    for mark in marks:
        timeline._add_mark(mark)
    return timeline


def periodic(offset: int, name: str, at: int, group: str = "g") -> Mark:
    return Mark(offset, name, at, "crash", periodic=True, group=group)


def test_periodic_markers_of_one_name_are_common_only_if_they_are_of_one_instant() -> None:
    """Two groups, or two agents, may name theirs alike by chance; later the volumes are of one group."""
    one = marked(periodic(3, "auto-1", 7), periodic(5, "auto-2", 9), periodic(8, "auto-3", 11, "alone"))
    two = marked(periodic(4, "auto-1", 7), periodic(6, "auto-2", 10), periodic(9, "auto-3", 11))
    assert newest_common({"one": one, "two": two}, None, lambda _volume, _mark: True) == "auto-1"


def test_too_many_markers_thin_out_alike_in_the_volumes_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_module, "CHECKPOINTS_MAX", 1000)
    one, two = marked(), marked()
    for number in range(5000):
        one._add_mark(periodic(number, f"auto-{number}", number * 5_000_000))
        if number % 100 == 0:
            one._add_mark(Mark(number, f"named-{number}", 0, "crash", periodic=False))
        if number > 900:
            two._add_mark(periodic(number, f"auto-{number}", number * 5_000_000))
    kept = [mark for mark in one.marks_newest_first() if mark.periodic]
    assert len([mark for mark in one.marks_newest_first() if not mark.periodic]) == 50, "names stay"
    assert len(kept) <= 1000
    old = [mark for mark in kept if mark.offset < 2500]
    assert len(old) > 5, "the past is not lost, only coarser"
    assert {mark.checkpoint for mark in kept if mark.offset > 4600} == {
        f"auto-{n}" for n in range(4601, 5000)
    }
    common = [mark for mark in kept if 900 < mark.offset < 2500 and two.mark(mark.checkpoint)]
    assert common, "the volumes of a group keep the same ones"
