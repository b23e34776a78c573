"""How things go now: `/api/live` for one look, `/api/stream` for one a second (server-sent events).

Follows `rephub.stats` and `rephub.alerts` beside Faust, which has only what decides; what is shown may be lost, and is read
again from Kafka at the next start. Agents and diskboxes are asked only while somebody looks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from rephub.consumers.daemons import Answers, ask
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import RephubError, UnavailableError, UsageError
from rephub.core.http import document_response
from rephub.core.names import ALERTS_TOPIC, STATS_TOPIC
from rephub.projections.alerts import OpenAlerts
from rephub.projections.catalogue import Catalogue
from rephub.projections.fots import fot_documents
from rephub.projections.series import ROWS_MAX, SECOND_US, Series

PERIOD_SECONDS = 1.0
LOOKED_SECONDS = 5.0
"""Daemons are asked for so long after the last look."""
SILENT_SECONDS = 30.0
"""A view or daemon without a sample for so long is not shown any more."""
RETRY_SECONDS = 1.0
STREAMS_MAX = 64
"""Open at once; each costs a connection and a document a second."""

log = logging.getLogger(__name__)


class Live:
    """The newest of everything.

    Args:
        bootstrap: of Kafka.
        catalogue: the hub's.
    """

    def __init__(self, bootstrap: str, catalogue: Callable[[], Catalogue]) -> None:
        self.series = Series()
        self.alerts = OpenAlerts()
        self._log = KafkaControlLog(bootstrap, topics=(STATS_TOPIC, ALERTS_TOPIC))
        self._catalogue = catalogue
        self._answers: Answers | None = None
        self._asked_at = self._looked_at = 0.0
        self._asking = asyncio.Lock()
        self._ticked = asyncio.Condition()
        self._text = ""
        self._streams = 0
        self._closed = False

    async def run(self) -> None:
        """Follow both topics and tell the streams, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._again(self._follow_stats))
                tasks.create_task(self._again(self._follow_alerts))
                tasks.create_task(self._again(self._tick))
        finally:
            self._closed = True
            await self._log.close()

    async def document(self, seconds: float, rows: int = ROWS_MAX) -> dict[str, Any]:
        """The document of `/api/live`, with so many seconds of each series."""
        self._looked_at = time.monotonic()
        catalogue, answers = self._catalogue(), await self._ask()
        now = time.time_ns() // 1000
        self.series.keep_only(
            {volume.name for volume in catalogue.volumes.values() if not volume.retired},
            now - int(SILENT_SECONDS * SECOND_US),
        )
        return {
            "at": now,
            "volumes": answers.merged(catalogue, [])["volumes"],
            "parts": self.series.parts(),
            "series": self.series.document(now - int(seconds * SECOND_US), rows),
            "fots": fot_documents(catalogue, answers.diskboxes),
            "views": self.series.view_documents(),
            "alerts": self.alerts.to_documents(),
        }

    async def serve_live(self, request: web.Request) -> web.Response:
        """`GET /api/live?seconds=N`."""
        try:
            seconds = float(request.query.get("seconds", "60"))
        except ValueError:
            raise UsageError("seconds is no number", hint="/api/live?seconds=60") from None
        if not 0 <= seconds <= ROWS_MAX:
            raise UsageError(f"seconds is not between 0 and {ROWS_MAX}")
        return document_response(await self.document(seconds))

    async def serve_stream(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/stream`: an event `live` each second."""
        if self._streams >= STREAMS_MAX:
            raise UnavailableError(f"{STREAMS_MAX} pages are open already", hint="close one")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self._streams += 1
        try:
            await response.prepare(request)
            while not self._closed:
                async with self._ticked:
                    await self._ticked.wait()
                await response.write(f"event: live\ndata: {self._text}\n\n".encode())
        except (ConnectionResetError, ConnectionError):  # the page was closed
            pass
        finally:
            self._streams -= 1
        return response

    async def _ask(self) -> Answers:
        """What the daemons say, at most a second old."""
        async with self._asking:
            if self._answers is None or time.monotonic() - self._asked_at >= PERIOD_SECONDS * 0.9:
                self._answers = await ask(self._catalogue())
                self._asked_at = time.monotonic()
            return self._answers

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            if self._streams:
                self._text = json.dumps(await self.document(2 * PERIOD_SECONDS, rows=1))
            async with self._ticked:
                self._ticked.notify_all()

    async def _follow_stats(self) -> None:
        self.series = Series()
        since = time.time_ns() // 1000 - ROWS_MAX * SECOND_US
        async for entries in self._log.tail(STATS_TOPIC, await self._log.offset_at(STATS_TOPIC, since)):
            for _, record in entries:
                self.series.apply(record)

    async def _follow_alerts(self) -> None:
        self.alerts = OpenAlerts()
        async for entries in self._log.tail(ALERTS_TOPIC, 0):
            for offset, record in entries:
                self.alerts.apply(offset, record)

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin anew whatever happens: a page that shows nothing is no reason to end the hub."""
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - see above
                reason = error.message if isinstance(error, RephubError) else repr(error)
                log.warning("the live page stands still", extra={"reason": reason})
            await asyncio.sleep(RETRY_SECONDS)
