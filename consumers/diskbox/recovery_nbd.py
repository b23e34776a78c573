"""An NBD export as a recovery volume: qemu-nbd, nbdkit, or the NBD server of a QEMU in the recovery site.

One connection, as many servers serve one client at a time and promise nothing across several.

Invariant: `fdatasync` succeeds only if everything written since the last one went through the very connection that is
flushed. A server that was restarted may have lost what was not flushed; so once a connection is lost with unflushed
writes, writes and flushes fail until `reopen`, and the caller applies again from its durable position. Reads reconnect by
themselves: what they are asked for was flushed before, or is not taken from here.

A request that is not answered is never given up behind the server's back: it could still land after newer writes. After
ANSWER_SECONDS it is reported, and `reopen` refuses until it is answered or its connection ended.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from rephub.core.errors import ProtocolError, RephubError, RequestError, StorageError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client import NbdClient
from rephub.projections.coalesce import DeviceWrite

ANSWER_SECONDS: Final = 30.0
"""How long a request may take before it counts as stuck; a flush of much data on a slow disk fits in."""
CONNECT_SECONDS: Final = 5.0
"""For connecting and negotiating."""
READ_RETRY_SECONDS: Final = 5.0
"""How long a read goes on to look for a server that is gone: a restart fits in, and less than a guest's own time limit."""
READ_PAUSE_SECONDS: Final = 0.1
"""Between two of its tries."""
WRITES_MAX: Final = 16
"""In flight at once: hides a network's latency; as many as QEMU keeps."""
ZERO_CHUNK_BYTES: Final = 1 << 20

_T = TypeVar("_T")


