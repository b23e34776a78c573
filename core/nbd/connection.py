"""One connection of the server: the shell between a transport and the protocol.

Answers made within one wake-up leave in one write; later ones are collected until the loop's next turn. Bounded both
ways: parsing stops while too much is in flight or while the peer does not take its answers, and reading with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

from rephub.core.errors import ProtocolError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Buffer, Extents, RequestHandler
from rephub.core.nbd.handshake import Exports, ServerHandshake
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer
from rephub.core.nbd.transmission import ServerTransmission

log = logging.getLogger(__name__)

WRITE_BUFFER_BYTES: Final = 1 << 20
"""Unsent answers above this stop reading until they are below a quarter of it."""
LINGER_SECONDS_MAX: Final = 10.0
"""How long a connection that is over may take to send its last answers: a peer that does not read must not keep it."""


class ServerConnection(asyncio.BufferedProtocol):
    """Serves one client; implements `export.Connection`.

    Args:
        exports: what may be asked for.
        opened: called when connected; False refuses the connection.
        closed: called when gone, if `opened` said True.
    """

    def __init__(
        self,
        exports: Exports,
        opened: Callable[[ServerConnection], bool],
        closed: Callable[[ServerConnection], None],
    ) -> None:
        self._opened = opened
        self._closed = closed
        self._accepted = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = ReceiveBuffer()
        self._handshake = ServerHandshake(exports, self._buffer)
        self._deadline: asyncio.TimerHandle | None = None
        self._transmission: ServerTransmission | None = None
        self._handler: RequestHandler | None = None
        self._awake = False
        self._flush_due = False
        self._write_paused = False
        self._read_paused = False
        self._closing = False
        self._exc: Exception | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection is gone."""

    @property
    def handler(self) -> RequestHandler | None:
        """Who serves the requests; None until the handshake is over."""
        return self._handler

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or refuse."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape only
        self._accepted = self._opened(self)
        if not self._accepted:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES // 4)
        self._deadline = self._loop.call_later(nbd.HANDSHAKE_SECONDS_MAX, self._handshake_overdue)
        self._send(self._handshake.out)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the transport receives to."""
        return self._buffer.writable()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._buffer.added(nbytes)
        if self._closing:
            self._buffer.discard()
        elif self._transmission is None:
            self._shake_hands()
        else:
            self._serve()

    def pause_writing(self) -> None:
        """The peer does not take its answers."""
        self._write_paused = True
        self._steer_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._write_paused = False
        if self._transmission is None:
            self._steer_reading()
            self._shake_hands()
        else:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, for whatever reason."""
        self._closing = True
        if self._deadline:
            self._deadline.cancel()
        self._transport = None
        self._buffer.release()
        if self._accepted:
            self._closed(self)
        if self._handler is not None:
            try:
                self._handler.on_close(self, self._exc or exc)
            except Exception:
                log.exception("nbd=on_close_failed")
        if not self.gone.done():
            self.gone.set_result(None)

    # export.Connection

    def reply(self, cookie: int, errno: int = 0) -> None:
        """See `export.Connection`."""
        assert self._transmission is not None
        self._transmission.reply(cookie, errno)
        if not (self._awake or self._flush_due):
            self._flush_later()

    def reply_data(self, cookie: int, start: int, buffers: Sequence[Buffer]) -> None:
        """See `export.Connection`."""
        assert self._transmission is not None
        self._transmission.reply_data(cookie, start, buffers)
        if not (self._awake or self._flush_due):
            self._flush_later()

    def reply_extents(self, cookie: int, extents: Extents) -> None:
        """See `export.Connection`."""
        assert self._transmission is not None
        self._transmission.reply_extents(cookie, extents)
        if not (self._awake or self._flush_due):
            self._flush_later()

    def abort(self) -> None:
        """See `export.Connection`."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Send the answers that were made, then close; `gone` tells when: after LINGER_SECONDS_MAX in any case."""
        if self._transmission is not None:
            self._send(self._transmission.out)
        self._closing = True
        if self._transport is None:
            return
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(LINGER_SECONDS_MAX, self.abort)
        self._transport.close()

    # Handshake

    def _shake_hands(self) -> None:
        if self._write_paused or self._closing:
            return
        try:
            over = self._handshake.advance()
        except ProtocolError as error:
            self._send(self._handshake.out)
            self._fail(error)
            return
        self._send(self._handshake.out)
        if not over:
            return
        negotiated = self._handshake.outcome
        if negotiated is None:
            self.close()
            return
        assert self._deadline is not None
        self._deadline.cancel()
        self._buffer.grow(BUFFER_BYTES)
        self._handler = negotiated.handler
        self._transmission = ServerTransmission(
            negotiated.info,
            self._buffer,
            structured=negotiated.structured,
            block_status=negotiated.block_status,
        )
        log.debug("nbd=serving export=%s structured=%s", negotiated.info.name, negotiated.structured)
        self._serve()

    def _handshake_overdue(self) -> None:
        log.info("nbd=handshake_overdue limit_seconds=%g", nbd.HANDSHAKE_SECONDS_MAX)
        self.abort()

    # Transmission

    def _serve(self) -> None:
        """Parse, hand over, send; until the buffer is empty or a limit is met."""
        transmission, handler = self._transmission, self._handler
        assert transmission is not None
        assert handler is not None
        while not (self._write_paused or self._closing):
            requests = transmission.requests()
            if requests:
                self._awake = True
                try:
                    handler.on_requests(self, requests)
                except Exception as error:
                    log.exception("nbd=handler_failed: the connection is dropped")
                    self._exc = error
                    self.abort()
                    return
                finally:
                    self._awake = False
            if transmission.out:
                self._send(transmission.out)
            if transmission.error:
                self._fail(transmission.error)
                return
            if not transmission.blocked or transmission.full:
                break
        if transmission.disconnecting or transmission.blocked or self._read_paused:
            self._steer_reading()

    def _steer_reading(self) -> None:
        """Pause or resume reading, as the limits say; close once a leaving client has its answers."""
        transport, transmission = self._transport, self._transmission
        if transport is None or self._closing:
            return
        if transmission is not None and transmission.disconnecting and not transmission.in_flight:
            self.close()
            return
        pause = self._write_paused or (
            transmission is not None and (transmission.blocked or transmission.disconnecting)
        )
        if pause != self._read_paused:
            self._read_paused = pause
            if pause:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _flush_later(self) -> None:
        self._flush_due = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was answered outside a wake-up, and go on if that made room."""
        self._flush_due = False
        transmission = self._transmission
        assert transmission is not None
        self._send(transmission.out)
        if self._read_paused and not self._closing:
            self._serve()

    def _send(self, out: list[Buffer] | list[bytes]) -> None:
        """Write it all; `out` is emptied first, because the transport may call `pause_writing` from within."""
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._transport is not None and not self._closing:
            self._transport.write(data)

    def _fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol."""
        log.warning("nbd=protocol_error message=%r", error.message)
        self._exc = error
        self.close()
