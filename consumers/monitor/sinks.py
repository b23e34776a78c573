"""Alert sinks: who is told of an alert beside `rephub.alerts`: the log, webhooks, a command.

Each sink has a queue and a task of its own, so that one which hangs holds up nobody. What is queued lives in memory: an alert
may be lost with the process, and one that is handed over again has the same id, which receivers can tell by.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp

from rephub.core.config import MonitorSettings
from rephub.core.errors import DeadlineError, RephubError, UnavailableError
from rephub.infra.process import kill_session
from rephub.schemas.alerts import AlertCleared, AlertRaised

QUEUED_MAX = 1000
"""Alerts that wait for one sink, some 500 bytes each; beyond it the oldest is dropped."""

RETRY_SECONDS, RETRY_SECONDS_MAX = 0.5, 30.0
"""Between two tries of a webhook: doubled each time, and anything from half of it to all of it."""

TRY_AGAIN = frozenset({408, 425, 429})
"""Of the 4xx, those that say "later" (RFC 9110, 8470, 6585); another one says that the request is wrong."""

ENVIRONMENT_CHARACTERS_MAX = 4096
"""Of one variable of a command: an argument of execve(2) ends at 128 KiB, all together at 2 MiB or less."""

Alert = AlertRaised | AlertCleared

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Tells somebody."""

    name: str
    """For log and figures; holds no secret."""

    async def send(self, alert: Alert) -> None:
        """Hand over one alert; returns when it was taken.

        Raises:
            RephubError: it was not, and will not be.
        """


def document(alert: Alert) -> dict[str, Any]:
    """An alert as JSON: the record's fields, and `kind`: `raised` or `cleared`."""
    return asdict(alert) | {"kind": kind_of(alert)}


def kind_of(alert: Alert) -> str:
    """`raised` or `cleared`."""
    return "raised" if isinstance(alert, AlertRaised) else "cleared"


class LogSink:
    """One line in the log: ERROR for what is critical, WARNING for a warning, else INFO."""

    name = "log"

    async def send(self, alert: Alert) -> None:
        """Never fails."""
        level = logging.INFO
        fields = {"rule": alert.rule, alert.subject_kind: alert.subject, "text": alert.text}
        if isinstance(alert, AlertRaised):
            level = {"critical": logging.ERROR, "warning": logging.WARNING}.get(alert.severity, logging.INFO)
            fields |= {"severity": alert.severity, "hint": alert.hint}
        log.log(level, "alert %s", kind_of(alert), extra=fields | {"alert": alert.alert})