class NbdVolume:
    """An NBD export as a RecoveryVolume; made by `open`.

    Args:
        uri: of the export.
        size_bytes: of the volume; the export may be larger, what lies behind is never touched.
    """

    def __init__(self, uri: str, size_bytes: int) -> None:
        self.path = uri
        self._size_bytes = size_bytes
        self._client: NbdClient | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._unflushed = False
        """Something was sent to be written since the last flush."""
        self._lost = False
        """What was sent may be gone: only `reopen` helps."""
        self._changes: set[asyncio.Task[None]] = set()
        """Writes, zeroes and flushes that are not answered."""

    @classmethod
    async def open(cls, uri: str, size_bytes: int) -> NbdVolume:
        """Connect.

        Raises:
            StorageError: nobody is there, or the export does not do; see `unfit`.
        """
        volume = cls(uri, size_bytes)
        await volume._connected()
        return volume

    async def size(self) -> int:
        """See `RecoveryVolume.size`."""
        return self._size_bytes

    async def check_room(self, size_bytes: int) -> None:
        """See `RecoveryVolume.check_room`; a connection does not learn of a new size, `reopen` does."""
        client = await self._connected()
        if client.size_bytes < size_bytes:
            raise _error(self.path, unfit(client, size_bytes), errno.ENOSPC)

    async def resize(self, size_bytes: int) -> None:
        """See `RecoveryVolume.resize`; an export that is too small is StorageError ENOSPC."""
        await self.check_room(size_bytes)
        if size_bytes > self._size_bytes:
            length = size_bytes - self._size_bytes
            await self.write([DeviceWrite(self._size_bytes, length, None)])
        self._size_bytes = size_bytes

    async def pread(self, start: int, length: int) -> bytes:
        """See `RecoveryVolume.pread`."""
        inside = max(0, min(length, self._size_bytes - start))
        if not inside:
            return bytes(length)

        async def read(client: NbdClient) -> bytes:
            low, high = _aligned(client, start, start + inside)
            data = await client.read(low, high - low)
            return bytes(data[start - low : start - low + inside])

        return await self._read(read) + bytes(length - inside)

    async def allocation(self, start: int, length: int) -> list[tuple[int, bool]]:
        """See `RecoveryVolume.allocation`; all is data where the server has no base:allocation."""
        inside = max(0, min(length, self._size_bytes - start))
        outside = [(length - inside, True)] if length > inside else []
        if not inside:
            return outside

        async def ask(client: NbdClient) -> list[tuple[int, bool]]:
            if nbd.BASE_ALLOCATION not in client.contexts:
                return [(inside, False)]
            low, high = _aligned(client, start, start + inside)
            found: list[tuple[int, bool]] = []
            position = low
            for count, flags in await client.block_status(low, high - low):
                first, position = max(position, start), position + count
                if (last := min(position, start + inside)) > first:
                    found.append((last - first, bool(flags & nbd.STATE_ZERO)))
            return found

        return await self._read(ask) + outside

    async def write(self, writes: Sequence[DeviceWrite]) -> None:
        """See `RecoveryVolume.write`."""
        client = await self._connected()
        slots = asyncio.Semaphore(WRITES_MAX if client.offer.min_block == 1 else 1)

        async def one(write: DeviceWrite) -> None:
            async with slots:
                await self._change(lambda client: _apply(client, write))

        outcomes = await asyncio.gather(*map(one, writes), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def fdatasync(self) -> None:
        """See `RecoveryVolume.fdatasync`: NBD_CMD_FLUSH. One that failed is never made again."""
        await self._change(lambda client: client.flush())
        self._unflushed = False

    async def reopen(self, size_bytes: int) -> None:
        """See `RecoveryVolume.reopen`."""
        if self._changes:
            raise _error(self.path, "the server has not answered what it was sent before", errno.ETIMEDOUT)
        async with self._connecting:
            await self._drop()
            self._size_bytes = size_bytes
            self._unflushed = self._lost = False
        await self._connected()

    async def close(self) -> None:
        """See `RecoveryVolume.close`."""
        self._closed = True
        await self._drop()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _connected(self) -> NbdClient:
        """The living connection; where there is none, a new one."""
        async with self._connecting:
            if self._closed:
                raise _error(self.path, "the recovery volume is closed", errno.EBADF)
            if self._client is None or not self._client.alive:
                self._lost = self._lost or self._unflushed
                await self._drop()
                self._client = await connect(self.path)
                if why := unfit(self._client, self._size_bytes):
                    small = self._client.size_bytes < self._size_bytes
                    await self._drop()
                    raise _error(self.path, why, errno.ENOSPC if small else errno.ENOTCONN)
            return self._client

    async def _change(self, request: Callable[[NbdClient], Awaitable[None]]) -> None:
        """Make one request that changes the export or flushes it."""
        client = await self._connected()
        if self._lost:
            raise _error(
                self.path,
                "the server was lost before a flush; its last writes are made again",
                errno.ENOTCONN,
            )
        self._unflushed = True
        task = asyncio.ensure_future(_as_task(request, client))
        self._changes.add(task)
        task.add_done_callback(self._answered)
        try:
            done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
            if not done:
                raise _error(self.path, f"no answer for {ANSWER_SECONDS:g} s", errno.ETIMEDOUT)
            task.result()
        except RephubError as exc:
            self._lost = True
            raise _storage_error(self.path, exc) from exc

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waited may have gone

    async def _read(self, request: Callable[[NbdClient], Awaitable[_T]]) -> _T:
        """Make one request that changes nothing; again on a new connection, for a while."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + READ_RETRY_SECONDS
        while True:
            try:
                client = await self._connected()
                async with asyncio.timeout(ANSWER_SECONDS):
                    return await request(client)
            except TimeoutError as exc:
                raise _error(self.path, f"no answer for {ANSWER_SECONDS:g} s", errno.ETIMEDOUT) from exc
            except RephubError as exc:
                error = _storage_error(self.path, exc)
                if error.fields["errno"] != errno.ENOTCONN or loop.time() > give_up:
                    raise error from exc
            await asyncio.sleep(READ_PAUSE_SECONDS)


async def connect(uri: str) -> NbdClient:
    """A connection. Raises StorageError; UsageError: a bad URI."""
    try:
        return await NbdClient.connect_uri(uri, timeout_seconds=CONNECT_SECONDS)
    except RephubError as exc:
        raise _storage_error(uri, exc) from exc


def unfit(client: NbdClient, size_bytes: int) -> str:
    """Why an export cannot be a recovery volume; empty if it can."""
    if client.read_only:
        return "the export is read-only"
    if not client.offer.flags & nbd.FLAG_SEND_FLUSH:
        return "the export has no flush, so nothing on it is ever sure"
    if client.size_bytes < size_bytes:
        return f"the export has {client.size_bytes} bytes, the volume {size_bytes}"
    return ""


async def _as_task(request: Callable[[NbdClient], Awaitable[None]], client: NbdClient) -> None:
    await request(client)


async def _apply(client: NbdClient, write: DeviceWrite) -> None:
    """One device write; parts of blocks that the server takes only whole are read first."""
    start, end = write.start, write.start + write.length
    if write.buffers is not None:
        await _write(client, start, b"".join(write.buffers))
        return
    low, high = _aligned(client, start, end)
    if client.offer.flags & nbd.FLAG_SEND_WRITE_ZEROES:
        block = client.offer.min_block
        inner_low, inner_high = low + block * (low < start), high - block * (high > end)
        if inner_low < inner_high:
            await _write(client, start, bytes(inner_low - start))
            await client.zero(inner_low, inner_high - inner_low, unmap=True)
            start = inner_high
    while start < end:
        step = min(ZERO_CHUNK_BYTES - start % ZERO_CHUNK_BYTES, end - start)
        await _write(client, start, bytes(step))
        start += step


async def _write(client: NbdClient, start: int, data: bytes) -> None:
    if not data:
        return
    low, high = _aligned(client, start, start + len(data))
    if (low, high) != (start, start + len(data)):
        whole = bytearray(await client.read(low, high - low))
        whole[start - low : start - low + len(data)] = data
        await client.write(low, whole)
    else:
        await client.write(start, data)


def _aligned(client: NbdClient, start: int, end: int) -> tuple[int, int]:
    """The whole blocks of the server around [start, end)."""
    block = client.offer.min_block
    return start // block * block, -(-end // block) * block


def _storage_error(uri: str, error: RephubError) -> StorageError:
    if isinstance(error, StorageError):
        return error
    number = error.errno if isinstance(error, RequestError) else errno.ENOTCONN
    if isinstance(error, ProtocolError):
        number = errno.EPROTO
    return _error(uri, error.message, number)


def _error(uri: str, why: str, number: int) -> StorageError:
    hints = {
        errno.ENOTCONN: "start the NBD server; it goes on by itself",
        errno.ETIMEDOUT: "look after the NBD server; it goes on by itself",
        errno.ENOSPC: "make room, or the export larger; it goes on by itself",
    }
    return StorageError(
        f"recovery volume {uri}: {why}", hint=hints.get(number, "look at the NBD server's log"),
        errno=number, path=uri,
    )  # fmt: skip
