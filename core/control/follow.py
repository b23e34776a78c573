"""Fold a topic into state and act after each batch: the main loop of every daemon's control side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from rephub.core.codec import ControlRecord
from rephub.core.control.port import ControlLog


async def follow(
    log: ControlLog,
    topic: str,
    first_offset: int,
    apply: Callable[[int, ControlRecord], object],
    after_batch: Callable[[], Awaitable[None]],
) -> None:
    """Apply every record from `first_offset` on, in order; after what was there is applied, act.

    `after_batch` runs once when the records that existed at the call are folded (also if there were none),
    and then after each batch. It never runs on a state older than the head at the call: a restarted daemon
    does not act on its past. Runs until cancelled or until either callable raises.

    Args:
        log: where from; already started.
        topic: name of the topic.
        first_offset: of the first record that the state does not hold yet.
        apply: folds one record; pure.
        after_batch: compares the state with the world and does what is missing.

    Raises:
        UnavailableError: at the start, no broker answers in time. Later outages are waited for.
        IntegrityError: `first_offset` is not in the log.
    """
    head = await log.next_offset(topic)
    for offset, record in await log.read(topic, first_offset, head):
        apply(offset, record)
    await after_batch()
    async for entries in log.tail(topic, max(first_offset, head)):
        for offset, record in entries:
            apply(offset, record)
        await after_batch()
