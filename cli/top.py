"""`rephub top`: the volumes as they are now, once a second, from the hub's `/api/live`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import PLAIN_WIDTH, Cli, error_document, verb
from rephub.cli.top_frame import SORTS, TRACE_SECONDS, Look, Traces, frame
from rephub.core.errors import RephubError, UnavailableError, UsageError
from rephub.core.fetch import fetch_or_raise
from rephub.core.units import format_duration

PERIOD_SECONDS = 1.0
HUB_SECONDS = 5.0
OVERLAP_SECONDS = 5
"""A look asks for so much of the past, so that one that came late misses nothing."""

SORT_NAMES = [one.title.lower() for one in SORTS]
UP, DOWN = "\x1b[A", "\x1b[B"
KEY_BYTES_MAX = 64


@verb()
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option(
    "--sort", type=click.Choice(SORT_NAMES), default="name", show_default=True, help="Order at first."
)
async def top(cli: Cli, once: bool, sort: str) -> None:
    """Watch all volumes, daemons and alerts; q ends it. With --json one document a second."""
    endpoints = read_endpoints(cli.state_dir)
    if not endpoints.web:
        raise UnavailableError(
            "nothing says where the hub is", hint="set REPHUB_HUB__HOST and REPHUB_HUB__PORT"
        )
    feed = _Feed(endpoints.web)
    look = Look(sort=SORTS[SORT_NAMES.index(sort)])
    if once or cli.json:
        await _print(cli, feed, look, once=once)
    elif not sys.stdout.isatty():
        raise UsageError("there is no terminal to draw on", hint="--once prints one frame, --json documents")
    else:
        await _watch(feed, look)


class _Feed:
    """Looks at the hub, and remembers the last minute."""

    def __init__(self, web: str) -> None:
        self.traces = Traces()
        self.document: dict[str, Any] | None = None
        self.problem = ""
        self._url = f"{web}/api/live"
        self._answered = time.monotonic()

    async def look(self) -> None:
        """Ask once.

        Raises:
            RephubError: the hub did not answer, and never has.
        """
        seconds = TRACE_SECONDS if self.document is None else OVERLAP_SECONDS
        try:
            document = await fetch_or_raise(f"{self._url}?seconds={seconds}", HUB_SECONDS)
        except RephubError as error:
            if self.document is None:
                raise
            silent = format_duration(time.monotonic() - self._answered)
            self.problem = f"the hub has been silent for {silent}: {error.message}"
            return
        self.document, self.problem, self._answered = document, "", time.monotonic()
        self.traces.take(document["series"])


async def _print(cli: Cli, feed: _Feed, look: Look, *, once: bool) -> None:
    while True:
        await feed.look()
        document = feed.document or {}
        if feed.problem:
            cli.emit(error_document(UnavailableError(feed.problem, hint="rephub status")))
        else:
            width = Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
            cli.emit(document, None if cli.json else frame(document, feed.traces, look, width, None))
        if once:
            return
        await asyncio.sleep(PERIOD_SECONDS)


async def _watch(feed: _Feed, look: Look) -> None:
    await feed.look()
    pressed, ended = asyncio.Event(), asyncio.Event()
    console = Console(highlight=False)

    def draw() -> None:
        if feed.document is not None:
            size = console.size
            live.update(
                frame(feed.document, feed.traces, look, size.width, size.height, feed.problem), refresh=True
            )

    async def refresh() -> None:
        while True:
            await feed.look()
            pressed.set()
            await asyncio.sleep(PERIOD_SECONDS)

    def read_keys() -> None:
        data = os.read(sys.stdin.fileno(), KEY_BYTES_MAX)
        if not data or apply_keys(look, data.decode(errors="replace")):
            ended.set()
        pressed.set()

    with _keys_unbuffered(), Live(console=console, screen=True, auto_refresh=False) as live:
        if sys.stdin.isatty():
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), read_keys)
        looking = asyncio.create_task(refresh())
        try:
            while not ended.is_set():
                draw()
                await pressed.wait()
                pressed.clear()
                if looking.done():
                    looking.result()
        finally:
            looking.cancel()
            if sys.stdin.isatty():
                asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


def apply_keys(look: Look, keys: str) -> bool:
    """Do what the keys say; True: end."""
    look.first_row = max(0, look.first_row + keys.count(DOWN) - keys.count(UP))
    keys = keys.replace(UP, "").replace(DOWN, "")
    for key in keys:
        if key == "q":
            return True
        if key == "R":
            look.reverse = not look.reverse
        for one in SORTS:
            if key == one.key:
                look.sort, look.first_row = one, 0
    return False


@contextlib.contextmanager
def _keys_unbuffered() -> Iterator[None]:
    """Keys come one by one and are not shown; afterwards the terminal is as it was."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
