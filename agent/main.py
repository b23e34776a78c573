"""Entry point of the RepAgent's control process."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from rephub.agent.rival import check_alone
from rephub.agent.service import Agent
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.config import Settings
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.stopping import end_within
from rephub.infra.kafka.topics import JOURNAL_CONFIG

STOP_SECONDS_MAX = 22.0
"""Longest end: each volume has 8 s for a clean detach and at most 17 more to let its worker go, side by side; beyond
that the process ends at once. Its workers end with it, which frees every guest, and the next start cleans up."""


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, then detach everything cleanly.

    Returns:
        Exit code. One that could not stop in STOP_SECONDS_MAX ends the process with 1.

    Raises:
        RephubError: it could not start.
    """
    uvloop.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    control = KafkaControlLog(settings.kafka.bootstrap)
    journals = KafkaJournalStore(settings.kafka.bootstrap, JOURNAL_CONFIG)
    bitmaps = RedisBitmapStore(settings.redis.url)
    try:
        await check_alone(bitmaps, settings.agent.id)
    except BaseException:
        await bitmaps.close()
        raise
    agent = Agent(settings, control, journals, bitmaps)
    await agent.start()
    try:
        await stopped.wait()
    finally:
        end_within(STOP_SECONDS_MAX)
        await agent.stop()
        await control.close()
        await journals.close()
        await bitmaps.close()
