"""The detector on made-up streams; on recorded ones: test_detection.py."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from attack_traces import sample
from rephub.projections.attack import BEFORE_US, QUIET_US, AttackDetector, Suspicion
from rephub.schemas.stats import CaptureSample

SECOND = 1_000_000
BEGIN = 1_700_000_000 * SECOND


class Feed:
    """A detector and a clock."""

    def __init__(self) -> None:
        self.detector, self.at = AttackDetector(), BEGIN

    def __call__(self, seconds: int, blocks: int, random: int = 0, turned: int = 0) -> Suspicion | None:
        suspicion = None
        for _ in range(seconds):
            self.at += SECOND
            suspicion = self.detector.note(made(self.at, blocks, random, turned))
        return suspicion


def made(at: int, blocks: int, random: int = 0, turned: int = 0) -> CaptureSample:
    """What is not random packs to 0.3."""
    packed = random + 0.3 * (blocks - random)
    return sample(at=at, sampled_blocks=blocks, packed_sum=packed, random_blocks=random, turned_blocks=turned)


def learnt() -> Feed:
    feed = Feed()
    assert feed(60, 10) is None
    return feed


def test_encryption_in_place_is_suspected_and_the_point_is_before_it() -> None:
    feed = learnt()
    began = feed.at
    suspicion = feed(5, 20, random=15, turned=12)
    assert suspicion is not None
    assert suspicion.since_us == began - BEFORE_US
    assert suspicion.score >= suspicion.threshold
    assert "89%" in suspicion.text
    assert "usual: 0%" in suspicion.text


def test_encrypted_copies_are_suspected() -> None:
    feed = learnt()
    assert feed(5, 20, random=19) is not None


def test_a_slow_attack_takes_longer_and_not_more() -> None:
    def blocks_until(each: int) -> int:
        feed = learnt()
        for seconds in range(1, 1000):
            if feed(1, each, random=each, turned=each):
                return seconds * each
        raise AssertionError

    assert blocks_until(1) <= blocks_until(8) <= blocks_until(1) + 8


def test_less_evidence_is_not_enough_while_nothing_is_learnt() -> None:
    def blocks_until(feed: Feed) -> int:
        return next(number for number in range(1, 1000) if feed(1, 1, random=1, turned=1))

    assert blocks_until(Feed()) > 2 * blocks_until(learnt())


def test_compressed_media_in_space_that_files_left_are_no_attack() -> None:
    feed = learnt()
    for _ in range(30):
        feed.at += SECOND
        # Some of it looks random, over text, and the rest does not pack either.
        media = sample(at=feed.at, sampled_blocks=60, packed_sum=59.0, random_blocks=35, turned_blocks=20)
        assert feed.detector.note(media) is None


def test_what_is_usual_for_a_volume_is_no_attack() -> None:
    feed = Feed()
    for _ in range(200):
        assert feed(1, 20, random=9, turned=2) is None
    assert feed(60, 20, random=10, turned=3) is None


def test_it_ends_when_all_is_as_usual_and_begins_once() -> None:
    feed = learnt()
    since = set()
    for _ in range(20):
        suspicion = feed(1, 20, random=20, turned=15)
        since |= {suspicion.since_us} if suspicion else set()
    assert len(since) == 1
    assert feed(1, 20) is not None, "hysteresis"
    assert feed(30, 20) is None


def test_it_ends_after_a_long_silence() -> None:
    feed = learnt()
    assert feed(5, 20, random=20, turned=15)
    assert feed(QUIET_US // SECOND - 10, 0)
    assert feed(20, 0) is None


def test_an_alarm_does_not_become_usual() -> None:
    feed = learnt()
    for _ in range(3):
        assert feed(20, 20, random=20, turned=15)
        assert feed(60, 20) is None


def test_late_and_double_samples_change_nothing() -> None:
    one, other = learnt(), learnt()
    one(3, 5, random=3, turned=1)
    for number in range(1, 4):
        attack = made(other.at + number * SECOND, 5, 3, 1)
        other.detector.note(attack)
        other.detector.note(attack)
        other.detector.note(made(attack.at - 7 * SECOND, 50, 50, 50))
    assert one.detector.to_document() == other.detector.to_document()


def test_a_clock_that_is_set_back_does_not_end_detection() -> None:
    feed = learnt()
    feed.at -= 3600 * SECOND
    suspicion = feed(5, 20, random=20, turned=15)
    assert suspicion is not None
    assert suspicion.since_us < feed.at - 4 * SECOND


counts = st.tuples(st.integers(-5, 400), st.integers(-5, 400), st.integers(-5, 400))


@given(
    st.lists(st.tuples(st.integers(-3_700_000_000, 3_700_000_000), counts), max_size=60), st.integers(0, 60)
)
def test_any_stream_is_taken_and_a_document_says_it_all(steps, cut) -> None:
    detector, restored, at = AttackDetector(), AttackDetector(), BEGIN
    for number, (step, (blocks, random, turned)) in enumerate(steps):
        at = max(0, at + step)
        if number == cut:
            restored = AttackDetector.from_document(json.loads(json.dumps(detector.to_document())))
        found = detector.note(made(at, blocks, random, turned))
        if number >= cut:
            assert restored.note(made(at, blocks, random, turned)) == found
        if found:
            assert found.score > 0
            assert found.text


@given(st.lists(st.integers(0, 50), max_size=300))
def test_readable_writes_are_never_suspected(blocks) -> None:
    feed = Feed()
    assert all(feed(1, number) is None for number in blocks)
