"""The client's side of the transmission phase, without I/O: requests in, bytes out; bytes in, finished requests out.

Everything the server says is checked against what was asked: a chunk outside the request, overlapping chunks, data
that are missing at the end, an answer nobody waits for: each breaks the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Final

import numpy as np

from rephub.core.errors import ProtocolError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import ServerOffer
from rephub.core.nbd.export import Buffer, Extents
from rephub.core.nbd.extents import DESCRIPTOR
from rephub.core.nbd.receiving import LONG_PAYLOAD_BYTES, ReceiveBuffer

_OFFSET: Final = Struct(">Q")
_HOLE: Final = Struct(">QI")
_ERROR: Final = Struct(">IH")
CHUNK_BYTES_MAX: Final = 16 << 20
"""Payload of a chunk that is not data: QEMU sends up to 1 MiB of descriptors, nbdkit up to 8 MiB."""
EXTENTS_KEPT_MAX: Final = 131_072
"""Descriptors of one chunk that are looked at: 1 MiB on the wire, 20 MiB as tuples. The rest is asked for again."""


@dataclass(slots=True)
class Pending:
    """A request and what came back so far."""

    command: int
    cookie: int
    start: int
    length: int
    data: memoryview | None = None
    """Where a read's data go."""
    covered: list[tuple[int, int]] = field(default_factory=list)
    """(first, next) of the parts of `data` that came."""
    extents: dict[int, Extents] = field(default_factory=dict)
    """Block status by context id."""
    errno: int = 0
    """Host errno; 0 is success."""
    message: str = ""


