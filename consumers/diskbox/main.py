"""The diskbox daemon: settings in, exit code out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from aiohttp import web

from rephub.consumers.diskbox.fots import Limits
from rephub.consumers.diskbox.metrics import DiskboxCollector
from rephub.consumers.diskbox.samples import DiskboxSamples
from rephub.consumers.diskbox.service import Diskbox
from rephub.consumers.diskbox.status import point_document, status_document, timeline_document
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.config import Settings
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import RephubError, UnavailableError, UsageError
from rephub.core.http import StatusServer, document_response, whole_number
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.metrics import DaemonCollector, registry_with
from rephub.core.stopping import end_within
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.projections.columns import COLUMNS_MAX

log = logging.getLogger(__name__)

CONNECT_TRIES_MAX = 30
"""Kafka may start beside us; each try has a deadline of its own."""
CONNECT_PAUSE_SECONDS = 1.0

STOP_SECONDS_MAX = 15.0
"""Sections and marks are written at the end; what was not is read from the journal again."""

GC_OBJECTS = 50_000
"""Made before the collector looks at the youngest: more than the views that an answer of 4 MiB is cut into. With Python's
700, a tenth of a promote was its collections."""


def run(settings: Settings) -> int:
    """Run a diskbox until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a clean stop, else the error's.
    """
    try:
        gc.freeze()
        gc.set_threshold(GC_OBJECTS, 20, 20)
        uvloop.run(_run(settings))
    except RephubError as exc:
        log.error("diskbox=%s error=%s hint=%s", settings.diskbox.id, exc.message, exc.hint)
        return exc.exit_code
    return 0


async def _run(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _diskbox(settings) as diskbox:

        async def serve_timeline(request: web.Request) -> web.Response:
            numbers = {
                argument: whole_number(request, name)
                for argument, name in (("columns", "columns"), ("first_at", "from"), ("last_at", "to"))
            }
            if numbers["columns"] is not None and not 1 <= numbers["columns"] <= COLUMNS_MAX:
                raise UsageError(f"columns is not between 1 and {COLUMNS_MAX}", hint="columns=1000")
            return document_response(timeline_document(diskbox, request.match_info["volume"], **numbers))

        async def serve_point(request: web.Request) -> web.Response:
            kind, value = request.query.get("kind", "latest"), request.query.get("value", "")
            return document_response(await point_document(diskbox, request.match_info["volume"], kind, value))

        def status() -> dict[str, Any]:
            return status_document(diskbox)

        samples = DiskboxSamples(settings, status)
        server = StatusServer(
            settings.diskbox.host,
            settings.diskbox.port,
            status,
            {"/timeline/{volume}": serve_timeline, "/point/{volume}": serve_point},
            registry=registry_with(
                DiskboxCollector(status), DaemonCollector(settings.state_dir, samples.publisher)
            ),
        )
        diskbox.url = await server.start()
        log.info("diskbox=%s url=%s", diskbox.name, diskbox.url)
        work = asyncio.create_task(diskbox.run(), name="diskbox")
        sampling = asyncio.create_task(samples.publisher.run(), name="samples")
        stopping = asyncio.create_task(stop.wait(), name="signal")
        try:
            await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            end_within(STOP_SECONDS_MAX)
            for task in (work, stopping, sampling):
                task.cancel()
            await asyncio.wait([work, stopping, sampling])
            await server.stop()
        if not work.cancelled() and (exc := work.exception()) is not None:
            raise exc


@asynccontextmanager
async def _diskbox(settings: Settings) -> AsyncIterator[Diskbox]:
    async with contextlib.AsyncExitStack() as stack:
        control = KafkaControlLog(settings.kafka.bootstrap)
        stack.push_async_callback(control.close)
        await _connect(control)
        store = KafkaJournalStore(settings.kafka.bootstrap, JOURNAL_CONFIG)
        stack.push_async_callback(store.close)
        bitmaps = RedisBitmapStore(settings.redis.url)
        stack.push_async_callback(bitmaps.close)
        yield Diskbox(
            settings.diskbox.id,
            settings.state_dir,
            store,
            control,
            bitmaps,
            limits=Limits(
                settings.diskbox.scratch_bytes,
                settings.diskbox.hydrate_bytes_per_second,
                save=settings.diskbox.pins_at_limit == "save",
            ),
            capacity=settings.diskbox.capacity,
            move_host=settings.diskbox.move_host,
            fold_bytes_per_second=settings.diskbox.fold_bytes_per_second,
        )


async def _connect(control: KafkaControlLog) -> None:
    for number in range(1, CONNECT_TRIES_MAX + 1):
        try:
            await control.start()
        except UnavailableError as exc:
            if number == CONNECT_TRIES_MAX:
                raise
            log.warning("kafka=away try=%d error=%s", number, exc.message)
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return
