"""Runs one of our Faust applications in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any, Protocol

from rephub.core.errors import RephubError
from rephub.core.stopping import end_within

STOP_SECONDS_MAX = 6.0
"""A stop that Faust does not finish in this time is cut short: the topics hold all there is to lose."""

log = logging.getLogger(__name__)


class Application(Protocol):
    """What `run` needs of a `faust.App`."""

    loop: asyncio.AbstractEventLoop
    crash_reason: BaseException | None

    @property
    def failed(self) -> asyncio.Future[None]:
        """Set to the error that ends it; asked for once it has started."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """End."""

    async def wait_until_stopped(self) -> None:
        """Wait for an end that Faust chose."""


def run(build: Callable[[], Any]) -> int:
    """Run an application.

    Args:
        build: makes it (an `Application`), without starting anything.

    Returns:
        0 after a signal. One that could not stop in STOP_SECONDS_MAX ends the process with 1.

    Raises:
        RephubError: it could not start, or what ended it.
    """
    for name in ("faust", "mode"):
        # Faust draws tables and counts its tasks at INFO; what matters is said by our own loggers.
        logging.getLogger(name).setLevel(logging.ERROR)
    return asyncio.run(_run(build))


async def _run(build: Callable[[], Application]) -> int:
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    app = build()
    app.loop = loop
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await _until_end(app, stopping)
    except Exception as error:
        # Said now: a stop that is cut short says nothing.
        log.error("ends", extra={"reason": _describe(error)})
        raise
    finally:
        end_within(STOP_SECONDS_MAX)
        await _cancelled(starting, stopping)
        await app.stop()
    return 0


async def _until_end(app: Application, stopping: asyncio.Task[bool]) -> None:
    """Return after a signal; raise what ended it."""
    gone = asyncio.create_task(app.wait_until_stopped())
    failed = asyncio.create_task(_result(app.failed))
    try:
        await asyncio.wait({failed, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return
        if app.failed.done():
            app.failed.result()
        raise RephubError(
            f"Faust ended: {_describe(app.crash_reason) if app.crash_reason else 'no reason given'}",
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


def _describe(error: BaseException) -> str:
    """One line about why it ended."""
    return error.message if isinstance(error, RephubError) else f"{type(error).__name__}: {error}"
