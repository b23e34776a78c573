"""Records decoded as runs say the same as records decoded one by one, whatever lies between them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from crc32c import crc32c

from rephub.core.codec import REGISTRY, encode_journal
from rephub.core.codec.runs import (
    RUN_MIN,
    Run,
    between,
    data_bytes,
    decode,
    decode_all,
    first_offset,
    last_offset,
)
from rephub.core.journal.port import StoredRecords
from rephub.projections.envelope import ByteCurve, Envelope
from rephub.projections.head import Head
from rephub.projections.journal_fold import fresh_state
from rephub.projections.section import Section
from rephub.schemas import journal as j

SIZE = 1 << 20


def some_journal(randomly: random.Random) -> list[bytes]:
    """Mostly writes; now and then another event, another attachment, a jump, damage, rubbish, an extent outside."""
    epoch, attachment, seq, at = 0, b"", 0, 1_000_000
    values: list[bytes] = []

    def put(record: type, **fields: object) -> None:
        nonlocal seq
        header = {
            "crc32c": bytes(4),
            "epoch": epoch,
            "attachment_id": attachment,
            "seq": seq,
            "captured_at": at,
        }
        values.append(encode_journal(record(**(header | fields))))
        seq += 1

    def begin() -> None:
        nonlocal epoch, attachment, seq
        epoch, attachment, seq = epoch + 1, randomly.randbytes(16), 0
        put(j.EpochStarted, prev_epoch=epoch - 1, reason="r", size_bytes=SIZE)
        put(j.SyncStarted, mode="full", total_bytes=SIZE)
        put(j.SyncCompleted, total_bytes=0)

    begin()
    for _ in range(randomly.randint(1, 12)):
        for _ in range(randomly.choice([0, 1, RUN_MIN - 1, RUN_MIN, 40, 200])):
            at += randomly.choice([-5, 0, 1, 1000])
            record = randomly.choice([j.Write, j.Write, j.SyncData])
            size = randomly.choice([1, 512, 4096, 70_000])
            put(record, start=randomly.randrange(SIZE - size), flags=0, data=randomly.randbytes(size))
        kind = randomly.choice(
            ["zero", "epoch", "checkpoint", "jump", "damage", "rubbish", "outside", "stale", "none"]
        )
        if kind == "zero":
            put(j.Zero, start=0, flags=0, length=4096, unmap=True)
        elif kind == "epoch":
            begin()
        elif kind == "checkpoint":
            put(j.Checkpoint, checkpoint="c", group="g", kind="crash", periodic=True)
        elif kind == "jump" and randomly.random() < 0.3:
            seq += 1
        elif kind == "damage" and values:
            number = randomly.randrange(len(values))
            damaged = bytearray(values[number])
            damaged[randomly.randrange(len(damaged))] ^= 1
            values[number] = bytes(damaged)
        elif kind == "rubbish":
            values.insert(
                randomly.randrange(len(values) + 1), randomly.randbytes(randomly.choice([0, 9, 300]))
            )
        elif kind == "outside" and randomly.random() < 0.3:
            put(j.Write, start=SIZE - 1, flags=0, data=b"xx")
        elif kind == "stale":
            put(j.Write, epoch=max(1, epoch - 1), attachment_id=bytes(16), start=0, flags=0, data=b"old")
            seq -= 1
    return values


def one_by_one(item: object) -> list[object]:
    return list(item.events()) if isinstance(item, Run) else [item]


def same(one: tuple, other: tuple) -> bool:
    """Two decoded events, or two reasons."""
    return one[0] == other[0] and (one[1] == other[1] or str(one[1]) == str(other[1]))


@pytest.mark.parametrize("seed", range(60))
def test_runs_say_what_single_records_say(seed) -> None:
    values = some_journal(random.Random(seed))
    records = StoredRecords.of(100, values)
    items = decode_all(records)
    single = [decode(record) for record in records]
    flat = [event for item in items for event in one_by_one(item)]
    assert len(flat) == len(single)
    assert all(map(same, flat, single))
    for item in items:
        events = one_by_one(item)
        assert (first_offset(item), last_offset(item)) == (events[0][0], events[-1][0])
        assert data_bytes(item) == sum(len(getattr(record, "data", b"")) for _, record in events)
        if isinstance(item, Run):
            found = [record for _, record in events]
            assert [item.epoch] * len(item) == [record.epoch for record in found]
            assert {item.attachment_id} == {record.attachment_id for record in found}
            assert list(range(item.seq, item.seq + len(item))) == [record.seq for record in found]
            assert item.captured_at.tolist() == [record.captured_at for record in found]
            assert item.starts.tolist() == [record.start for record in found]
            assert item.data() == [record.data for record in found]
            assert item.last_crc == found[-1].crc32c


@pytest.mark.parametrize("seed", range(60))
def test_a_head_that_takes_runs_knows_what_one_that_takes_records_knows(seed, monkeypatch) -> None:
    monkeypatch.setattr("rephub.projections.index.SEGMENT_EVENTS", 64)
    monkeypatch.setattr("rephub.projections.envelope.CHUNK_ENTRIES", 50)
    randomly = random.Random(seed)
    values = some_journal(randomly)
    heads = [Head(fresh_state(-1, SIZE), -1) for _ in range(2)]
    sections: list[list[Section | None]] = [[], []]

    def cut(number: int) -> None:
        if heads[number].is_cut_due:
            sections[number].append(heads[number].cut())

    at = 0
    while at < len(values):
        records = StoredRecords.of(at, values[at : at + randomly.choice([1, 30, 1000])])
        for offset, record in map(decode, records):
            heads[0].take(offset, record, records.value_bytes(offset))
            cut(0)
        for item in decode_all(records):
            first = 0
            while isinstance(item, Run) and first < len(item):
                part = item.part(first, min(len(item), first + heads[1].room))
                if not heads[1].take_run(part):
                    for offset, record in part.events():
                        heads[1].take(offset, record, records.value_bytes(offset))
                cut(1)
                first += len(part)
            if not isinstance(item, Run):
                heads[1].take(*item, records.value_bytes(item[0]))
                cut(1)
        at += len(records)
    assert heads[0].state == heads[1].state
    assert [facts(section) for section in sections[0]] == [facts(section) for section in sections[1]]
    assert heads[0].timeline.ranges() == heads[1].timeline.ranges()
    for last in range(len(values)):
        assert heads[0].timeline.captured_at(last) == heads[1].timeline.captured_at(last)
        assert heads[0].index.lookup(0, SIZE, last) == heads[1].index.lookup(0, SIZE, last)


def facts(section: Section | None) -> object:
    if section is None:
        return None
    arrays = {} if section.segment is None else section.segment.arrays()
    return section.facts, {name: array.tolist() for name, array in (arrays | section.curves).items()}


@pytest.mark.parametrize("seed", range(30))
def test_between_cuts_items(seed) -> None:
    randomly = random.Random(seed)
    values = some_journal(randomly)
    items = decode_all(StoredRecords.of(10, values))
    for _ in range(20):
        first, last = sorted(randomly.choices(range(5, len(values) + 15), k=2))
        offsets = [offset for item in between(items, first, last) for offset, _ in one_by_one(item)]
        assert offsets == [offset for offset in range(10, 10 + len(values)) if first <= offset <= last]


@pytest.mark.parametrize("seed", range(20))
def test_curves_take_many_as_they_take_one(seed, monkeypatch) -> None:
    """Also over the ends of chunks, and where time jumps farther than a chunk holds."""
    monkeypatch.setattr("rephub.projections.envelope.CHUNK_ENTRIES", 16)
    randomly = random.Random(seed)
    one, many = (Envelope(), ByteCurve()), (Envelope(), ByteCurve())
    offset, at = 5, 10**12
    for _ in range(30):
        times, lengths = [], []
        for _ in range(randomly.randint(1, 40)):
            at += randomly.choice([-10, 0, 3, 3, 3, 1 << 33 if randomly.random() < 0.05 else 1])
            times.append(at)
            lengths.append(randomly.choice([1, 4096, 1 << 20]))
        many[0].note_all(offset, np.array(times, np.int64))
        many[1].note_all(offset, np.array(lengths, np.int64))
        for time, length in zip(times, lengths, strict=True):
            highest = max(time, one[0]._last_at)
            one[0].note(offset, highest)
            one[1].note(offset, length)
            offset += 1
    assert [part.tolist() for part in one[0].after(-1)] == [part.tolist() for part in many[0].after(-1)]
    assert [part.tolist() for part in one[1].after(-1, 0)] == [part.tolist() for part in many[1].after(-1, 0)]
    assert one[1].head == many[1].head


def forged(seq: int, start: int, length: int, rest: bytes) -> bytes:
    """A Write with a right crc and whatever header; negative numbers too."""
    entry = REGISTRY.by_record(j.Write)

    def zigzag(number: int) -> bytes:
        number = (number << 1) ^ (number >> 63)
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*out, number])

    head = zigzag(1) + bytes(16) + b"".join(map(zigzag, (seq, 1000 + seq, start, 0, length)))
    body = head + rest
    return entry.prefix + crc32c(body, entry.prefix_crc).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("start", "length"),
    [((1 << 63) - 1, 512), ((1 << 62), 512), (-1, 512), (SIZE - 1, 512), (0, -512), (0, 0)],
)
def test_a_forged_extent_stops_a_head_that_takes_runs_as_it_stops_one_that_takes_records(
    start, length
) -> None:
    """Also where the sum of start and length does not fit 64 bits, and a length that is negative."""
    header = {"crc32c": bytes(4), "epoch": 1, "attachment_id": bytes(16), "captured_at": 1}
    begun = encode_journal(j.EpochStarted(**header, seq=0, prev_epoch=0, reason="r", size_bytes=SIZE))
    synced = encode_journal(j.SyncStarted(**header, seq=1, mode="full", total_bytes=SIZE))
    good = [forged(2 + number, number * 512, 512, bytes(512)) for number in range(2 * RUN_MIN)]
    good[RUN_MIN] = forged(2 + RUN_MIN, start, length, bytes(max(0, length)))
    records = StoredRecords.of(0, [begun, synced, *good])
    one_by_one_, together = Head(fresh_state(-1, SIZE), -1), Head(fresh_state(-1, SIZE), -1)
    for offset, record in map(decode, records):
        one_by_one_.take(offset, record, records.value_bytes(offset))
    for item in decode_all(records):
        if not isinstance(item, Run) or not together.take_run(item):
            for offset, record in one_by_one(item):
                together.take(offset, record, records.value_bytes(offset))
    assert together.state == one_by_one_.state
    assert together.state.poison_offset == 2 + RUN_MIN
