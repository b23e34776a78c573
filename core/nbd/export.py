"""What the server serves: exports, the requests they get, and the two ways to implement one.

`RequestHandler` is the lean one: called once per wake-up with all requests, answers when it likes (capture).
`AsyncExport` is the comfortable one: one coroutine per request, behind `adapter.ExportHandler` (views).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from rephub.core.nbd import constants as nbd

Buffer: TypeAlias = bytes | bytearray | memoryview
Extents: TypeAlias = list[tuple[int, int]]
"""(length, flags) of consecutive extents; flags as in the context, 0 is allocated data in base:allocation."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a client learns about an export; fixed from its handshake on.

    Raises:
        ValueError: block sizes that the spec forbids, or a name that cannot travel.
    """

    name: str
    size_bytes: int
    read_only: bool = False
    description: str = ""
    min_block: int = 1
    """Power of two ≤ 65,536; requests not aligned to it get EINVAL. QEMU reads before it writes less than this."""
    preferred_block: int = 4096
    max_block: int = nbd.PAYLOAD_BYTES_MAX
    """Longest read or write; longer ones get EINVAL. At most 32 MiB."""
    can_trim: bool = True
    can_zero: bool = True
    can_flush: bool = True
    can_fua: bool = True
    block_status: bool = False
    """Offers base:allocation."""
    can_fast_zero: bool = False
    multi_conn: bool = False
    """A flush on one connection covers what was answered on all."""

    def __post_init__(self) -> None:
        """Check what is handed to strangers."""
        if self.min_block & (self.min_block - 1) or not 1 <= self.min_block <= 1 << 16:
            raise ValueError(f"min_block {self.min_block} is no power of two up to 65536")
        if self.preferred_block % self.min_block or self.max_block % self.min_block:
            raise ValueError("preferred_block and max_block must be multiples of min_block")
        if not 0 < self.max_block <= nbd.PAYLOAD_BYTES_MAX:
            raise ValueError(f"max_block {self.max_block} is beyond {nbd.PAYLOAD_BYTES_MAX}")
        if not 0 <= self.size_bytes < 1 << 63:
            raise ValueError(f"size {self.size_bytes} is out of range")
        for text in (self.name, self.description):
            if len(text.encode()) > nbd.NAME_BYTES_MAX or "\0" in text:
                raise ValueError("name and description are at most 4096 bytes without NUL")

    def transmission_flags(self, *, structured: bool) -> int:
        """Transmission flags (spec section of that name).

        Args:
            structured: structured replies were negotiated; only then reads may ask for one chunk.
        """
        writable = not self.read_only
        return (
            nbd.FLAG_HAS_FLAGS
            | nbd.FLAG_READ_ONLY * self.read_only
            | nbd.FLAG_SEND_FLUSH * self.can_flush
            | nbd.FLAG_SEND_FUA * self.can_fua
            | nbd.FLAG_SEND_TRIM * (self.can_trim and writable)
            | nbd.FLAG_SEND_WRITE_ZEROES * (self.can_zero and writable)
            | nbd.FLAG_SEND_DF * structured
            | nbd.FLAG_CAN_MULTI_CONN * self.multi_conn
            | nbd.FLAG_SEND_FAST_ZERO * (self.can_fast_zero and self.can_zero and writable)
        )


class Request(NamedTuple):
    """One valid request: inside the export, aligned, allowed, flags known."""

    command: int
    flags: int
    cookie: int
    start: int
    length: int
    data: bytes | memoryview | None
    """The payload of a write, owned by the receiver; None for other commands."""


class Connection(Protocol):
    """How a `RequestHandler` answers; all of it may be called at any later time, in any order, once per request.

    Answers to a connection that is gone are dropped.
    """

    def reply(self, cookie: int, errno: int = 0) -> None:
        """Done, or failed with a host errno. Not for a successful read or block status."""

    def reply_data(self, cookie: int, start: int, buffers: Sequence[Buffer]) -> None:
        """The data of a read: all of it, copied before this wake-up ends."""

    def reply_extents(self, cookie: int, extents: Extents) -> None:
        """The answer to a block status: at least one extent, covering at most what was asked."""

    def abort(self) -> None:
        """Drop the connection at once; `on_close` follows."""


class RequestHandler(Protocol):
    """The lean way to serve an export."""

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        """All complete requests of one wake-up, in the order of arrival; must not block.

        An exception ends the connection and is logged as an error.
        """

    def on_close(self, connection: Connection, exc: Exception | None) -> None:
        """The connection is gone; what is unanswered stays unanswered."""


class AsyncExport(Protocol):
    """The comfortable way: each request is a task; overlapping requests in flight may finish in any order.

    `RequestError(errno)` fails the one request. Any other exception is EIO for the peer and an ERROR in the log.
    Starts and lengths are inside the export, unaligned down to `info.min_block`; lengths are never 0.
    """

    @property
    def info(self) -> ExportInfo:
        """What clients are told."""

    async def read(self, start: int, length: int) -> Buffer:
        """Exactly `length` bytes."""

    async def write(self, start: int, data: Buffer, fua: bool) -> None:
        """Write; with `fua` it is durable when this returns."""

    async def zero(self, start: int, length: int, unmap: bool, fua: bool) -> None:
        """Make it read as zeroes; `unmap` allows a hole."""

    async def trim(self, start: int, length: int) -> None:
        """A hint that the content is not needed."""

    async def flush(self) -> None:
        """Everything answered before is durable when this returns."""

    async def block_status(self, start: int, length: int) -> Extents:
        """base:allocation from `start` on; may cover less or more than asked, must cover at least one byte."""
