"""Requests and responses on one connection that aiokafka opened, without its copies.

aiokafka resolves names, secures and authenticates the connection and learns the broker's versions; then a `Wire` takes
the transport over. A request of 1 MiB is copied eight times by aiokafka on its way out and a response five times on its
way in; here a batch is joined once, and a long answer is received in place. Measured: docs/data-path.md.

Requests are answered in the order in which they were sent (Kafka protocol guide, "Network").
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np
from aiokafka import errors as kafka_errors

STAGE_BYTES: Final = 64 << 10
"""Short answers are received here; what is longer gets a buffer of its own."""
RESPONSE_BYTES_MAX: Final = 128 << 20
"""Far above any answer to what is asked for here; a longer one is no Kafka."""
SLICE_BYTES: Final = 64 << 10
"""Handed to the kernel at once: over loopback, the receiving side's work is done in the same call, some 30 µs of it."""
IN_PLACE_BYTES: Final = 32 << 10
"""A field at least as long is given as a view into the answer; no text is as long (its length has 15 bits)."""

_SIZE = struct.Struct(">i")

Payload = bytes | bytearray | memoryview


class _Pending(NamedTuple):
    correlation_id: int
    request: Any
    answer: asyncio.Future[Any]


class _Encoded(NamedTuple):
    """A request as bytes; its correlation id lies behind the API's key and version, in 4 bytes each header has there."""

    request: Any
    prepared: Any
    message: bytes