class WebhookSink:
    """POST of the JSON document; header `Idempotency-Key` is the record's id. Redirections are not followed.

    Args:
        url: may hold secrets: only its host is ever said.
        number: tells webhooks of one host apart.
        seconds_max: time limit of one request.
        retry_seconds_max: from the first request on; then the alert is given up. 0: one try.
    """

    def __init__(self, url: str, seconds_max: float, retry_seconds_max: float, number: int = 1) -> None:
        self.name = f"webhook {number} {urlsplit(url).hostname}"
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=seconds_max)
        self._retry_seconds_max = retry_seconds_max

    async def send(self, alert: Alert) -> None:
        """Try until it is taken.

        Raises:
            RephubError: refused for good.
            UnavailableError: not taken in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._retry_seconds_max
        headers = {"Idempotency-Key": alert.id, "User-Agent": "rephub"}
        wait = RETRY_SECONDS
        async with aiohttp.ClientSession(timeout=self._timeout, headers=headers) as session:
            while True:
                why = await self._try(session, alert)
                if not why:
                    return
                pause = wait * random.uniform(0.5, 1.0)
                wait = min(wait * 2, RETRY_SECONDS_MAX)
                if loop.time() + pause > deadline:
                    raise UnavailableError(
                        f"{self.name} did not take it: {why}", hint="check monitor.webhooks and the receiver"
                    )
                log.debug("webhook is tried again", extra={"sink": self.name, "reason": why})
                await asyncio.sleep(pause)

    async def _try(self, session: aiohttp.ClientSession, alert: Alert) -> str:
        """One request; returns why it is to be tried again, empty: it was taken."""
        try:
            # The answer's body is not read.
            async with session.post(self._url, json=document(alert), allow_redirects=False) as answer:
                status = answer.status
        except TimeoutError:
            return f"no answer within {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError) as exc:
            return type(exc).__name__
        if 200 <= status < 300:
            return ""
        if status >= 500 or status in TRY_AGAIN:
            return f"HTTP status {status}"
        raise RephubError(f"{self.name} refuses it: HTTP status {status}", hint="check monitor.webhooks")


class CommandSink:
    """A program with the JSON document on its stdin and its fields as REPHUB_ALERT_…; exit code 0: it was taken.

    What it says goes where the daemon's own stderr goes.

    Args:
        argv: program and arguments; no shell.
        seconds_max: it is killed after so long, with all of its process group.
    """

    def __init__(self, argv: Sequence[str], seconds_max: float) -> None:
        self.name = f"command {argv[0]}"
        self._argv = list(argv)
        self._seconds_max = seconds_max

    async def send(self, alert: Alert) -> None:
        """Run it once.

        Raises:
            UnavailableError: it cannot be started.
            DeadlineError: it was killed.
            RephubError: it failed.
        """
        found = document(alert)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env=os.environ
                | {f"REPHUB_ALERT_{key.upper()}": _word(value) for key, value in found.items()},
                start_new_session=True,
            )
        except OSError as exc:
            raise UnavailableError(
                f"cannot start {self._argv[0]}: {exc.strerror or exc}", hint="check monitor.command"
            ) from exc
        try:
            async with asyncio.timeout(self._seconds_max):
                await process.communicate(json.dumps(found).encode())
        except TimeoutError:
            raise DeadlineError(
                f"{self.name} did not end within {self._seconds_max:g} s and was killed",
                hint="monitor.command_seconds_max is the limit",
            ) from None
        finally:
            if process.returncode is None:
                kill_session(process.pid)
                await process.wait()
        if process.returncode:
            raise RephubError(
                f"{self.name} failed with exit code {process.returncode}", hint="check monitor.command"
            )


def _word(value: object) -> str:
    """As a variable of the environment, which holds no NUL."""
    return "" if value is None else str(value).replace("\0", "")[:ENVIRONMENT_CHARACTERS_MAX]


@dataclass(slots=True)
class Counts:
    """Alerts of one sink since the start."""

    sent: int = 0
    failed: int = 0
    """Given up after their tries."""
    dropped: int = 0
    """The oldest, because too many waited."""


class Sinks:
    """All sinks, each fed from a queue of its own.

    Args:
        sinks: who is told; each has a name of its own.
        queued_max: alerts that wait for one of them.
    """

    def __init__(self, sinks: Sequence[Sink], queued_max: int = QUEUED_MAX) -> None:
        self._lanes = [_Lane(sink, queued_max) for sink in sinks]

    def offer(self, alert: Alert) -> None:
        """Queue an alert for every sink; never waits. Before `run` as well."""
        for lane in self._lanes:
            lane.offer(alert)

    async def run(self) -> None:
        """Feed the sinks until cancelled; never raises but for cancellation, which ends requests and kills a command."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(lane.run(), name=f"sink {lane.sink.name}")

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is queued or under way while `run` runs; False: not within so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for lane in self._lanes:
                    await lane.idle.wait()
        return all(lane.idle.is_set() for lane in self._lanes)

    def stats(self) -> list[dict[str, Any]]:
        """`name`, `queued`, `sent`, `failed`, `dropped` of each, in the order of the settings."""
        return [
            {"name": lane.sink.name, "queued": len(lane.queue)} | asdict(lane.counts) for lane in self._lanes
        ]


class _Lane:
    """One sink, its queue and its task."""

    def __init__(self, sink: Sink, queued_max: int) -> None:
        self.sink = sink
        self.queue: deque[Alert] = deque(maxlen=queued_max)
        self.counts = Counts()
        self.idle = asyncio.Event()
        self.idle.set()
        self._wake = asyncio.Event()

    def offer(self, alert: Alert) -> None:
        if len(self.queue) == self.queue.maxlen:
            self.counts.dropped += 1
            log.error("alert dropped", extra={"sink": self.sink.name, "alert": self.queue[0].alert})
        self.queue.append(alert)
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.queue:
                await self._send(self.queue.popleft())
            self.idle.set()

    async def _send(self, alert: Alert) -> None:
        try:
            await self.sink.send(alert)
        except RephubError as error:
            why = error.message
        except Exception as error:  # noqa: BLE001 - a mistake in one sink is not to silence the others
            why = f"internal error: {error!r}"
        else:
            self.counts.sent += 1
            return
        self.counts.failed += 1
        log.error("alert not delivered", extra={"sink": self.sink.name, "alert": alert.alert, "reason": why})


def sinks_of(settings: MonitorSettings) -> Sinks:
    """The log, and what the settings name."""
    sinks: list[Sink] = [LogSink()]
    sinks += [
        WebhookSink(url, settings.webhook_seconds_max, settings.webhook_retry_seconds_max, number)
        for number, url in enumerate(settings.webhooks, 1)
    ]
    if settings.command:
        sinks.append(CommandSink(settings.command, settings.command_seconds_max))
    return Sinks(sinks)
