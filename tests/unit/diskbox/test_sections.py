"""Sections: what a restart takes in from files is what reading the journal gives, and nothing else is taken in."""

from __future__ import annotations

import logging
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from journal_model import JournalModel
from rephub.consumers.diskbox.journal_source import decode
from rephub.consumers.diskbox.position import load_position, save_position
from rephub.core.codec import decode_journal, encode_journal
from rephub.core.journal.port import StoredRecord
from rephub.projections import head as head_module
from rephub.projections.head import Head
from rephub.projections.index import Piece
from rephub.projections.journal_fold import fresh_state
from rephub.projections.section import HEADER, decoded, encoded
from rephub.projections.window import History
from rephub.schemas import journal as j
from volume_site import WAIT, Site, rot

LONG = History(86400, 1 << 30)


@pytest.fixture(autouse=True)
def short_sections(monkeypatch) -> None:
    monkeypatch.setattr(head_module, "SECTION_RECORDS", 7)


def known(head: Head, size: int) -> dict[str, object]:
    """All that can be asked of a head, but for the sampled byte curve."""
    timeline, index = head.timeline, head.index
    offsets = range(timeline.floor_offset, head.offset + 1)
    times = sorted({timeline.captured_at(offset) or 0 for offset in offsets})

    def pieces(offset: int) -> list[Piece]:
        return index.lookup(0, size, offset)

    return {
        "state": asdict(head.state),
        "head": timeline.head_offset,
        "ranges": timeline.ranges(),
        "checkpoints": timeline.checkpoints(),
        "epochs": [epoch for epoch in timeline.epochs() if epoch["first_offset"] > index.applied_offset],
        "at": [timeline.captured_at(offset) for offset in offsets],
        "until": [timeline.last_at_most(at + more) for at in times for more in (-1, 0, 1)],
        "sizes": [timeline.size_at(offset) for offset in offsets],
        "pieces": [pieces(offset) for offset in offsets if offset >= index.applied_offset],
        "count": index.count(index.applied_offset, head.offset),
        "readable": _judging(head),
    }


def _judging(head: Head) -> tuple[object, ...]:
    """Of an attachment that began at or below the applied offset it does not matter how."""
    readable = head._readable
    begun = readable.epoch_offset > head.index.applied_offset
    attachment = (readable.epoch_offset, readable.establishing) if begun else None
    return (readable.judged, readable.whole, attachment)


def read_anew(site: Site) -> Head:
    """A head that reads every record from the applied offset on."""
    projector = site.box.projector
    head = Head(projector.applier.position.applied, projector.floor_offset)
    for offset in range(head.offset + 1, len(site.model.values)):
        _, record = decode(StoredRecord(offset, site.model.values[offset]))
        head.take(offset, record, len(site.model.values[offset]))
    return head


def some_life(model: JournalModel, randomly: random.Random) -> None:
    """A few records of any kind: writes, checkpoints, a new attachment, a sync, fenced events, a damaged one."""
    kind = randomly.choices(
        ["writes", "checkpoint", "epoch", "delta", "full", "fenced", "damaged"], [6, 3, 1, 1, 1, 1, 0.3]
    )[0]
    if kind == "writes":
        model.some_writes(randomly.randint(1, 9))
    elif kind == "checkpoint":
        model.checkpoint(f"c{len(model.values)}")
    elif kind == "epoch":
        model.start_epoch("agent restarted")
    elif kind in ("delta", "full"):
        model.start_epoch("resync")
        model.sync(randomly.randint(0, 4), mode=kind)
    elif kind == "fenced":
        model.put(j.Write, apply=False, attachment_id=bytes(16), start=0, flags=0, data=b"fenced")
    else:
        offset = model.write(0, b"x" * 512)
        model.values[offset] = model.values[offset][:-1] + bytes([model.values[offset][-1] ^ 1])


@pytest.mark.parametrize("seed", range(30))
async def test_a_restart_knows_what_reading_the_journal_gives(tmp_path, seed) -> None:
    """Killed at random, with random windows; compared with a head that reads all records from the applied offset on."""
    randomly = random.Random(seed)
    model = JournalModel(seed=seed)
    model.protect(writes=randomly.randint(0, 30))
    site = Site(tmp_path, model, LONG)
    for _ in range(5):
        projector = await site.start()
        await site.publish()
        for _ in range(randomly.randint(0, 8)):
            some_life(model, randomly)
            await site.publish()
        await site.settle()
        anew = read_anew(site)
        assert known(projector.follower.head, model.size) == known(anew, model.size)
        projector.history = site.history = replace(LONG, bytes=randomly.choice([1 << 30, 300_000, 60_000]))
        projector.changed.notify()
        await site.settle()
        await site.kill()


async def with_sections(tmp_path, monkeypatch) -> tuple[Site, list[int]]:
    """A volume with a window of many sections whose diskbox ended, and what lives after it read record by record."""
    model = JournalModel()
    model.protect(writes=0)
    site = Site(tmp_path, model, LONG)
    await site.start()
    await site.publish()
    await site.settle()
    model.some_writes(100)
    await site.publish()
    await site.settle()
    await site.kill()
    read: list[int] = []
    take = Head.take

    def counting(head: Head, journal_offset: int, *rest):
        read.append(journal_offset)
        return take(head, journal_offset, *rest)

    monkeypatch.setattr(Head, "take", counting)
    return site, read


def files(site: Site) -> list[Path]:
    return sorted((site.directory / "index").iterdir())


async def is_right(site: Site) -> None:
    """Each point of the window reads as the events up to it."""
    await site.settle()
    timeline = site.box.projector.timeline
    for offset in range(timeline.earliest_offset(), site.model.last + 1):
        assert await site.read(offset) == site.model.image_at(offset), offset


