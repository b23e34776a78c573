"""An NBD client: pipelined, one coroutine per request, over a unix socket or TCP."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from rephub.core.errors import (
    DeadlineError,
    ProtocolError,
    RequestError,
    UnavailableError,
)
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import ServerOffer
from rephub.core.nbd.client_link import ClientLink
from rephub.core.nbd.export import Buffer, Extents
from rephub.core.nbd.extents import coalesce
from rephub.core.nbd.uri import parse_uri

ZERO_BYTES_MAX: Final = 1 << 30
"""Longest zero, trim or block status request; longer ones are split. A power of two, so any block size divides it."""


EXTENT_BYTES_MIN: Final = 512
"""Extents are this long on average, a sector: bounds what a server's block status takes in memory."""
EXTENTS_SPARE: Final = 100_000
"""Shorter ones that are taken all the same: 16 MiB in memory."""

BACKLOG_SECONDS: Final = 0.02
"""Between two tries at a unix socket whose backlog is full."""


class NbdClient:
    """One connection; get one with `connect` or `connect_uri`, use it as an async context manager or `close()` it.

    All methods may be called concurrently; requests are sent in the order of the calls. Each raises
    `RequestError(errno)` when the server refuses the request, `ProtocolError` when the server breaks the protocol
    and `UnavailableError` when the connection is, or goes, dead: the outcome of a write is then unknown.
    """

    def __init__(self, offer: ServerOffer, link: ClientLink) -> None:
        self._offer = offer
        self._link = link

    @classmethod
    async def connect(
        cls,
        *,
        path: Path | str | None = None,
        host: str | None = None,
        port: int = 0,
        export: str = "",
        contexts: Sequence[str] = (nbd.BASE_ALLOCATION,),
        timeout_seconds: float = nbd.HANDSHAKE_SECONDS_MAX,
    ) -> Self:
        """Connect and negotiate.

        Args:
            path: unix socket, or
            host: TCP, with
            port: its port.
            export: name.
            contexts: metadata contexts to ask for; see `contexts` for those granted.
            timeout_seconds: for all of it.

        Raises:
            NotFoundError: no such export.
            UnavailableError: nobody answers, or will not serve us.
            DeadlineError: not within the time.
            ProtocolError: it is no NBD server that we understand.
        """
        loop = asyncio.get_running_loop()
        where = str(path) if path is not None else f"{host}:{port}"
        link = ClientLink(export, contexts)
        client: Self | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                if path is not None:
                    await loop.create_unix_connection(lambda: link, sock=await _connected(str(path)))
                else:
                    await loop.create_connection(lambda: link, host or "", port)
                client = cls(await link.offer, link)
                return client
        except TimeoutError as error:
            raise DeadlineError(f"NBD server at {where} took longer than {timeout_seconds} s") from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UnavailableError(f"NBD server at {where}: {reason}") from error
        finally:
            if client is None:
                link.abort()

    @classmethod
    async def connect_uri(
        cls,
        uri: str,
        *,
        contexts: Sequence[str] = (nbd.BASE_ALLOCATION,),
        timeout_seconds: float = nbd.HANDSHAKE_SECONDS_MAX,
    ) -> Self:
        """As `connect`, by NBD URI; raises UsageError as well."""
        at = parse_uri(uri)
        return await cls.connect(
            path=at.path,
            host=at.host,
            port=at.port,
            export=at.export,
            contexts=contexts,
            timeout_seconds=timeout_seconds,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self._offer.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._offer.read_only

    @property
    def offer(self) -> ServerOffer:
        """Everything the server said."""
        return self._offer

    @property
    def contexts(self) -> frozenset[str]:
        """Metadata contexts that were granted."""
        return frozenset(self._offer.contexts)

    @property
    def alive(self) -> bool:
        """Whether requests have a chance."""
        return self._link.alive

    async def read(self, start: int, length: int) -> memoryview:
        """Exactly `length` bytes, owned by the caller; split if the server's maximum asks for it."""
        step = self._offer.max_block
        if length <= step:
            pending = await self._link.perform(nbd.CMD_READ, start, length)
            assert pending.data is not None
            return pending.data
        pieces = [
            await self.read(first, min(step, start + length - first))
            for first in range(start, start + length, step)
        ]
        return memoryview(b"".join(pieces))

    async def write(self, start: int, data: Buffer, *, fua: bool = False) -> None:
        """Write; the data must not change until it returns."""
        view, step = memoryview(data).cast("B"), self._offer.max_block
        for first in range(0, len(view), step):
            piece = view[first : first + step]
            await self._link.perform(
                nbd.CMD_WRITE, start + first, len(piece), flags=nbd.CMD_FLAG_FUA * fua, data=piece
            )

    async def zero(self, start: int, length: int, *, unmap: bool = True, fua: bool = False) -> None:
        """Write zeroes; with `unmap` the server may make a hole."""
        flags = nbd.CMD_FLAG_FUA * fua | nbd.CMD_FLAG_NO_HOLE * (not unmap)
        await self._split(nbd.CMD_WRITE_ZEROES, start, length, flags)

    async def trim(self, start: int, length: int) -> None:
        """Say that the content is not needed."""
        await self._split(nbd.CMD_TRIM, start, length, 0)

    async def flush(self) -> None:
        """Make everything that was answered durable."""
        await self._link.perform(nbd.CMD_FLUSH, 0, 0)

    async def block_status(self, start: int, length: int, context: str = nbd.BASE_ALLOCATION) -> Extents:
        """Extents that cover exactly [start, start + length), neighbours differ; asks as often as it takes.

        Raises:
            RequestError: ENOTSUP: the server does not have the context.
        """
        identifier = self._offer.contexts.get(context)
        if identifier is None:
            raise RequestError(f"the NBD server has no context {context!r}", errno=errno.EOPNOTSUPP)
        found: Extents = []
        next_byte, end = start, start + length
        while next_byte < end:
            asked = min(ZERO_BYTES_MAX, end - next_byte)
            pending = await self._link.perform(nbd.CMD_BLOCK_STATUS, next_byte, asked)
            extents = coalesce(pending.extents.get(identifier, []), asked)
            if not extents:
                raise ProtocolError(f"NBD server said nothing about {context!r}")
            next_byte += sum(extent[0] for extent in extents)
            found += extents
            if (len(found) - EXTENTS_SPARE) * EXTENT_BYTES_MIN > next_byte - start:
                raise ProtocolError(f"NBD server describes {context!r} in absurdly many extents")
        return coalesce(found, length)

    async def _split(self, command: int, start: int, length: int, flags: int) -> None:
        end = start + length
        for first in range(start, end, ZERO_BYTES_MAX):
            await self._link.perform(command, first, min(ZERO_BYTES_MAX, end - first), flags=flags)

    async def close(self) -> None:
        """Say goodbye and close; requests under way fail with UnavailableError. Never raises."""
        await self._link.close()


async def _connected(path: str) -> socket.socket:
    """A unix socket that is connected, or OSError.

    While the listener's backlog is full, `connect` says EAGAIN, and nothing ever tells that there is room again. asyncio
    takes it for EINPROGRESS and believes itself connected.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(0)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(BACKLOG_SECONDS)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
