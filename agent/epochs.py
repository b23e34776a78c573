"""Finding and taking the next epoch of a volume; the journal itself is the authority.

Rule (the same as the projector's): an `EpochStarted` is valid if its epoch follows the one that is current at its
offset. Where the records before are gone, the first one is believed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from rephub.core.codec import decode_journal, encode_journal, peek
from rephub.core.errors import ConflictError, IntegrityError
from rephub.core.journal.port import JournalReader, JournalStore
from rephub.schemas.journal import EpochStarted

CLAIMS_MAX = 5
"""Attempts at an epoch before giving up: each failure means that somebody else attached at that moment."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hint:
    """An offset at which an epoch was known to be current; offset -1: nothing is known."""

    epoch: int = 0
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Claim:
    """An epoch that is ours."""

    epoch: int
    attachment_id: str
    offset: int
    """Of its EpochStarted."""


def started(value: bytes) -> EpochStarted | None:
    """The record as an `EpochStarted`; None if it is any other, or not one that may be used."""
    try:
        if peek(value).type is not EpochStarted:
            return None
        record = decode_journal(value)
    except IntegrityError:
        # Broken and foreign records are the projector's business: it stops at them.
        return None
    return record if isinstance(record, EpochStarted) else None


def follows(record: EpochStarted, epoch: int, *, joining: bool = False) -> bool:
    """Rule: whether the record begins a new epoch where `epoch` is current.

    Args:
        record: as it stands in the journal.
        epoch: current before it.
        joining: records before are unknown, so that `epoch` is only a lower limit.
    """
    if joining:
        return record.epoch > epoch
    return record.epoch == epoch + 1 and record.prev_epoch == epoch


async def scan(
    reader: JournalReader, epoch: int, first_offset: int, next_offset: int, *, joining: bool = False
) -> int:
    """The current epoch at `next_offset`, given the one before `first_offset`.

    Raises:
        IntegrityError: the range is not in the journal.
        UnavailableError: no broker answers in time.
    """
    at = first_offset
    while at < next_offset:
        for stored in await reader.fetch(at):
            if at <= stored.journal_offset < next_offset:
                record = started(bytes(stored.value))
                if record is not None and follows(record, epoch, joining=joining):
                    epoch, joining = record.epoch, False
            at = max(at, stored.journal_offset + 1)
    return epoch


async def current_epoch(reader: JournalReader, hints: list[Hint]) -> tuple[int, int]:
    """The current epoch, and the head up to which that is known.

    Args:
        reader: of the journal, started.
        hints: the best first; one that the journal does not bear out is passed over.

    Raises:
        UnavailableError: no broker answers in time.
    """
    first, head = await reader.first_offset(), await reader.next_offset()
    for hint in hints:
        if first <= hint.offset < head and await _holds(reader, hint):
            return await scan(reader, hint.epoch, hint.offset + 1, head), head
    known = max((hint.epoch for hint in hints), default=0) if first else 0
    return await scan(reader, known, first, head, joining=first > 0), head


async def still_holds(journals: JournalStore, volume: str, hint: Hint) -> bool:
    """Whether the journal still has all up to an event that was acked once.

    What lies below its first record was applied before it was deleted. A broker that lost its tail ends before the event,
    or has another one in its place.

    Raises:
        UnavailableError: no broker answers in time.
    """
    reader = journals.reader(volume)
    try:
        await reader.start()
        if hint.offset < await reader.first_offset():
            return True
        return hint.offset < await reader.next_offset() and await _holds(reader, hint)
    finally:
        await reader.close()


async def claim(
    journals: JournalStore, volume: str, hints: list[Hint], attachment_id: str, size_bytes: int, reason: str
) -> Claim:
    """Begin the next epoch: append `EpochStarted`, wait for its ack, and make sure that it counts.

    Args:
        journals: where the volume's journal is.
        volume: name.
        hints: see `current_epoch`.
        attachment_id: 32 hexadecimal digits, fresh.
        size_bytes: of the protected volume now.
        reason: why capture is attached; the timeline shows it.

    Raises:
        ConflictError: others took epoch after epoch.
        IndeterminateError: the append may or may not have landed; try again with a fresh attachment id.
        UnavailableError: no broker answers in time.
        NotFoundError: there is no such journal.
    """
    reader = journals.reader(volume)
    try:
        await reader.start()
        for _attempt in range(CLAIMS_MAX):
            epoch, head = await current_epoch(reader, hints)
            record = EpochStarted(
                crc32c=bytes(4),
                epoch=epoch + 1,
                attachment_id=bytes.fromhex(attachment_id),
                seq=0,
                captured_at=time.time_ns() // 1000,
                prev_epoch=epoch,
                reason=reason,
                size_bytes=size_bytes,
            )
            offset = await _append(journals, volume, encode_journal(record))
            # Ours counts only if nobody's came between the scan and it.
            if await scan(reader, epoch, head, offset) == epoch and await _is_ours(
                reader, offset, attachment_id
            ):
                return Claim(epoch + 1, attachment_id, offset)
            log.warning("epoch was taken by somebody else", extra={"volume": volume, "epoch": epoch + 1})
    finally:
        await reader.close()
    raise ConflictError(
        f"other agents took {CLAIMS_MAX} epochs of volume {volume} one after the other",
        hint="only one agent may protect a volume; look for a second one",
    )


async def _append(journals: JournalStore, volume: str, value: bytes) -> int:
    writer = journals.writer(volume)
    try:
        await writer.start()
        offset = await writer.append([value])
    except BaseException:
        await writer.abandon()
        raise
    await writer.close()
    return offset


async def _is_ours(reader: JournalReader, offset: int, attachment_id: str) -> bool:
    for stored in await reader.fetch(offset):
        if stored.journal_offset == offset:
            record = started(bytes(stored.value))
            return record is not None and record.attachment_id.hex() == attachment_id
    return False


async def _holds(reader: JournalReader, hint: Hint) -> bool:
    """Whether the record at the hint's offset is of its epoch: a broker that lost its tail reuses offsets."""
    for stored in await reader.fetch(hint.offset):
        if stored.journal_offset == hint.offset:
            try:
                return peek(stored.value).epoch == hint.epoch
            except IntegrityError:
                return False
    return False