async def test_a_restart_reads_only_what_no_section_holds(tmp_path, monkeypatch) -> None:
    site, read = await with_sections(tmp_path, monkeypatch)
    await site.start()
    await is_right(site)
    assert len(read) < 14 < len(site.model.values)
    assert read == sorted(read)
    site.model.some_writes(20)
    await site.publish()
    await site.settle()
    await site.kill()
    del read[:]
    await site.start()
    await is_right(site)
    assert len(read) < 14
    await site.kill()


async def test_sections_below_the_applied_offset_go(tmp_path, monkeypatch) -> None:
    site, _ = await with_sections(tmp_path, monkeypatch)
    before = files(site)
    site.history = History(0, 1 << 30)
    projector = await site.start()
    await site.settle()
    assert len(before) > 10
    assert all(int(path.stem) > projector.applier.applied_offset for path in files(site))
    await site.kill()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "strange", "missing", "renamed"])
async def test_a_damaged_section_costs_time_and_nothing_else(tmp_path, monkeypatch, damage) -> None:
    site, read = await with_sections(tmp_path, monkeypatch)
    paths = files(site)
    victim = paths[len(paths) // 2]
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "renamed":
        victim.rename(victim.with_stem(f"{int(victim.stem) - 1:020d}"))
    else:
        flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        victim.write_bytes(
            {"flipped": flipped, "cut": content[:-1], "empty": b"", "strange": b"x" * 4096}[damage]
        )
    (victim.parent / "00000000000000000007.new").write_bytes(b"half")
    await site.start()
    await is_right(site)
    assert 7 < len(read) < len(site.model.values)
    assert not list(victim.parent.glob("*.new"))
    await site.kill()


async def test_sections_of_another_journal_are_not_taken_in(tmp_path, monkeypatch, caplog) -> None:
    """As after the topic was restored from an older copy: the same offsets, other records."""
    site, _ = await with_sections(tmp_path, monkeypatch)
    for offset in range(site.model.last - 60, site.model.last + 1):
        record = decode_journal(site.model.values[offset])
        site.store.corrupt("v", offset, encode_journal(replace(record, captured_at=record.captured_at + 1)))
    caplog.set_level(logging.WARNING)
    projector = await site.start()
    await site.settle()
    assert "of_another_life" in caplog.text
    assert projector.timeline.captured_at(site.model.last) == site.model.at + 1
    await site.kill()


async def test_sections_of_another_fold_are_not_taken_in(tmp_path, monkeypatch) -> None:
    """The volume was made anew at an offset within: points before its first sync are not good, whatever sections say."""
    site, _ = await with_sections(tmp_path, monkeypatch)
    offset = int(files(site)[5].stem) - 1
    position = load_position(site.directory)
    applied = fresh_state(offset, site.model.size, epoch=position.applied.epoch, joining=True)
    save_position(site.directory, replace(position, applied=applied, intent_offset=offset))
    projector = await site.start()
    await site.settle()
    assert projector.timeline.latest_offset() is None
    await site.kill()


async def test_a_journal_that_ends_before_its_sections(tmp_path, monkeypatch) -> None:
    site, _ = await with_sections(tmp_path, monkeypatch)
    del site.store.journal("v").values[-40:]
    del site.model.values[-40:]
    projector = await site.start()
    await is_right(site)
    assert projector.head_offset == site.model.last
    await site.kill()


async def test_rot_ends_the_sections_of_this_life(tmp_path, monkeypatch) -> None:
    site, _ = await with_sections(tmp_path, monkeypatch)
    projector = await site.start()
    await site.settle()
    rot(site, site.model.last - 50)
    projector.history = History(0, 1 << 30)
    projector.changed.notify()
    await projector.changed.wait_for(lambda: projector.poison is not None, WAIT, "poison")
    site.model.some_writes(20)
    await site.publish()
    await projector.catch_up()
    assert not files(site)
    await site.kill()


async def test_a_disk_that_takes_no_section_stops_nothing(tmp_path, caplog) -> None:
    model = JournalModel()
    model.protect()
    site = Site(tmp_path, model, LONG)
    await site.start()
    await site.publish()
    await site.settle()
    model.some_writes(50)
    (site.directory / "index").write_bytes(b"a file where the directory should be")
    caplog.set_level(logging.WARNING)
    await site.publish()
    await is_right(site)
    assert caplog.text.count("section not written") == 1
    await site.kill()


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.booleans(),
)
@settings(max_examples=300)
def test_no_content_but_a_section_is_decoded(changes, cut) -> None:
    """With the checksum put right: what is decoded can be looked up in, or it is a ValueError."""
    content = bytearray(SECTION)
    for at, value in changes:
        content[HEADER.size + at % (len(content) - HEADER.size)] = value
    if cut:
        del content[HEADER.size + changes[0][0] % (len(content) - HEADER.size) :]
    magic, _, length = HEADER.unpack_from(content)
    HEADER.pack_into(content, 0, magic, crc32c(content[HEADER.size :]), length)
    try:
        section = decoded(bytes(content))
    except ValueError:
        return
    assert section.last_offset >= section.first_offset
    if section.segment is not None:
        list(section.segment.rows(0, 1 << 40, -1, 1 << 40))


def a_section() -> bytes:
    model = JournalModel()
    model.protect(writes=5)
    model.checkpoint("c")
    head = Head(fresh_state(-1, model.size), -1)
    for offset, value in enumerate(model.values):
        head.take(offset, decode_journal(value), len(value))
    section = head.cut()
    assert section is not None
    content = encoded(section)
    again = decoded(content)
    assert again.facts == section.facts
    assert encoded(again) == content
    return content


SECTION = a_section()