class ClientTransmission:
    """One connection after its handshake.

    Args:
        offer: what the server said.
        buffer: where received bytes are.
    """

    def __init__(self, offer: ServerOffer, buffer: ReceiveBuffer) -> None:
        self._offer = offer
        self._buffer = buffer
        self._cookie = 0
        self._diverted: tuple[Pending, int, int, bool] | None = None
        self.pending: dict[int, Pending] = {}
        """By cookie, sent and not answered."""
        self.out: list[Buffer] = []
        """Bytes to send, in order; the shell empties it."""

    def request(
        self, command: int, start: int, length: int, *, flags: int = 0, data: Buffer | None = None
    ) -> Pending:
        """Send a request; it is finished once `finished()` returns it.

        Args:
            command: CMD_…, not DISC.
            start: bytes.
            length: bytes; the server's limits are the caller's business.
            flags: CMD_FLAG_…
            data: payload of a write, exactly `length` bytes.
        """
        self._cookie += 1
        pending = Pending(command, self._cookie, start, length)
        if command == nbd.CMD_READ:
            pending.data = np.empty(length, np.uint8).data
        self.pending[self._cookie] = pending
        self.out.append(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, start, length))
        if data is not None:
            self.out.append(data)
        return pending

    def disconnect(self) -> None:
        """Say goodbye; nothing may be requested afterwards."""
        self.out.append(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))

    def finished(self) -> list[Pending]:
        """Every request whose answer is complete.

        Raises:
            ProtocolError: the stream is broken: close; all that is pending failed.
        """
        done: list[Pending] = []
        buffer = self._buffer
        try:
            while self._step(done):
                pass
        finally:
            if buffer.target is None:
                buffer.compact()
        return done

    def _step(self, done: list[Pending]) -> bool:
        """Take one message, or the end of a long payload; False if it is not complete yet."""
        buffer = self._buffer
        if buffer.target is not None:
            return self._end_diversion(done)
        available = buffer.end - buffer.first
        if available < 4:
            return False
        magic = int.from_bytes(buffer.view[buffer.first : buffer.first + 4], "big")
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            return available >= nbd.SIMPLE_REPLY.size and self._simple(done)
        if magic == nbd.STRUCTURED_REPLY_MAGIC and self._offer.structured:
            return available >= nbd.CHUNK.size and self._chunk(done)
        raise ProtocolError(f"bad reply magic {magic:#x}")

    def _pending(self, cookie: int) -> Pending:
        pending = self.pending.get(cookie)
        if pending is None:
            raise ProtocolError(f"NBD server answered a request that was not made (cookie {cookie:#x})")
        return pending

    def _finish(self, pending: Pending, done: list[Pending]) -> None:
        """The last chunk came."""
        if pending.data is not None and not pending.errno:
            next_byte = 0
            for first, end in sorted(pending.covered):
                if first != next_byte:
                    raise ProtocolError("NBD server sent overlapping or missing data for a read")
                next_byte = end
            if next_byte != pending.length:
                raise ProtocolError(f"NBD server sent {next_byte} of {pending.length} bytes for a read")
        del self.pending[pending.cookie]
        done.append(pending)

    def _simple(self, done: list[Pending]) -> bool:
        buffer = self._buffer
        _, wire_errno, cookie = nbd.SIMPLE_REPLY.unpack_from(buffer.view, buffer.first)
        pending = self._pending(cookie)
        carries_data = pending.command in {nbd.CMD_READ, nbd.CMD_BLOCK_STATUS}
        if carries_data and self._offer.structured and not wire_errno:
            raise ProtocolError("NBD server sent a simple reply where a structured one is a must")
        buffer.first += nbd.SIMPLE_REPLY.size
        if pending.command == nbd.CMD_READ and not wire_errno:
            return self._receive(pending, 0, pending.length, last=True, done=done)
        pending.errno = nbd.host_errno(wire_errno)
        self._finish(pending, done)
        return True

    def _chunk(self, done: list[Pending]) -> bool:
        buffer = self._buffer
        _, flags, kind, cookie, length = nbd.CHUNK.unpack_from(buffer.view, buffer.first)
        pending = self._pending(cookie)
        last = bool(flags & nbd.REPLY_FLAG_DONE)
        at = buffer.first + nbd.CHUNK.size
        if kind == nbd.REPLY_OFFSET_DATA:
            if buffer.end - at < _OFFSET.size:
                return False
            first = _OFFSET.unpack_from(buffer.view, at)[0] - pending.start
            self._check(pending, first, length - _OFFSET.size)
            buffer.first = at + _OFFSET.size
            return self._receive(pending, first, length - _OFFSET.size, last=last, done=done)
        if length > CHUNK_BYTES_MAX:
            raise ProtocolError(f"NBD server sent a chunk of type {kind} with {length} bytes")
        if buffer.end - at >= length:
            payload = bytes(buffer.view[at : at + length])
            buffer.first = at + length
            self._payload(pending, kind, payload, last=last, done=done)
            return True
        if length >= LONG_PAYLOAD_BYTES:
            buffer.first = at
            self._diverted = (pending, kind, 0, last)
            buffer.divert(np.empty(length, np.uint8).data)
        return False

    def _receive(self, pending: Pending, first: int, length: int, *, last: bool, done: list[Pending]) -> bool:
        """Take data of a read to where they belong: from the buffer, or in place."""
        buffer = self._buffer
        assert pending.data is not None
        target = pending.data[first : first + length]
        if buffer.end - buffer.first >= length:
            target[:] = buffer.view[buffer.first : buffer.first + length]
            buffer.first += length
            self._received(pending, first, length, last=last, done=done)
            return True
        self._diverted = (pending, nbd.REPLY_OFFSET_DATA, first, last)
        buffer.divert(target)
        return False

    def _end_diversion(self, done: list[Pending]) -> bool:
        buffer = self._buffer
        if not buffer.target_full:
            return False
        payload, buffer.target = buffer.target, None
        assert payload is not None
        assert self._diverted is not None
        pending, kind, first, last = self._diverted
        if kind == nbd.REPLY_OFFSET_DATA:
            self._received(pending, first, len(payload), last=last, done=done)
        else:
            self._payload(pending, kind, bytes(payload), last=last, done=done)
        return True

    def _received(
        self, pending: Pending, first: int, length: int, *, last: bool, done: list[Pending]
    ) -> None:
        pending.covered.append((first, first + length))
        if last:
            self._finish(pending, done)

    def _check(self, pending: Pending, first: int, length: int) -> None:
        """A content chunk must lie inside its read."""
        if pending.data is None or first < 0 or length <= 0 or first + length > pending.length:
            raise ProtocolError("NBD server sent data outside of what was asked")
        if len(pending.covered) * 512 > pending.length + 4096:
            raise ProtocolError("NBD server sent a read in absurdly many pieces")

    def _payload(
        self, pending: Pending, kind: int, payload: bytes, *, last: bool, done: list[Pending]
    ) -> None:
        """A chunk that is not data."""
        if kind & nbd.REPLY_ERROR_BIT:
            self._error(pending, kind, payload)
        elif kind == nbd.REPLY_OFFSET_HOLE and len(payload) == _HOLE.size:
            start, length = _HOLE.unpack(payload)
            first = start - pending.start
            self._check(pending, first, length)
            np.frombuffer(pending.data, np.uint8)[first : first + length] = 0  # type: ignore[arg-type]
            pending.covered.append((first, first + length))
        elif kind == nbd.REPLY_BLOCK_STATUS and pending.command == nbd.CMD_BLOCK_STATUS:
            self._block_status(pending, payload)
        elif kind != nbd.REPLY_NONE or payload or not last:
            raise ProtocolError(f"NBD server sent a malformed chunk of type {kind}")
        if last:
            self._finish(pending, done)

    def _block_status(self, pending: Pending, payload: bytes) -> None:
        context = int.from_bytes(payload[:4], "big")
        if len(payload) < 12 or len(payload) % DESCRIPTOR.size != 4 or context in pending.extents:
            raise ProtocolError("NBD server sent a malformed block status")
        if context not in self._offer.contexts.values():
            raise ProtocolError(
                f"NBD server sent a block status of context {context}, which was not selected"
            )
        kept = memoryview(payload)[4 : 4 + EXTENTS_KEPT_MAX * DESCRIPTOR.size]
        extents = list(DESCRIPTOR.iter_unpack(kept))
        if not all(length for length, _ in extents):
            raise ProtocolError("NBD server sent an empty extent")
        pending.extents[context] = extents

    def _error(self, pending: Pending, kind: int, payload: bytes) -> None:
        """An error chunk, of a known type or not: the request failed (spec, "Structured reply types")."""
        if len(payload) < _ERROR.size:
            raise ProtocolError("NBD server sent a malformed error")
        wire_errno, length = _ERROR.unpack_from(payload)
        rest = len(payload) - _ERROR.size - (_OFFSET.size if kind == nbd.REPLY_ERROR_OFFSET else 0)
        if length > min(rest, nbd.ERROR_MESSAGE_BYTES_MAX) or not wire_errno:
            raise ProtocolError("NBD server sent a malformed error")
        pending.errno = pending.errno or nbd.host_errno(wire_errno)
        pending.message = payload[_ERROR.size :][:length].decode(errors="replace")
