"""Taking an epoch: the journal decides, whatever the hints say and whoever else tries."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from rephub.agent.epochs import Hint, claim, current_epoch, still_holds
from rephub.core.codec import decode_journal, encode_journal
from rephub.core.errors import IndeterminateError, NotFoundError
from rephub.core.journal.memory import Fault, MemoryJournalStore
from rephub.projections.journal_fold import JournalFold, fresh_state
from rephub.schemas import journal as jr


def fresh_id() -> str:
    return uuid.uuid4().hex


async def store() -> MemoryJournalStore:
    journals = MemoryJournalStore()
    await journals.create("v")
    return journals


async def append(journals: MemoryJournalStore, *events: jr.Record) -> int:
    writer = journals.writer("v")
    await writer.start()
    return await writer.append([encode_journal(event) for event in events])


def started(epoch: int, prev_epoch: int) -> jr.EpochStarted:
    return jr.EpochStarted(
        crc32c=bytes(4), epoch=epoch, attachment_id=uuid.uuid4().bytes, seq=0, captured_at=0,
        prev_epoch=prev_epoch, reason="other", size_bytes=1,
    )  # fmt: skip


def folded_epoch(journals: MemoryJournalStore) -> tuple[int, str]:
    """What the projector makes of the journal."""
    state = fresh_state(-1, 1)
    for offset, value in enumerate(journals.journal("v").values):
        JournalFold(state).feed(offset, decode_journal(value))
    return state.epoch, state.attachment_id


async def test_epochs_grow_by_one_and_the_projector_agrees() -> None:
    journals = await store()
    for epoch in (1, 2, 3):
        mine = fresh_id()
        taken = await claim(journals, "v", [], mine, 1, "test")
        assert (taken.epoch, taken.offset) == (epoch, epoch - 1)
        assert folded_epoch(journals) == (epoch, mine)


async def test_of_two_at_once_both_get_an_epoch_of_their_own() -> None:
    journals = await store()
    ids = [fresh_id() for _ in range(4)]
    taken = await asyncio.gather(*(claim(journals, "v", [], mine, 1, "race") for mine in ids))
    assert len({item.epoch for item in taken}) == 4
    last = max(taken, key=lambda item: item.epoch)
    assert folded_epoch(journals) == (last.epoch, last.attachment_id)


async def test_an_invalid_start_is_not_believed() -> None:
    journals = await store()
    await append(journals, started(1, 0), started(1, 0), started(7, 6), started(2, 1))
    assert (await claim(journals, "v", [], fresh_id(), 1, "test")).epoch == 3


@pytest.mark.parametrize("hint", [Hint(2, 1), Hint(2, 99), Hint(5, 0), Hint(0, -1)])
async def test_wrong_hints_do_no_harm(hint: Hint) -> None:
    journals = await store()
    await append(journals, started(1, 0), started(2, 1), started(3, 2))
    reader = journals.reader("v")
    await reader.start()
    assert await current_epoch(reader, [hint]) == (3, 3)


async def test_behind_a_trimmed_log_the_first_start_is_believed() -> None:
    journals = await store()
    await append(journals, *(started(epoch, epoch - 1) for epoch in range(1, 6)))
    await journals.delete_records("v", 3)
    reader = journals.reader("v")
    await reader.start()
    assert await current_epoch(reader, [Hint(1, 0)]) == (5, 5)
    await journals.delete_records("v", 5)
    assert await current_epoch(reader, [Hint(5, 4)]) == (5, 5), "the hint is all that is left"


async def test_unknown_outcome_and_missing_journal() -> None:
    journals = await store()
    journals.fault = lambda _volume, _values: Fault(acked=False)
    with pytest.raises(IndeterminateError):
        await claim(journals, "v", [], fresh_id(), 1, "test")
    journals.fault = None
    assert (await claim(journals, "v", [], fresh_id(), 1, "test")).epoch == 2, "it had landed"
    with pytest.raises(NotFoundError):
        await claim(journals, "none", [], fresh_id(), 1, "test")


async def test_a_journal_still_holds_what_was_acked_unless_it_lost_it() -> None:
    journals = await store()
    for epoch in (1, 2):
        await append(journals, started(epoch, epoch - 1))
    assert await still_holds(journals, "v", Hint(2, 1))
    assert not await still_holds(journals, "v", Hint(2, 2)), "its tail is lost"
    assert not await still_holds(journals, "v", Hint(1, 1)), "its offsets were used again"
    await journals.admin().delete_records("v", 2)
    assert await still_holds(journals, "v", Hint(1, 0)), "what is deleted was applied before"