class Wire(asyncio.BufferedProtocol):
    """A connection to one broker.

    Args:
        conn: an `AIOKafkaConnection` that is connected and has no request under way; not to be used any more.
    """

    def __init__(self, conn: Any) -> None:
        self._versions = conn._versions
        self._client_id = conn._client_id
        self._loop = asyncio.get_running_loop()
        self._stage = memoryview(bytearray(STAGE_BYTES))
        self._staged = 0
        self._answer: memoryview | None = None
        """A long one, of which `_filled` bytes are there."""
        self._filled = 0
        self._pending: deque[_Pending] = deque()
        self._unsent: deque[Payload] = deque()
        """Not handed to the transport yet."""
        self._last_id = conn._correlation_id
        self._encoded = _Encoded(None, None, b"")
        """The last one: a producer sends the same request again and again."""
        # The writer is kept: later Pythons close what a forgotten one wrote to.
        self._writer, conn._writer, conn._reader = conn._writer, None, None
        conn._read_task.cancel()
        self._transport = cast("asyncio.Transport", self._writer.transport)
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return not self._transport.is_closing()

    def send(self, request: Any, last_field: Sequence[Payload] = ()) -> asyncio.Future[Any]:
        """Send a request; the future is its response.

        Args:
            request: of `aiokafka.protocol`. The same one as before is not encoded anew.
            last_field: pieces of the bytes of the request's last field, which is empty in `request`.

        Raises:
            KafkaConnectionError: the connection is closed.
        """
        if not self.is_open:
            raise kafka_errors.KafkaConnectionError("the connection is closed")
        if request is not self._encoded.request:
            self._encoded = self._encode(request)
        prepared, message = self._encoded.prepared, self._encoded.message
        self._last_id = (self._last_id + 1) & 0x7FFFFFFF
        length = sum(map(len, last_field))
        if last_field:
            message = message[:-4] + _SIZE.pack(length)
        size = _SIZE.pack(len(message) + length)
        message = b"".join((size, message[:4], _SIZE.pack(self._last_id), message[8:]))
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(_Pending(self._last_id, prepared, answer))
        idle = not self._unsent
        self._unsent.append(message)
        for piece in last_field:
            view = memoryview(piece)
            self._unsent += (view[at : at + SLICE_BYTES] for at in range(0, len(view), SLICE_BYTES))
        if idle:
            self._send_slice()
        return answer

    def _send_slice(self) -> None:
        """Hand over about as much as a slice; the next one in the loop's next turn."""
        pieces: list[Payload] = []
        size = 0
        while self._unsent and size < SLICE_BYTES:
            pieces.append(self._unsent.popleft())
            size += len(pieces[-1])
        if self.is_open:
            self._transport.writelines(pieces)
        if self._unsent:
            self._loop.call_soon(self._send_slice)

    def _encode(self, request: Any) -> _Encoded:
        prepared = request.prepare(self._versions)
        header = prepared.build_request_header(correlation_id=0, client_id=self._client_id)
        return _Encoded(request, prepared, header.encode() + prepared.encode())

    def abort(self) -> None:
        """Close at once: buffers of ours and of the kernel are thrown away (RST)."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # already closed by the peer
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._fail(kafka_errors.KafkaConnectionError("the connection was given up"))

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the transport receives to."""
        if self._answer is not None:
            return self._answer[self._filled :]
        return self._stage[self._staged :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        answer = self._answer
        if answer is not None:
            self._filled += nbytes
            if self._filled == len(answer):
                self._answer = None
                self._take(answer)
            return
        self._staged += nbytes
        first = self._take_staged()
        if first:
            left = self._staged - first
            self._stage[:left] = self._stage[first : self._staged]
            self._staged = left

    def eof_received(self) -> bool:
        """The broker closed its side: so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, for whatever reason."""
        self._fail(
            kafka_errors.KafkaConnectionError(f"the connection was lost: {exc or 'closed by the broker'}")
        )

    def _take_staged(self) -> int:
        """Take all complete answers from the stage, and divert one that does not fit it; returns where what is left begins."""
        first = 0
        while self._staged - first >= _SIZE.size:
            size = _SIZE.unpack_from(self._stage, first)[0]
            begin, end = first + _SIZE.size, first + _SIZE.size + size
            if not 0 < size <= RESPONSE_BYTES_MAX:
                self._break(f"an answer of {size} bytes")
                return self._staged
            if end <= self._staged:
                self._take(memoryview(bytes(self._stage[begin:end])))
                first = end
            elif size + _SIZE.size > STAGE_BYTES:
                self._answer = np.empty(size, np.uint8).data
                self._filled = self._staged - begin
                self._answer[: self._filled] = self._stage[begin : self._staged]
                return self._staged
            else:
                break
        return first

    def _take(self, frame: memoryview) -> None:
        """Give an answer to whoever waits for it."""
        if not self._pending:
            self._break("an answer that nobody asked for")
            return
        correlation_id, request, answer = self._pending.popleft()
        source = _Source(frame)
        try:
            header = request.parse_response_header(source)
            if header.correlation_id != correlation_id:
                raise kafka_errors.CorrelationIdError(
                    f"sent {correlation_id}, received {header.correlation_id}"
                )
            response = request.RESPONSE_TYPE.decode(source)
        except (ValueError, struct.error, kafka_errors.KafkaError) as exc:
            self._break(f"an answer that cannot be read ({exc})", answer)
            return
        if not answer.done():
            answer.set_result(response)

    def _break(self, what: str, answer: asyncio.Future[Any] | None = None) -> None:
        """The broker does not speak Kafka as we do."""
        error = kafka_errors.KafkaConnectionError(f"the broker sent {what}")
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self._fail(error)
        self._transport.abort()

    def _fail(self, error: Exception) -> None:
        pending, self._pending = self._pending, deque()
        for _, _, answer in pending:
            if not answer.done():
                answer.set_exception(error)


class _Source:
    """What aiokafka's decoders read from: short fields as bytes, long ones as views."""

    def __init__(self, frame: memoryview) -> None:
        self._frame = frame
        self._at = 0

    def read(self, count: int) -> bytes | memoryview:
        """The next bytes; fewer at the end."""
        taken = self._frame[self._at : self._at + max(0, count)]
        self._at += len(taken)
        return taken if len(taken) >= IN_PLACE_BYTES else bytes(taken)
