"""The server's side of the transmission phase, without I/O: bytes in, valid requests out; answers in, bytes out.

A request that must be refused is refused here, in the stream's order, and its payload is skipped, so that handlers
see valid ones only and the stream stays in step. Invariant: each request that was returned is in `in_flight` until
it is answered once.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from struct import Struct
from typing import Final

import numpy as np

from rephub.core.errors import ProtocolError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Buffer, ExportInfo, Extents, Request
from rephub.core.nbd.extents import DESCRIPTOR, coalesce
from rephub.core.nbd.receiving import LONG_PAYLOAD_BYTES, ReceiveBuffer

_OFFSET: Final = Struct(">Q")
_ERROR: Final = Struct(">IH")
_CONTEXT: Final = Struct(">I")
BASE_ALLOCATION_ID: Final = 1
_WRITES: Final = frozenset({nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES})


class ServerTransmission:
    """One connection after its handshake.

    Args:
        info: the export, as the client was told.
        buffer: where received bytes are.
        structured: structured replies were negotiated.
        block_status: base:allocation was selected.
    """

    def __init__(
        self, info: ExportInfo, buffer: ReceiveBuffer, *, structured: bool, block_status: bool
    ) -> None:
        self._info = info
        self._buffer = buffer
        self._structured = structured
        self._flags_allowed = _flags_allowed(info, structured=structured, block_status=block_status)
        self._write_end = -1 if info.read_only else info.size_bytes
        self._unaligned = info.min_block - 1
        self._diverted: tuple[int, int, int] | None = None
        self._skip_bytes = 0
        self._skip_reply = (0, 0)
        self.in_flight: dict[int, int] = {}
        """Cookie → bytes that it counts; for a read, what its answer must have."""
        self.in_flight_bytes = 0
        self.blocked = False
        """Parsing stopped at a limit; more may be in the buffer."""
        self.disconnecting = False
        """The client said goodbye: answer what is in flight, then close."""
        self.error: ProtocolError | None = None
        """The stream is broken: close. What came before was returned."""
        self.out: list[Buffer] = []
        """Bytes to send, in order; the shell empties it."""

    @property
    def full(self) -> bool:
        """In-flight bytes or requests are at their limit."""
        return (
            self.in_flight_bytes >= nbd.IN_FLIGHT_BYTES_MAX
            or len(self.in_flight) >= nbd.IN_FLIGHT_REQUESTS_MAX
        )

    def requests(self) -> list[Request]:
        """Every complete request in the buffer, up to the limits on what is in flight."""
        found: list[Request] = []
        buffer, in_flight = self._buffer, self.in_flight
        if buffer.target is not None:
            if not buffer.target_full:
                return found
            self._end_diversion(found)
        self.blocked = False
        view, first, end = buffer.view, buffer.first, buffer.end
        unpack, write_end, payload_max = nbd.REQUEST.unpack_from, self._write_end, self._info.max_block
        bytes_max, requests_max = nbd.IN_FLIGHT_BYTES_MAX, nbd.IN_FLIGHT_REQUESTS_MAX
        while True:
            if self._skip_bytes:
                first = self._skip(first, end)
            if end - first < 28 or self.disconnecting or self.error:
                break
            if self.in_flight_bytes >= bytes_max or len(in_flight) >= requests_max:
                self.blocked = True
                break
            magic, flags, command, cookie, start, length = unpack(view, first)
            if magic != nbd.REQUEST_MAGIC or cookie in in_flight:
                self._break(magic, cookie)
                break
            payload = first + 28
            if (
                command != nbd.CMD_WRITE
                or flags
                or start + length > write_end
                or (start | length) & self._unaligned
                or not 0 < length <= payload_max
            ):
                refusal = self._refusal(command, flags, start, length)
                if refusal or command != nbd.CMD_WRITE:
                    first = payload
                    self._other(found, Request(command, flags, cookie, start, length, None), refusal)
                    continue
            if end - payload >= length:
                first = payload + length
                data = bytes(view[payload:first])
                in_flight[cookie] = length
                self.in_flight_bytes += length
                found.append(Request(nbd.CMD_WRITE, flags, cookie, start, length, data))
                continue
            if length >= LONG_PAYLOAD_BYTES:
                buffer.first = payload
                self._diverted = (flags, cookie, start)
                buffer.divert(np.empty(length, np.uint8).data)
                return found
            break
        buffer.first = first
        buffer.compact()
        return found

    def _end_diversion(self, found: list[Request]) -> None:
        """The long payload is complete."""
        data, self._buffer.target = self._buffer.target, None
        assert data is not None
        assert self._diverted is not None
        flags, cookie, start = self._diverted
        self.in_flight[cookie] = len(data)
        self.in_flight_bytes += len(data)
        found.append(Request(nbd.CMD_WRITE, flags, cookie, start, len(data), data))

    def _skip(self, first: int, end: int) -> int:
        """Pass over the payload of a refused write; it is answered at the payload's end, as clients expect."""
        here = min(self._skip_bytes, end - first)
        self._skip_bytes -= here
        if not self._skip_bytes:
            self._send_error(*self._skip_reply)
        return first + here

    def _break(self, magic: int, cookie: int) -> None:
        if magic != nbd.REQUEST_MAGIC:
            self.error = ProtocolError(f"bad request magic {magic:#x}")
        else:
            self.error = ProtocolError(f"cookie {cookie:#x} is in flight already: answers would be ambiguous")

    def _refusal(self, command: int, flags: int, start: int, length: int) -> int:
        """Why a request must be refused, as a host errno; 0: it is valid (spec, "Error values")."""
        if command == nbd.CMD_DISC:
            return 0
        if self._info.read_only and command in _WRITES:
            return errno.EPERM
        allowed = self._flags_allowed.get(command)
        if allowed is None or flags & ~allowed:
            # A fast zero that cannot be had has its own errno, so that the client falls back to a slow one.
            fast = command == nbd.CMD_WRITE_ZEROES and flags & nbd.CMD_FLAG_FAST_ZERO
            return errno.EOPNOTSUPP if allowed is not None and fast else errno.EINVAL
        if command == nbd.CMD_FLUSH:
            return errno.EINVAL if start or length else 0
        return self._bad_extent(command, start, length)

    def _bad_extent(self, command: int, start: int, length: int) -> int:
        """Host errno for an extent that is empty, too long, unaligned or not inside the export; 0: it is good."""
        info = self._info
        too_long = command in {nbd.CMD_READ, nbd.CMD_WRITE} and length > info.max_block
        if not length or too_long or (start | length) & self._unaligned:
            return errno.EINVAL
        if start + length > info.size_bytes:
            return errno.ENOSPC if command in {nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES} else errno.EINVAL
        return 0

    def _other(self, found: list[Request], request: Request, refusal: int) -> None:
        """Take a request without payload, or one that is refused."""
        command, cookie, length = request.command, request.cookie, request.length
        if command == nbd.CMD_DISC:
            self.disconnecting = True
        elif refusal and command == nbd.CMD_WRITE and length:
            self._skip_bytes, self._skip_reply = length, (cookie, refusal)
        elif refusal:
            self._send_error(cookie, refusal)
        else:
            cost = 0
            if command == nbd.CMD_READ:
                cost = length
            elif command == nbd.CMD_BLOCK_STATUS:
                cost = nbd.BLOCK_STATUS_COST_BYTES
            self.in_flight[cookie] = cost
            self.in_flight_bytes += cost
            found.append(request)

    def reply(self, cookie: int, host_errno: int = 0) -> None:
        """Answer without data.

        Raises:
            KeyError: no such request is in flight: our own mistake.
        """
        self.in_flight_bytes -= self.in_flight.pop(cookie)
        if host_errno:
            self._send_error(cookie, host_errno)
        else:
            self.out.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))

    def reply_data(self, cookie: int, start: int, buffers: Sequence[Buffer]) -> None:
        """Answer a read with all of its data, as one chunk.

        Raises:
            ValueError: not as long as was asked; nothing is sent, the request is still in flight.
            KeyError: no such request is in flight.
        """
        length = sum(map(len, buffers))
        if self.in_flight[cookie] != length:
            raise ValueError(f"read answered with {length} bytes, asked were {self.in_flight[cookie]}")
        self.in_flight_bytes -= self.in_flight.pop(cookie)
        if self._structured:
            self._send_chunk(nbd.REPLY_OFFSET_DATA, cookie, 8 + length)
            self.out.append(_OFFSET.pack(start))
        else:
            self.out.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
        self.out.extend(buffers)

    def reply_extents(self, cookie: int, extents: Extents) -> None:
        """Answer a block status; see `extents.coalesce` for what is allowed.

        Raises:
            ValueError: no extent, or too many; the request is still in flight.
            KeyError: no such request is in flight.
        """
        if not 0 < len(extents) <= nbd.EXTENTS_MAX:
            raise ValueError(f"block status with {len(extents)} extents")
        payload = b"".join([DESCRIPTOR.pack(*extent) for extent in extents])
        self.in_flight_bytes -= self.in_flight.pop(cookie)
        self._send_chunk(nbd.REPLY_BLOCK_STATUS, cookie, 4 + len(payload))
        self.out += [_CONTEXT.pack(BASE_ALLOCATION_ID), payload]

    def _send_error(self, cookie: int, host_errno: int) -> None:
        wire_errno = nbd.nbd_errno(host_errno)
        if self._structured:  # a must for reads, allowed for all, and so no need to know which it was
            self._send_chunk(nbd.REPLY_ERROR, cookie, 6)
            self.out.append(_ERROR.pack(wire_errno, 0))
        else:
            self.out.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, wire_errno, cookie))

    def _send_chunk(self, kind: int, cookie: int, payload_bytes: int) -> None:
        self.out.append(
            nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, kind, cookie, payload_bytes)
        )


