"""Serves an `AsyncExport`: one task per request, errors turned into answers, nothing swallowed."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Final

from rephub.core.errors import RequestError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import AsyncExport, Connection, Request
from rephub.core.nbd.transmission import clip

log = logging.getLogger(__name__)

DRAIN_SECONDS_MAX: Final = 10.0
"""How long requests under way may take to end after their connection closed; then they are cancelled."""
_READS: Final = frozenset({nbd.CMD_READ, nbd.CMD_BLOCK_STATUS})


class ExportHandler:
    """A `RequestHandler` in front of an `AsyncExport`.

    Tasks are bounded by the connection's limits on what is in flight. When a connection closes, its reads are
    cancelled; what writes runs to its end, so that an export never sees half of its own operation.
    """

    def __init__(self, export: AsyncExport) -> None:
        self._export = export
        self._tasks: dict[asyncio.Task[None], tuple[Connection, Request]] = {}

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        """Start a task for each."""
        for request in requests:
            task = asyncio.create_task(self._serve(connection, request))
            self._tasks[task] = (connection, request)
            task.add_done_callback(self._tasks.pop)

    def on_close(self, connection: Connection, exc: Exception | None) -> None:  # noqa: ARG002
        """Cancel the connection's reads."""
        for task, (owner, request) in self._tasks.items():
            if owner is connection and request.command in _READS:
                task.cancel()

    async def drain(self) -> None:
        """Wait until no request is under way; after DRAIN_SECONDS_MAX they are cancelled."""
        if not self._tasks:
            return
        _, overdue = await asyncio.wait(list(self._tasks), timeout=DRAIN_SECONDS_MAX)
        for task in overdue:
            command = self._tasks[task][1].command
            log.error("nbd=request_overdue export=%s command=%d", self._export.info.name, command)
            task.cancel()
        if overdue:
            await asyncio.wait(overdue, timeout=DRAIN_SECONDS_MAX)

    async def _serve(self, connection: Connection, request: Request) -> None:
        try:
            await self._perform(connection, request)
        except RequestError as error:
            connection.reply(request.cookie, error.errno or errno.EIO)
        except Exception:
            log.exception(
                "nbd=request_failed export=%s command=%d start=%d length=%d",
                self._export.info.name,
                request.command,
                request.start,
                request.length,
            )
            connection.reply(request.cookie, errno.EIO)

    async def _perform(self, connection: Connection, request: Request) -> None:
        """Do it and answer.

        Raises:
            ValueError: the export returned too little or too much; like all it raises, before anything was answered.
        """
        export = self._export
        command, flags, cookie, start, length, data = request
        fua = bool(flags & nbd.CMD_FLAG_FUA)
        if command == nbd.CMD_READ:
            connection.reply_data(cookie, start, [await export.read(start, length)])
            return
        if command == nbd.CMD_BLOCK_STATUS:
            connection.reply_extents(cookie, clip(await export.block_status(start, length), request))
            return
        if command == nbd.CMD_WRITE:
            assert data is not None
            await export.write(start, data, fua)
        elif command == nbd.CMD_WRITE_ZEROES:
            await export.zero(start, length, not flags & nbd.CMD_FLAG_NO_HOLE, fua)
        elif command == nbd.CMD_TRIM:
            await export.trim(start, length)
            if fua:
                await export.flush()
        else:
            await export.flush()
        connection.reply(cookie)
