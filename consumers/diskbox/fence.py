"""Ends an epoch from the recovery side: an EpochStarted of our own, after which no attachment counts.

The attachment id follows from the promotion or fail-over, so whoever resumes after a kill finds its own fence.
"""

from __future__ import annotations

import time
import uuid

from rephub.consumers.diskbox.projector import Projector
from rephub.core.codec import encode_journal
from rephub.core.errors import ConflictError, IndeterminateError
from rephub.core.journal.port import JournalStore
from rephub.schemas.journal import EpochStarted

TRIES_MAX = 10
"""Each try loses to at most one other writer of the same epoch, and agents detach while we fence."""

_NAMESPACE = uuid.UUID("0d7d2b5c-6b1e-5d39-8f6a-72657068756a")


def fence_id(cause: str, volume: str) -> bytes:
    """The attachment id of a fence."""
    return uuid.uuid5(_NAMESPACE, f"{cause}\n{volume}").bytes


async def fence(store: JournalStore, projector: Projector, cause: str, reason: str) -> None:
    """Append an EpochStarted and read it back; does nothing if it is there.

    Args:
        store: of the journals.
        projector: of the volume; it reads the fence back.
        cause: name of the promotion or fail-over that fences.
        reason: stands in the journal.

    Raises:
        ConflictError: others take every next epoch.
        UnavailableError: no broker answers in time.
    """
    attachment_id = fence_id(cause, projector.volume)
    for _ in range(TRIES_MAX):
        await projector.catch_up()
        state = projector.head.state
        if state.attachment_id == attachment_id.hex():
            return
        record = EpochStarted(
            crc32c=bytes(4), epoch=state.epoch + 1, attachment_id=attachment_id, seq=0,
            captured_at=max(time.time_ns() // 1000, state.captured_at_max), prev_epoch=state.epoch, reason=reason,
            size_bytes=state.size_bytes,
        )  # fmt: skip
        writer = store.writer(projector.volume)
        try:
            await writer.start()
            await writer.append([encode_journal(record)])
            await writer.close()
        except IndeterminateError:
            await writer.abandon()
        except BaseException:
            await writer.abandon()
            raise
    raise ConflictError(f"{projector.volume} could not be fenced: others take every next epoch")