def clip(extents: Extents, request: Request) -> Extents:
    """Extents as the answer to a block status request may have them: joined, cut, one if only one is asked."""
    count_max = 1 if request.flags & nbd.CMD_FLAG_REQ_ONE else nbd.EXTENTS_MAX
    return coalesce(extents, request.length, count_max)


def _flags_allowed(info: ExportInfo, *, structured: bool, block_status: bool) -> dict[int, int]:
    """Command → flags it may carry; a command that is not offered is missing (spec, "Command flags")."""
    fua = nbd.CMD_FLAG_FUA if info.can_fua else 0  # to be accepted on all commands where it is offered
    allowed = {
        nbd.CMD_READ: fua | (nbd.CMD_FLAG_DF if structured else 0),
        nbd.CMD_WRITE: fua,
    }
    if info.can_flush:
        allowed[nbd.CMD_FLUSH] = fua
    if info.can_trim:
        allowed[nbd.CMD_TRIM] = fua
    if info.can_zero:
        fast = nbd.CMD_FLAG_FAST_ZERO if info.can_fast_zero else 0
        allowed[nbd.CMD_WRITE_ZEROES] = fua | nbd.CMD_FLAG_NO_HOLE | fast
    if block_status:
        allowed[nbd.CMD_BLOCK_STATUS] = fua | nbd.CMD_FLAG_REQ_ONE
    return allowed
