"""Messages between the control process and a worker: JSON lines over a socketpair. Both sides use this module.

Agents speak the same with each other (`peers.py`).

`{"call": 7, "op": "open", …}` is answered by `{"answer": 7, "result": {…}}` or `{"answer": 7, "error": {…}}`;
`{"notice": "stats", …}` is not answered. No guest data travels here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from rephub.core.errors import DeadlineError, RephubError, UnavailableError, from_dict

MESSAGE_BYTES_MAX = 1 << 20
"""The largest message is the figures of all volumes of a worker: some 300 bytes each."""

CALLS_MAX = 1000
"""Calls under way on one channel; more means that the peer does not answer."""

Document = dict[str, Any]

log = logging.getLogger(__name__)


class Channel:
    """One end.

    Args:
        sock: this end's socket; the channel owns it.
        serve: answers the peer's calls; a RephubError travels to the caller.
        notice: takes the peer's notices.
        peer: what the other end is, for errors.
    """

    def __init__(
        self,
        sock: socket.socket,
        serve: Callable[[str, Document], Awaitable[Document]],
        notice: Callable[[str, Document], None],
        peer: str = "the worker process",
    ) -> None:
        self._peer = peer
        self._sock = sock
        self._serve = serve
        self._notice = notice
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pending: dict[int, asyncio.Future[Document]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._next_call = 0
        self._closed = False

    async def open(self) -> None:
        """Make the end ready for `call`, `notify` and `run`."""
        connect = (
            asyncio.open_unix_connection if self._sock.family == socket.AF_UNIX else asyncio.open_connection
        )
        self._reader, self._writer = await connect(sock=self._sock, limit=MESSAGE_BYTES_MAX)

    async def run(self) -> None:
        """Serve until the peer is gone; calls under way then fail with UnavailableError."""
        assert self._reader is not None
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except (ConnectionError, ValueError) as exc:
            # ValueError: no JSON, or a line beyond the limit; the peer is ours, so it is broken.
            log.warning("channel ends", extra={"error": str(exc)})
        finally:
            self.close()

    def close(self) -> None:
        """End the channel; the peer sees its end."""
        self._closed = True
        if self._writer:
            self._writer.close()
        else:
            self._sock.close()
        for task in self._serving:
            task.cancel()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(UnavailableError(f"{self._peer} ended"))
        self._pending.clear()

    async def call(self, op: str, deadline_seconds: float, **fields: Any) -> Document:
        """Ask the peer and wait for its answer.

        Raises:
            RephubError: what the peer raised.
            UnavailableError: the peer is gone, or has too many calls under way.
            DeadlineError: no answer in time; what the peer does about the call is unknown.
        """
        if self._closed or len(self._pending) >= CALLS_MAX:
            raise UnavailableError(f"{self._peer} does not take calls")
        self._next_call += 1
        number = self._next_call
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        self._send({"call": number, "op": op} | fields)
        try:
            async with asyncio.timeout(deadline_seconds):
                result: Document = await future
                return result
        except TimeoutError:
            raise DeadlineError(
                f"{self._peer} did not answer {op!r} within {deadline_seconds:g} s",
                hint="the watchdog ends a worker that hangs; the volume is attached anew",
            ) from None
        finally:
            self._pending.pop(number, None)

    def notify(self, notice: str, **fields: Any) -> None:
        """Tell the peer; nothing comes back."""
        if not self._closed:
            self._send({"notice": notice} | fields)

    def _send(self, document: Document) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(document).encode() + b"\n")

    def _take(self, document: Document) -> None:
        if "answer" in document:
            future = self._pending.pop(document["answer"], None)
            if future and not future.done():
                if "error" in document:
                    future.set_exception(from_dict(document["error"]))
                else:
                    future.set_result(document["result"])
        elif "notice" in document:
            self._notice(document.pop("notice"), document)
        else:
            task = asyncio.create_task(self._answer(document.pop("call"), document.pop("op"), document))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _answer(self, number: int, op: str, fields: Document) -> None:
        try:
            answer: Document = {"answer": number, "result": await self._serve(op, fields)}
        except RephubError as exc:
            answer = {"answer": number, "error": exc.to_dict()}
        except Exception as exc:
            log.exception("call failed", extra={"op": op})
            answer = {"answer": number, "error": RephubError(f"{op}: {exc!r}").to_dict()}
        if not self._closed:
            self._send(answer)
