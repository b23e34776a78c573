"""The client's shell on real sockets: against our server, against others, against nobody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conformance.nbd.loops import Here, on_both_loops, until
from qsd import StorageDaemon
from rephub.core.errors import (
    DeadlineError,
    NotFoundError,
    ProtocolError,
    RequestError,
    UnavailableError,
)
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client import NbdClient
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.memory import MemoryExport
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import tcp_uri, unix_uri

MIB = 1 << 20


async def command(*argv: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def exercise(client: NbdClient, block: int = 1, *, beyond_end: int = errno.ENOSPC) -> None:
    """Everything a client does, checked against a bytearray."""
    model = bytearray(client.size_bytes)
    patterns = [(0, 5 * MIB), (512 * 7, 512), (MIB - 512, 1024), (8 * MIB, 3 * MIB)]
    if block == 1:
        patterns += [(3, 7), (4095, 2), (MIB - 1, 40_001)]
    for number, (start, length) in enumerate(patterns):
        model[start : start + length] = bytes([number + 1]) * length
        await client.write(start, model[start : start + length], fua=bool(number & 1))
    for start, length, unmap in [(512, 1024, True), (2 * MIB, MIB, False), (9 * MIB, MIB, True)]:
        model[start : start + length] = bytes(length)
        await client.zero(start, length, unmap=unmap)
    await client.flush()
    assert await client.read(0, client.size_bytes) == model
    reads = [(n * 30 * 512, (n * 10 + 1) * 512) for n in range(100)]
    found = await asyncio.gather(*(client.read(start, length) for start, length in reads))
    for (start, length), data in zip(reads, found, strict=True):
        assert data == model[start : start + length]
    status = await client.block_status(0, client.size_bytes)
    assert sum(length for length, _ in status) == client.size_bytes
    start = 0
    for length, flags in status:
        if flags & nbd.STATE_ZERO:
            assert not any(model[start : start + length])
        start += length
    with pytest.raises(RequestError) as caught:
        await client.read(client.size_bytes, block)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(RequestError) as caught:
        await client.write(client.size_bytes - block, bytes(2 * block))
    assert caught.value.errno == beyond_end
    await client.trim(0, MIB)
    assert len(await client.read(0, 512)) == 512


@on_both_loops
async def test_against_our_server_over_unix_and_tcp(here: Here) -> None:
    info = ExportInfo("v o/l", 16 * MIB, block_status=True)
    server = NbdServer()
    server.add_export(MemoryExport(info))
    await server.listen_unix(here.folder / "s")
    port = await server.listen_tcp("127.0.0.1")
    async with await NbdClient.connect_uri(unix_uri(here.folder / "s", "v o/l")) as client:
        assert (client.size_bytes, client.read_only) == (16 * MIB, False)
        await exercise(client)
    await server.remove_export("v o/l")
    server.add_export(MemoryExport(info))
    async with await NbdClient.connect_uri(tcp_uri("127.0.0.1", port, "v o/l")) as client:
        await exercise(client)
    await server.close()


@on_both_loops
async def test_requests_beyond_the_servers_maximum_are_split(here: Here) -> None:
    server = NbdServer()
    server.add_export(MemoryExport(ExportInfo("vol", 1 << 36, max_block=65536, block_status=True)))
    await server.listen_unix(here.folder / "s")
    async with await NbdClient.connect(path=here.folder / "s", export="vol") as client:
        data = bytes(range(256)) * 1000
        await client.write(100, data)
        assert await client.read(100, len(data)) == data
        await client.zero(200, (1 << 36) - 200)
        assert await client.read(100, 200) == data[:100] + bytes(100)
        await client.trim(0, 1 << 36)
        assert await client.block_status(0, 1 << 36) == [(1 << 36, 3)]
        assert await client.block_status(5, 0) == []
    await server.close()


async def test_a_dead_connection_fails_all_that_waits_and_all_that_comes(short_dir: Path) -> None:
    class Silent:
        def __init__(self) -> None:
            self.connections = []

        def on_requests(self, connection, requests) -> None:
            self.connections += [connection] * len(requests)

        def on_close(self, connection, exc) -> None:
            pass

    handler = Silent()
    server = NbdServer({"vol": (ExportInfo("vol", MIB), handler)})
    await server.listen_unix(short_dir / "s")
    client = await NbdClient.connect(path=short_dir / "s", export="vol")
    calls = [asyncio.create_task(client.read(0, 100)) for _ in range(100)]  # more than there are slots
    calls += [asyncio.create_task(client.write(0, b"x")), asyncio.create_task(client.flush())]
    await until(lambda: len(handler.connections) == 64)
    assert client.alive
    handler.connections[0].abort()
    for found in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(found, UnavailableError)
    assert not client.alive
    with pytest.raises(UnavailableError):
        await client.read(0, 1)
    await client.close()
    await server.close()


async def test_a_closed_client_says_so(short_dir: Path) -> None:
    server = NbdServer()
    server.add_export(MemoryExport(ExportInfo("vol", MIB)))
    await server.listen_unix(short_dir / "s")
    client = await NbdClient.connect(path=short_dir / "s", export="vol")
    waiting = asyncio.create_task(client.read(0, 1))
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    with pytest.raises(UnavailableError, match="closed"):
        await waiting
    with pytest.raises(UnavailableError, match="closed"):
        await client.flush()
    await until(lambda: server.connections == 0)
    await server.close()


async def test_a_cancelled_request_leaves_the_connection_in_step(short_dir: Path) -> None:
    export = MemoryExport(ExportInfo("vol", MIB))
    server = NbdServer()
    server.add_export(export)
    await server.listen_unix(short_dir / "s")
    async with await NbdClient.connect(path=short_dir / "s", export="vol") as client:
        for _ in range(200):
            call = asyncio.create_task(client.read(0, 50_000))
            await asyncio.sleep(0)
            call.cancel()
        await client.write(7, b"abc")
        assert await client.read(6, 5) == b"\0abc\0"
    await server.close()


async def test_nobody_there(short_dir: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        await NbdClient.connect(path=short_dir / "none", export="vol")
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1")
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        await NbdClient.connect(host="127.0.0.1", port=port, export="vol")


@contextlib.asynccontextmanager
async def speaking(path: Path, first: bytes) -> AsyncIterator[None]:
    """A server that says `first` and then listens to the end."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await writer.wait_closed()
        ended.set()

    listener = await asyncio.start_unix_server(serve, str(path))
    yield
    listener.close()
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_silent_server_meets_the_deadline_and_is_let_go(short_dir: Path) -> None:
    async with speaking(short_dir / "s", b""):
        with pytest.raises(DeadlineError, match=r"0\.2 s"):
            await NbdClient.connect(path=short_dir / "s", export="vol", timeout_seconds=0.2)


