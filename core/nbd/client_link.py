"""One connection of the client: the shell between a transport and the protocol.

Requests made within one loop turn leave in one write. When the connection dies, everything that waits fails at once,
and everything later fails at its call.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import Any, Final, cast

from rephub.core.errors import RephubError, RequestError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import ClientHandshake, ServerOffer
from rephub.core.nbd.client_transmission import ClientTransmission, Pending
from rephub.core.nbd.export import Buffer
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer

REQUESTS_MAX: Final = 64
"""In flight at once; further callers wait. Enough to hide a network's latency; libnbd's default as well."""
WRITE_BUFFER_BYTES: Final = 1 << 20
"""Unsent requests above this make further callers wait."""
CLOSE_SECONDS_MAX: Final = 2.0
"""How long a goodbye may take."""


class ClientLink(asyncio.BufferedProtocol):
    """One connection of a client.

    Args:
        export: name.
        contexts: metadata contexts to ask for.
    """

    def __init__(self, export: str, contexts: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = ReceiveBuffer()
        self._handshake = ClientHandshake(export, contexts, self._buffer)
        self._transmission: ClientTransmission | None = None
        self._waiters: dict[int, asyncio.Future[Pending]] = {}
        self._slots = asyncio.Semaphore(REQUESTS_MAX)
        self._writable = asyncio.Event()
        self._writable.set()
        self._flush_due = False
        self._error: RephubError | None = None
        self.offer: asyncio.Future[ServerOffer] = loop.create_future()
        self.offer.add_done_callback(lambda future: future.cancelled() or future.exception())  # seen
        """Set when the handshake is over; raises what it failed with."""
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def alive(self) -> bool:
        """Whether requests have a chance."""
        return self._error is None and self._transport is not None

    async def perform(
        self, command: int, start: int, length: int, *, flags: int = 0, data: Buffer | None = None
    ) -> Pending:
        """Send one request and wait for its answer.

        Raises:
            RequestError: refused, by the server, or by us because the length cannot travel.
            UnavailableError: the connection is gone.
            ProtocolError: the server broke the protocol.
        """
        if (
            not 0 <= start <= (1 << 64) - 1 - nbd.REQUEST_BYTES_MAX
            or not 0 <= length <= nbd.REQUEST_BYTES_MAX
        ):
            raise RequestError(f"extent {start}+{length} cannot be requested", errno=errno.EINVAL)
        async with self._slots:
            await self._writable.wait()
            if self._error is not None:
                raise _fresh(self._error)
            assert self._transmission is not None
            pending = self._transmission.request(command, start, length, flags=flags, data=data)
            waiter: asyncio.Future[Pending] = self._loop.create_future()
            self._waiters[pending.cookie] = waiter
            if not self._flush_due:
                self._flush_due = True
                self._loop.call_soon(self._flush)
            await waiter
        if pending.errno:
            text = pending.message or os.strerror(pending.errno)
            raise RequestError(f"NBD request {command} at {start}+{length}: {text}", errno=pending.errno)
        return pending

    def abort(self) -> None:
        """Drop the connection; what waits fails."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Fail what waits, say goodbye, close. Never raises."""
        if self._transport is None:
            return
        self._fail(UnavailableError("this NBD client was closed"))
        if self._transmission is not None:
            self._transmission.disconnect()
        self._flush()
        self._transport.close()
        await asyncio.wait([self._gone], timeout=CLOSE_SECONDS_MAX)
        self.abort()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected; the server speaks first."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape only
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES // 4)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the transport receives to."""
        return self._buffer.writable()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._buffer.added(nbytes)
        if self._error is not None:
            self._buffer.discard()
            return
        try:
            if self._transmission is None:
                self._shake_hands()
            else:
                for pending in self._transmission.finished():
                    waiter = self._waiters.pop(pending.cookie)
                    if not waiter.done():
                        waiter.set_result(pending)
        except RephubError as error:
            self._fail(error)
            self.abort()

    def pause_writing(self) -> None:
        """The server does not take requests: callers wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, for whatever reason."""
        self._transport = None
        self._buffer.release()
        self._fail(UnavailableError(f"NBD server closed the connection{f': {exc}' if exc else ''}"))
        if not self._gone.done():
            self._gone.set_result(None)

    def _shake_hands(self) -> None:
        offer = self._handshake.advance()
        self._send(self._handshake.out)
        if offer is not None:
            self._buffer.grow(BUFFER_BYTES)
            self._transmission = ClientTransmission(offer, self._buffer)
            if not self.offer.done():
                self.offer.set_result(offer)

    def _fail(self, error: RephubError) -> None:
        """All that waits fails, now and from here on."""
        self._error = self._error or error
        self._writable.set()
        waiters, self._waiters = self._waiters, {}
        futures: list[asyncio.Future[Any]] = [self.offer, *waiters.values()]
        for future in futures:
            if not future.done():
                future.set_exception(_fresh(error))

    def _flush(self) -> None:
        self._flush_due = False
        if self._transmission is not None:
            self._send(self._transmission.out)

    def _send(self, out: list[Buffer] | list[bytes]) -> None:
        """Write it all; `out` is emptied first, because the transport may call `pause_writing` from within."""
        data = b"".join(out)
        out.clear()
        if data and self._transport is not None:
            self._transport.write(data)


def _fresh(error: RephubError) -> RephubError:
    """The same error again: one instance raised in many tasks would collect the tracebacks of all."""
    return type(error)(error.message, hint=error.hint)
