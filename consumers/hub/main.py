"""Runs the hub in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from rephub.consumers.hub.app import HubApp, build
from rephub.consumers.hub.runtime import describe
from rephub.core.config import Settings
from rephub.core.errors import RephubError
from rephub.core.stopping import end_within

STOP_SECONDS_MAX = 6.0
"""A stop that Faust does not finish in this time is cut short: the log holds all there is to lose."""


def run(settings: Settings) -> int:
    """Run the hub.

    Returns:
        0 after a signal. One that could not stop in STOP_SECONDS_MAX ends the process with 1.

    Raises:
        UnavailableError: Kafka does not answer.
        FencedError: another hub took over.
    """
    for name in ("faust", "mode"):
        # Faust draws tables and counts its tasks at INFO; what matters is said by our own loggers.
        logging.getLogger(name).setLevel(logging.ERROR)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    app = build(settings)
    app.loop = loop
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await _until_end(app, stopping)
    finally:
        end_within(STOP_SECONDS_MAX)
        await _cancelled(starting, stopping)
        await app.stop()
    return 0


async def _until_end(app: HubApp, stopping: asyncio.Task[bool]) -> None:
    """Return after a signal; raise what ended the hub."""
    assert app.hub is not None
    gone = asyncio.create_task(app.wait_until_stopped())
    failed = asyncio.create_task(_result(app.hub.failed))
    try:
        await asyncio.wait({failed, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return
        if app.hub.failed.done():
            app.hub.failed.result()
        raise RephubError(
            f"Faust ended: {describe(app.crash_reason) if app.crash_reason else 'no reason given'}",
            hint="it is started again by `rephub up`, or by the service manager",
        )
    finally:
        await _cancelled(gone, failed)


async def _result(future: asyncio.Future[None]) -> None:
    await future


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """End tasks whose outcome is known by other ways."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
