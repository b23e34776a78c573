"""Entry point of the RepAgent's control process."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from rephub.agent.service import Agent
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.config import Settings
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, then detach everything cleanly.

    Returns:
        Exit code.

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
    agent = Agent(settings, control, journals, bitmaps)
    await agent.start()
    try:
        await stopped.wait()
    finally:
        await agent.stop()
        await control.close()
        await journals.close()
        await bitmaps.close()
