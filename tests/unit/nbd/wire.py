"""Byte streams as clients send them, answers taken apart, and a server without sockets."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from rephub.core.errors import ProtocolError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import ExportInfo, Request
from rephub.core.nbd.handshake import ServerHandshake
from rephub.core.nbd.options import ContextQuery, InfoQuery, option
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer
from rephub.core.nbd.transmission import ServerTransmission, clip

HELLO = nbd.CLIENT_FLAGS.pack(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
STRUCTURED = option(nbd.OPT_STRUCTURED_REPLY)


def go(name: str, kind: int = nbd.OPT_GO, *infos: int) -> bytes:
    return option(kind, InfoQuery(name, frozenset(infos)).pack())


def set_context(name: str, *queries: str, kind: int = nbd.OPT_SET_META_CONTEXT) -> bytes:
    return option(kind, ContextQuery(name, queries).pack())


def request(
    command: int,
    cookie: int,
    start: int = 0,
    length: int = 0,
    data: bytes = b"",
    flags: int = 0,
    magic: int = nbd.REQUEST_MAGIC,
) -> bytes:
    return nbd.REQUEST.pack(magic, flags, command, cookie, start, length) + data


def write(cookie: int, start: int, data: bytes, flags: int = 0) -> bytes:
    return request(nbd.CMD_WRITE, cookie, start, len(data), data, flags)


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply type, payload) of everything after the greeting."""
    assert nbd.GREETING.unpack_from(data) == (nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 3)
    at, found = nbd.GREETING.size, []
    while at < len(data):
        magic, kind, reply_type, length = nbd.OPTION_REPLY_HEADER.unpack_from(data, at)
        assert magic == nbd.OPTION_REPLY_MAGIC
        at += nbd.OPTION_REPLY_HEADER.size
        found.append((kind, reply_type, data[at : at + length]))
        at += length
    return found


@dataclass
class Answer:
    """One reply of the server."""

    errno: int = 0
    data: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)


def answers(data: bytes, reads: dict[int, int] | None = None) -> dict[int, Answer]:
    """Replies by cookie; `reads` (cookie → length) is needed for simple replies that carry data."""
    found: dict[int, Answer] = {}
    at = 0
    while at < len(data):
        (magic,) = struct.unpack_from(">I", data, at)
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            _, errno, cookie = nbd.SIMPLE_REPLY.unpack_from(data, at)
            at += nbd.SIMPLE_REPLY.size
            length = 0 if errno else (reads or {}).get(cookie, 0)
            answer = Answer(errno, data[at : at + length])
        else:
            assert magic == nbd.STRUCTURED_REPLY_MAGIC, hex(magic)
            _, flags, kind, cookie, length = nbd.CHUNK.unpack_from(data, at)
            at += nbd.CHUNK.size
            assert flags == nbd.REPLY_FLAG_DONE
            payload = data[at : at + length]
            assert len(payload) == length
            answer = _chunk(kind, payload)
        assert cookie not in found, f"cookie {cookie} answered twice"
        found[cookie] = answer
        at += length
    assert at == len(data)
    return found


def _chunk(kind: int, payload: bytes) -> Answer:
    if kind == nbd.REPLY_OFFSET_DATA:
        return Answer(data=payload[8:])
    if kind == nbd.REPLY_BLOCK_STATUS:
        return Answer(extents=list(struct.iter_unpack(">II", payload[4:])))
    assert kind == nbd.REPLY_ERROR
    errno, message = struct.unpack_from(">IH", payload)
    assert len(payload) == 6 + message
    return Answer(errno)


class Disk:
    """A bytearray that performs requests at once."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.seen: list[Request] = []

    def perform(self, transmission: ServerTransmission, item: Request) -> None:
        self.seen.append(item._replace(data=None if item.data is None else bytes(item.data)))
        end = item.start + item.length
        if item.command == nbd.CMD_READ:
            half = item.start + item.length // 2
            pieces = [self.content[item.start : half], self.content[half:end]]
            transmission.reply_data(item.cookie, item.start, pieces)
            return
        if item.command == nbd.CMD_BLOCK_STATUS:
            flags = [0 if byte else 3 for byte in self.content[item.start : end]]
            transmission.reply_extents(item.cookie, clip([(1, flag) for flag in flags], item))
            return
        if item.command == nbd.CMD_WRITE:
            self.content[item.start : end] = item.data
        elif item.command in {nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM}:
            self.content[item.start : end] = bytes(item.length)
        transmission.reply(item.cookie)


class ServerSession:
    """What the shell does, without sockets.

    Args:
        infos: exports.
        handle: gets the requests; None performs them on `disk` at once.
    """

    def __init__(
        self, *infos: ExportInfo, handle: Callable[[ServerSession, list[Request]], None] | None = None
    ) -> None:
        self.buffer = ReceiveBuffer()
        self.exports = {info.name: (info, self) for info in infos}
        self.handshake = ServerHandshake(self.exports, self.buffer)
        self.transmission: ServerTransmission | None = None
        self.disk = Disk(min(infos[0].size_bytes, 64 << 20))
        self.greetings = bytearray()
        self.sent = bytearray()
        self.error: ProtocolError | None = None
        self.closed = False
        self._handle = handle or (lambda session, items: session.perform(items))
        self._backlog = bytearray()
        self.pump()

    def perform(self, items: list[Request]) -> None:
        for item in items:
            self.disk.perform(self.transmission, item)

    def receive(self, data: bytes) -> ServerSession:
        """Bytes came from the client, in one piece."""
        self._backlog += data
        self.pump()
        return self

    def pump(self) -> None:
        """Go on, also after answers that made room."""
        while not self.closed:
            paused = self.transmission is not None and (self.transmission.blocked or self.closed)
            if not paused and self._backlog:
                with memoryview(self._backlog) as view:
                    count = self.buffer.feed(view)
                del self._backlog[:count]
            progress = self._shake_hands() if self.transmission is None else self._serve()
            if not progress and (not self._backlog or (self.transmission and self.transmission.blocked)):
                break

    def _shake_hands(self) -> bool:
        try:
            over = self.handshake.advance()
        except ProtocolError as error:
            self.error, self.closed, over = error, True, False
        self.greetings += b"".join(self.handshake.out)
        self.handshake.out.clear()
        if not over:
            return False
        negotiated = self.handshake.outcome
        if negotiated is None:
            self.closed = True
            return False
        self.buffer.grow(BUFFER_BYTES)
        self.transmission = ServerTransmission(
            negotiated.info,
            self.buffer,
            structured=negotiated.structured,
            block_status=negotiated.block_status,
        )
        return True

    def _serve(self) -> bool:
        transmission = self.transmission
        items = transmission.requests()
        if items:
            self._handle(self, items)
        self.sent += b"".join(transmission.out)
        transmission.out.clear()
        self.error = self.error or transmission.error
        self.closed = bool(self.error) or (transmission.disconnecting and not transmission.in_flight)
        return bool(items)


def session(
    info: ExportInfo,
    *,
    structured: bool = True,
    handle: Callable[[ServerSession, list[Request]], None] | None = None,
) -> ServerSession:
    """A session past its handshake."""
    opened = ServerSession(info, handle=handle).receive(HELLO)
    if structured:
        opened.receive(STRUCTURED + set_context(info.name, "base:allocation"))
    opened.receive(go(info.name))
    assert opened.transmission is not None
    return opened