async def test_something_else_than_nbd_is_let_go(short_dir: Path) -> None:
    async with speaking(short_dir / "s", b"220 mail.example.org ESMTP\r\n"):
        with pytest.raises(ProtocolError, match="no NBD server"):
            await NbdClient.connect(path=short_dir / "s", export="vol")


async def test_a_full_backlog_is_waited_for(short_dir: Path) -> None:
    """Linux says EAGAIN then, and gives no sign later; asyncio would believe itself connected."""
    path = short_dir / "s"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as fillers:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler = fillers.enter_context(socket.socket(socket.AF_UNIX))
                filler.settimeout(0)
                filler.connect(str(path))
        with pytest.raises(DeadlineError, match=r"0\.2 s"):
            await NbdClient.connect(path=path, export="vol", timeout_seconds=0.2)
        waiting = asyncio.create_task(NbdClient.connect(path=path, export="vol"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        listener.settimeout(0)
        while not waiting.done():
            with contextlib.suppress(BlockingIOError):
                accepted = fillers.enter_context(listener.accept()[0])
                with contextlib.suppress(BrokenPipeError):
                    accepted.send(b"220 mail.example.org ESMTP\r\n")
            await asyncio.sleep(0.01)
        with pytest.raises(ProtocolError, match="no NBD server"):
            await waiting


# Other servers


async def connected(path: Path, export: str, *contexts: str) -> NbdClient:
    """A client of a server that is just starting."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await NbdClient.connect(path=path, export=export, contexts=contexts)
            except UnavailableError:
                await asyncio.sleep(0.01)


@pytest.mark.qemu
@on_both_loops
async def test_against_qemu(here: Here) -> None:
    daemon = StorageDaemon(here.folder, [16 * MIB])
    try:
        path = here.folder / "nbd"
        async with await NbdClient.connect(path=path, export="disk0") as client:
            assert client.contexts == {"base:allocation"}
            assert client.offer.structured
            await exercise(client, client.offer.min_block, beyond_end=errno.EINVAL)  # QEMU 7.2's way
        with pytest.raises(NotFoundError, match="'other'"):
            await NbdClient.connect(path=path, export="other")
        client = await NbdClient.connect(path=path, export="disk0", contexts=["base:allocation", "x:y"])
        assert client.contexts == {"base:allocation"}
        with pytest.raises(RequestError, match="x:y"):
            await client.block_status(0, 512, "x:y")
        daemon.kill()
        await until(lambda: not client.alive)
        with pytest.raises(UnavailableError):
            await client.read(0, 512)
        await client.close()
    finally:
        daemon.stop()


@pytest.mark.qemu
async def test_a_dirty_bitmap_of_qemu(short_dir: Path) -> None:
    """`qemu:dirty-bitmap:NAME` tells which granules were written since the bitmap was added."""
    disk = short_dir / "d.qcow2"
    await command("qemu-img", "create", "-f", "qcow2", disk, "512M")
    await command("qemu-img", "bitmap", "--add", "-g", "64k", disk, "b0")
    writes = [word for n in range(3000) for word in ("-c", f"write -q {n * 128}k 1k")]
    await command("qemu-io", "-t", "writeback", "-f", "qcow2", disk, *writes)
    server = await asyncio.create_subprocess_exec(
        "qemu-nbd", "-t", "-k", short_dir / "q", "-f", "qcow2", "-r", "-B", "b0", "-x", "vol", disk
    )
    try:
        context = "qemu:dirty-bitmap:b0"
        async with await connected(short_dir / "q", "vol", "base:allocation", context) as client:
            assert client.read_only
            assert client.contexts == {"base:allocation", context}
            found = await client.block_status(0, client.size_bytes, context)
            expected = [(65536, 1), (65536, 0)] * 3000
            expected[-1] = (client.size_bytes - 5999 * 65536, 0)
            assert found == expected
            part = await client.block_status(65536 + 512, 65536, context)
            assert part == [(65024, 0), (512, 1)]
    finally:
        server.kill()
        await server.wait()


@pytest.mark.qemu
@on_both_loops
async def test_against_nbdkit_with_and_without_structured_replies(here: Here) -> None:
    for extra in ([], ["--no-sr"]):
        path = here.folder / f"k{len(extra)}"
        server = await asyncio.create_subprocess_exec("nbdkit", "-f", *extra, "-U", path, "memory", "16M")
        try:
            async with await connected(path, "", "base:allocation") as client:
                assert client.offer.structured is not bool(extra)
                await client.write(5, b"abc")
                await client.write(MIB, b"y" * 5 * MIB)
                assert await client.read(4, 5) == b"\0abc\0"
                assert await client.read(MIB - 1, 5 * MIB + 2) == b"\0" + b"y" * 5 * MIB + b"\0"
                if not extra:
                    status = await client.block_status(0, client.size_bytes)
                    assert status[-1] == (10 * MIB, 3)
        finally:
            server.kill()
            await server.wait()


@pytest.mark.qemu
async def test_what_our_client_wrote_qemu_reads(short_dir: Path) -> None:
    daemon = StorageDaemon(short_dir, [4 * MIB])
    try:
        async with await NbdClient.connect(path=short_dir / "nbd", export="disk0") as client:
            await client.write(512, b"\x55" * 70_000 + bytes(144))
            await client.flush()
        await command("qemu-io", "-f", "raw", daemon.files[0], "-r", "-c", "read -P 0x55 512 70000")
        found = json.loads(await command("qemu-img", "map", "--output=json", "-f", "raw", daemon.files[0]))
        assert found[0]["start"] == 0
    finally:
        daemon.stop()
