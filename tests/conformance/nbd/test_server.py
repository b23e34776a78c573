"""The server's shell on real sockets: limits, backpressure, exports that go, handlers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import socket
import stat
from pathlib import Path

import pytest

from conformance.nbd.loops import Here, on_both_loops, passing, until
from rephub.core.errors import ConflictError, RequestError, UnavailableError, UsageError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client import NbdClient
from rephub.core.nbd.export import Connection, ExportInfo, Request
from rephub.core.nbd.memory import MemoryExport
from rephub.core.nbd.server import NbdServer
from unit.nbd.wire import HELLO, STRUCTURED, answers, go, request, write

MIB = 1 << 20
INFO = ExportInfo("vol", 64 * MIB, block_status=True)


class Holding:
    """Keeps requests until told to answer."""

    def __init__(self) -> None:
        self.held: list[tuple[Connection, Request]] = []
        self.wakeups = 0
        self.closed: list[Exception | None] = []

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        self.wakeups += 1
        self.held += [(connection, item) for item in requests]

    def on_close(self, connection: Connection, exc: Exception | None) -> None:
        self.closed.append(exc)

    def answer(self, count: int = 1 << 30, number: int = 0) -> None:
        for connection, item in self.held[:count]:
            if item.command == nbd.CMD_READ and not number:
                connection.reply_data(item.cookie, item.start, [bytes(item.length)])
            else:
                connection.reply(item.cookie, number)
        del self.held[:count]


class Raw:
    """A client of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path) -> Raw:
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 26))

    @classmethod
    async def serving(cls, path, name: str = "vol", *, structured: bool = True) -> Raw:
        """Past the handshake."""
        raw = await cls.connect(path)
        raw.writer.write(HELLO + STRUCTURED * structured + go(name))
        replies = 2 + structured
        await raw.reader.readexactly(nbd.GREETING.size)
        for _ in range(replies + 1):
            header = await raw.reader.readexactly(nbd.OPTION_REPLY_HEADER.size)
            _, option, kind, length = nbd.OPTION_REPLY_HEADER.unpack(header)
            await raw.reader.readexactly(length)
            if (option, kind) == (nbd.OPT_GO, nbd.REP_ACK):
                return raw
        raise AssertionError("no ACK")

    async def at_eof(self) -> bytes:
        """What comes until the server closes."""
        try:
            return await self.reader.read()
        except (ConnectionResetError, BrokenPipeError):
            return b""
        finally:
            await self.close()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await self.writer.wait_closed()


async def listening(here: Here, *args, **fields) -> NbdServer:
    server = NbdServer(*args, **fields)
    here.stack.push_async_callback(server.close)
    await server.listen_unix(here.folder / "s")
    return server


# Sockets


@on_both_loops
async def test_the_socket_has_its_mode_and_goes_with_the_server(here: Here) -> None:
    path = here.folder / "s"
    server = await listening(here)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    assert not path.exists()
    await server.listen_unix(path, 0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await server.close()


@on_both_loops
async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(here: Here) -> None:
    path = here.folder / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = await listening(here)
    with pytest.raises(ConflictError, match="somebody listens"):
        await NbdServer().listen_unix(path)
    (here.folder / "file").write_text("mine")
    with pytest.raises(ConflictError, match="no socket"):
        await NbdServer().listen_unix(here.folder / "file")
    assert (here.folder / "file").read_text() == "mine"
    with pytest.raises(UsageError, match="107"):
        await NbdServer().listen_unix(here.folder / ("x" * 108))
    with pytest.raises(UnavailableError, match="No such file"):
        await NbdServer().listen_unix(here.folder / "none/s")
    await server.close()


@on_both_loops
async def test_a_taken_port_is_a_conflict(here: Here) -> None:
    server = NbdServer()
    port = await server.listen_tcp("127.0.0.1")
    with pytest.raises(ConflictError):
        await NbdServer().listen_tcp("127.0.0.1", port)
    with pytest.raises(UnavailableError):
        await NbdServer().listen_tcp("192.0.2.1", port)
    await server.close()


def descriptors() -> set[int]:
    """Open ones; the one that lists the folder is closed by the time they are looked at."""
    return {fd for fd in range(1024) if Path(f"/proc/self/fd/{fd}").exists()}


@on_both_loops
async def test_sockets_are_close_on_exec(here: Here) -> None:
    """A child that kept one open would keep the guest waiting after our death."""
    before = descriptors()
    server = await listening(here, {"vol": (INFO, Holding())})
    raw = await Raw.serving(here.folder / "s")
    mine = descriptors() - before
    assert len(mine) >= 3
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in mine)
    await raw.close()
    await server.close()


# Connections


@on_both_loops
async def test_one_connection_is_accepted_ever(here: Here) -> None:
    handler = Holding()
    path = here.folder / "s"
    server = await listening(here, {"vol": (INFO, handler)}, one_connection=True)
    attempts = [await Raw.connect(path)]
    # It may get into the backlog before the first is accepted: then it is closed without a word.
    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError, BlockingIOError):
        attempts.append(await Raw.connect(path))
    first = attempts[0]
    assert await first.reader.readexactly(nbd.GREETING.size)
    for late in attempts[1:]:
        assert await late.at_eof() == b""
    assert not path.exists()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await Raw.connect(path)
    first.writer.write(HELLO + go("vol"))
    first.writer.write(request(nbd.CMD_FLUSH, 1))
    await until(lambda: handler.held != [])
    await first.close()
    await until(lambda: server.connections == 0)
    assert len(handler.closed) == 1
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await Raw.connect(path)
    await server.close()


@on_both_loops
async def test_of_two_that_come_at_the_same_time_one_is_served(here: Here) -> None:
    server = NbdServer({"vol": (INFO, Holding())}, one_connection=True)
    here.stack.push_async_callback(server.close)
    await server.listen_unix(here.folder / "s")
    port = await server.listen_tcp("127.0.0.1")
    with socket.socket(socket.AF_UNIX) as one, socket.socket() as two:
        one.connect(str(here.folder / "s"))  # both are in a backlog before our loop runs again
        two.connect(("127.0.0.1", port))
        heard = []
        for sock in (one, two):
            sock.setblocking(False)  # noqa: FBT003
            try:
                async with asyncio.timeout(10):
                    heard.append(await asyncio.get_running_loop().sock_recv(sock, 100))
            except ConnectionResetError:
                heard.append(b"")
        assert sorted(map(len, heard)) == [0, nbd.GREETING.size]
        assert server.connections == 1
    await until(lambda: server.connections == 0)


@on_both_loops
async def test_200_idle_connections_are_100_and_end_after_the_deadline(here: Here) -> None:
    here.monkeypatch.setattr(nbd, "HANDSHAKE_SECONDS_MAX", 1.0)
    server = await listening(here, {"vol": (INFO, Holding())})
    idle = [await Raw.connect(here.folder / "s") for _ in range(200)]
    await until(lambda: server.connections == 100)
    endings = await asyncio.gather(*(raw.at_eof() for raw in idle))
    assert {len(ending) for ending in endings} == {nbd.GREETING.size}
    assert server.connections == 0
    await (await Raw.serving(here.folder / "s")).close()
    await server.close()


@on_both_loops
async def test_200_idle_connections_do_not_keep_an_honest_client_out(here: Here) -> None:
    """Half of them trickle; the deadline is far away, so the honest one is let in by nothing but its coming."""
    here.monkeypatch.setattr(nbd, "HANDSHAKE_SECONDS_MAX", 600.0)
    server = await listening(here)
    server.add_export(MemoryExport(INFO))
    path = here.folder / "s"
    async with await NbdClient.connect(path=path, export="vol", timeout_seconds=10) as early:
        idle = [await Raw.connect(path) for _ in range(200)]
        for raw in idle[::2]:
            raw.writer.write(HELLO[:2])
        await until(lambda: server.connections == 100)
        async with await NbdClient.connect(path=path, export="vol", timeout_seconds=10) as late:
            await late.write(0, b"late")
            assert await early.read(0, 4) == b"late"
        for raw in idle:
            await raw.close()
    await until(lambda: server.connections == 0)


@on_both_loops
async def test_who_is_served_is_never_dropped_for_a_newcomer(here: Here) -> None:
    server = await listening(here, connections_max=2)
    server.add_export(MemoryExport(INFO))
    path = here.folder / "s"
    async with (
        await NbdClient.connect(path=path, export="vol") as one,
        await NbdClient.connect(path=path, export="vol") as two,
    ):
        with pytest.raises(UnavailableError):
            await NbdClient.connect(path=path, export="vol", timeout_seconds=10)
        await one.write(0, b"x")
        assert await two.read(0, 1) == b"x"


@on_both_loops
async def test_a_peer_that_leaves_without_taking_its_answers_is_dropped(here: Here) -> None:
    here.monkeypatch.setattr("rephub.core.nbd.connection.LINGER_SECONDS_MAX", 0.2)
    server = await listening(here)
    server.add_export(MemoryExport(INFO))
    for end in (request(nbd.CMD_DISC, 99), request(nbd.CMD_FLUSH, 99, magic=7)):
        raw = await Raw.serving(here.folder / "s")
        raw.reader._transport.pause_reading()
        raw.writer.write(request(nbd.CMD_READ, 1, 0, 512 << 10) + end)
        await until(lambda: server.connections == 0)
        await raw.close()


@on_both_loops
async def test_a_trickled_handshake_ends_at_the_deadline(here: Here) -> None:
    """Each byte comes in time; the whole does not."""
    here.monkeypatch.setattr(nbd, "HANDSHAKE_SECONDS_MAX", 0.3)
    server = await listening(here, {"vol": (INFO, Holding())})
    raw = await Raw.connect(here.folder / "s")
    began = asyncio.get_running_loop().time()
    ended = asyncio.create_task(raw.at_eof())
    for byte in HELLO + STRUCTURED * 40:
        if ended.done():
            break
        raw.writer.write(bytes([byte]))
        await asyncio.wait([ended], timeout=0.01)
    assert ended.done()
    assert 0.2 < asyncio.get_running_loop().time() - began < 3
    await server.close()


@on_both_loops
async def test_the_deadline_does_not_touch_a_connection_that_serves(here: Here) -> None:
    here.monkeypatch.setattr(nbd, "HANDSHAKE_SECONDS_MAX", 0.05)
    server = await listening(here)
    server.add_export(MemoryExport(INFO))
    async with await NbdClient.connect(path=here.folder / "s", export="vol", timeout_seconds=10) as client:
        await passing(0.2)
        await client.write(0, b"x")
    await server.close()


@on_both_loops
async def test_a_close_at_every_byte_of_the_handshake_is_forgotten(here: Here) -> None:
    server = await listening(here, {"vol": (INFO, Holding())})
    conversation = HELLO + STRUCTURED + go("vol") + write(1, 0, b"x" * 9)
    for cut in range(len(conversation)):
        raw = await Raw.connect(here.folder / "s")
        raw.writer.write(conversation[:cut])
        await raw.close()
    await until(lambda: server.connections == 0)
    await server.close()


@on_both_loops
async def test_goodbye_gets_the_answers_first(here: Here) -> None:
    handler = Holding()
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s")
    raw.writer.write(request(nbd.CMD_READ, 1, 0, 3 * MIB) + request(nbd.CMD_DISC, 2))
    await until(lambda: len(handler.held) == 1)
    handler.answer()
    assert answers(await raw.at_eof())[1].data == bytes(3 * MIB)
    await until(lambda: server.connections == 0)
    assert handler.closed == [None]
    await server.close()


# Wake-ups and backpressure


@on_both_loops
async def test_requests_of_one_wakeup_come_together_and_leave_together(here: Here) -> None:
    handler = Holding()
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s", structured=False)
    raw.writer.write(b"".join(write(n, n * 4096, b"x" * 4096) for n in range(16)))
    await until(lambda: len(handler.held) == 16)
    assert handler.wakeups <= 2
    assert all(isinstance(item.data, bytes) for _, item in handler.held)
    handler.held.reverse()
    handler.answer()
    replies = await raw.reader.readexactly(16 * nbd.SIMPLE_REPLY.size)
    assert list(answers(replies)) == list(range(15, -1, -1))
    await raw.close()
    await server.close()


@on_both_loops
async def test_reading_stops_while_too_much_is_in_flight(here: Here) -> None:
    """A client that sends 256 MiB of writes nobody answers: 32 MiB and one request get in, then it must wait."""
    handler = Holding()
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s")
    payload = bytes(MIB)

    async def send() -> None:
        for n in range(256):
            raw.writer.write(write(n, 0, payload))
            await raw.writer.drain()

    sending = asyncio.create_task(send())
    await until(lambda: len(handler.held) == 32)
    await passing(0.2)
    assert len(handler.held) == 32
    assert not sending.done()
    seen = 0
    while seen < 256:
        await until(lambda: bool(handler.held))
        seen += len(handler.held)
        assert len(handler.held) <= 32
        handler.answer()
    await sending
    found = answers(await raw.reader.readexactly(256 * nbd.SIMPLE_REPLY.size))
    assert sorted(found) == list(range(256))
    await raw.close()
    await server.close()


@on_both_loops
async def test_a_peer_that_does_not_read_its_answers_gets_no_more_of_them(here: Here) -> None:
    """500 reads of 1 MiB without reading: the export is asked for little more than one buffer full."""
    export = MemoryExport(INFO)
    asked = 0
    read = export.read

    async def counted(start: int, length: int):
        nonlocal asked
        asked += 1
        return await read(start, length)

    export.read = counted
    server = await listening(here)
    server.add_export(export)
    raw = await Raw.serving(here.folder / "s")
    raw.reader._transport.pause_reading()
    raw.writer.write(b"".join(request(nbd.CMD_READ, n, 0, MIB) for n in range(500)))
    await until(lambda: asked >= 32)
    before = -1
    while before != asked:
        before = asked
        await passing(0.1)
    assert asked <= 70
    raw.reader._transport.resume_reading()
    for _ in range(500):
        await raw.reader.readexactly(nbd.CHUNK.size + 8 + MIB)
    assert asked == 500
    await raw.close()
    await server.close()


@on_both_loops
async def test_a_peer_that_only_ever_sends_is_not_read_from(here: Here) -> None:
    """Its answers fill the write buffer; 3 MiB of requests, more than we can receive, stay in the socket."""
    handler = Holding()

    def answer(connection: Connection, items: list[Request]) -> None:
        for item in items:
            connection.reply_data(item.cookie, item.start, [bytes(item.length)])

    handler.on_requests = answer
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s")
    raw.reader._transport.pause_reading()
    raw.writer.write(b"".join(request(nbd.CMD_READ, n, 0, 4096) for n in range(600)))
    (connection,) = server._connections
    await until(lambda: connection._write_paused, "a full write buffer")
    count = 3 * MIB // nbd.REQUEST.size
    raw.writer.write(b"".join(request(nbd.CMD_READ, 600 + n, 0, 64) for n in range(count)))
    await passing(0.2)
    assert raw.writer.transport.get_write_buffer_size() > MIB
    assert server.connections == 1
    raw.reader._transport.resume_reading()
    for n in range(600 + count):
        await raw.reader.readexactly(nbd.CHUNK.size + 8 + (4096 if n < 600 else 64))
    await raw.close()
    await server.close()


@on_both_loops
async def test_more_requests_than_may_be_in_flight_are_all_served(here: Here) -> None:
    """5,000 flushes in one write, answered in one wake-up by a handler that never waits."""
    handler = Holding()
    handler.on_requests = lambda connection, items: [connection.reply(item.cookie) for item in items]
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s", structured=False)
    raw.writer.write(b"".join(request(nbd.CMD_FLUSH, n) for n in range(5000)))
    found = answers(await raw.reader.readexactly(5000 * nbd.SIMPLE_REPLY.size))
    assert list(found) == list(range(5000))
    await raw.close()
    await server.close()


# Handlers and exports


@on_both_loops
async def test_a_handler_that_raises_loses_its_connection_and_is_logged(here: Here) -> None:
    handler = Holding()
    boom = ZeroDivisionError("boom")

    def fail(connection: Connection, requests: list[Request]) -> None:
        raise boom

    handler.on_requests = fail
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s")
    raw.writer.write(request(nbd.CMD_FLUSH, 1))
    assert await raw.at_eof() == b""
    await until(lambda: handler.closed == [boom])
    assert "handler_failed" in here.caplog.text
    assert "ZeroDivisionError: boom" in here.caplog.text
    await server.close()


@on_both_loops
async def test_a_handler_may_abort_and_answers_to_the_gone_are_dropped(here: Here) -> None:
    handler = Holding()
    server = await listening(here, {"vol": (INFO, handler)})
    raw = await Raw.serving(here.folder / "s")
    raw.writer.write(request(nbd.CMD_FLUSH, 1) + request(nbd.CMD_READ, 2, 0, 9))
    await until(lambda: len(handler.held) == 2)
    handler.held[0][0].abort()
    assert await raw.at_eof() == b""
    await until(lambda: len(handler.closed) == 1)
    handler.answer()
    await asyncio.sleep(0)
    assert handler.closed == [None]
    await server.close()


class Failing(MemoryExport):
    """Fails as its class variables say; counts what runs."""

    error: Exception | None = None
    gate: asyncio.Event | None = None
    running = 0
    finished = 0
    cancelled = 0

    async def _trouble(self) -> None:
        self.running += 1
        try:
            if self.gate:
                await self.gate.wait()
            self.finished += 1
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.error:
            raise self.error

    async def read(self, start: int, length: int):
        await self._trouble()
        return await super().read(start, length)

    async def write(self, start: int, data, fua: bool) -> None:
        await self._trouble()
        await super().write(start, data, fua)


async def serving(here: Here, export: MemoryExport) -> tuple[NbdServer, NbdClient]:
    server = await listening(here)
    server.add_export(export)
    return server, await NbdClient.connect(path=here.folder / "s", export="vol")


@on_both_loops
async def test_errors_of_an_export_are_answers_and_the_connection_lives(here: Here) -> None:
    export = Failing(INFO)
    server, client = await serving(here, export)
    export.error = RequestError("scratch is full", errno=errno.ENOSPC)
    with pytest.raises(RequestError) as caught:
        await client.write(0, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert "ERROR" not in here.caplog.text
    export.error = RuntimeError("a mistake of ours")
    for attempt in (client.read(0, 10), client.write(0, b"x")):
        with pytest.raises(RequestError) as caught:
            await attempt
        assert caught.value.errno == errno.EIO
    assert here.caplog.text.count("RuntimeError: a mistake of ours") == 2
    export.error = None
    await client.write(0, b"abc")
    assert await client.read(0, 3) == b"abc"
    await client.close()
    await server.close()


@on_both_loops
async def test_flags_reach_the_export(here: Here) -> None:
    export = MemoryExport(INFO)
    server, client = await serving(here, export)
    await client.zero(0, MIB, unmap=False)
    assert await client.block_status(0, 2 * MIB) == [(MIB, 0), (MIB, 3)]
    await client.zero(0, MIB, unmap=True)
    assert await client.block_status(0, 2 * MIB) == [(2 * MIB, 3)]
    await client.write(0, b"x")
    await client.zero(0, 1)
    assert export.flushes == 0
    await client.write(0, b"x", fua=True)
    assert export.flushes == 1
    await client.zero(0, 1, fua=True)
    assert export.flushes == 2
    await client.flush()
    assert export.flushes == 3
    await client.close()
    raw = await Raw.serving(here.folder / "s")
    raw.writer.write(request(nbd.CMD_TRIM, 1, 0, 512, flags=nbd.CMD_FLAG_FUA) + request(nbd.CMD_DISC, 2))
    assert answers(await raw.at_eof())[1].errno == 0
    assert export.flushes == 4
    await server.close()


@on_both_loops
async def test_an_export_that_returns_the_wrong_length_is_an_error_not_a_broken_stream(here: Here) -> None:
    export = MemoryExport(INFO)

    async def short(start: int, length: int) -> bytes:
        return bytes(length - 1)

    async def nothing(start: int, length: int) -> list[tuple[int, int]]:
        return []

    read, export.read, export.block_status = export.read, short, nothing
    server, client = await serving(here, export)
    for attempt in (client.read(0, 10), client.block_status(0, 10)):
        with pytest.raises(RequestError) as caught:
            await attempt
        assert caught.value.errno == errno.EIO
    export.read = read
    assert await client.read(0, 10) == bytes(10)
    await client.close()
    await server.close()


@on_both_loops
async def test_removing_an_export_closes_its_connections_and_waits_for_its_writes(here: Here) -> None:
    export, other = Failing(INFO), MemoryExport(ExportInfo("other", MIB))
    server, client = await serving(here, export)
    server.add_export(other)
    bystander = await NbdClient.connect(path=here.folder / "s", export="other")
    export.gate = asyncio.Event()
    calls = [asyncio.create_task(client.write(n, b"x")) for n in range(3)]
    calls += [asyncio.create_task(client.read(n, 1)) for n in range(2)]
    await until(lambda: export.running == 5)
    removal = asyncio.create_task(server.remove_export("vol"))
    for found in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(found, UnavailableError)
    await until(lambda: export.cancelled == 2)
    assert not removal.done()
    export.gate.set()
    await removal
    assert (export.running, export.finished) == (0, 3)
    assert await MemoryExport.read(export, 0, 4) == b"xxx\0"
    await server.remove_export("vol")
    await bystander.write(0, b"still here")
    with pytest.raises(ConflictError):
        server.add_export(other)
    server.add_export(export)
    async with await NbdClient.connect(path=here.folder / "s", export="vol") as again:
        assert await again.read(0, 4) == b"xxx\0"
    await bystander.close()
    await client.close()
    await server.close()


@on_both_loops
async def test_a_write_that_never_ends_does_not_hold_the_removal_for_ever(here: Here) -> None:
    here.monkeypatch.setattr("rephub.core.nbd.adapter.DRAIN_SECONDS_MAX", 0.1)
    export = Failing(INFO)
    server, client = await serving(here, export)
    export.gate = asyncio.Event()
    call = asyncio.create_task(client.write(0, b"x"))
    await until(lambda: export.running == 1)
    await server.remove_export("vol")
    assert export.cancelled == 1
    assert "request_overdue" in here.caplog.text
    assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], UnavailableError)
    await client.close()
    await server.close()


@on_both_loops
async def test_closing_does_not_wait_for_a_peer_that_does_not_read(here: Here) -> None:
    here.monkeypatch.setattr("rephub.core.nbd.server.CLOSE_SECONDS_MAX", 0.2)
    server, client = await serving(here, MemoryExport(INFO))
    raw = await Raw.serving(here.folder / "s")
    raw.reader._transport.pause_reading()
    raw.writer.write(b"".join(request(nbd.CMD_READ, n, 0, 8 * MIB) for n in range(4)))
    await client.flush()
    await until(lambda: server.connections == 2)
    await server.close()
    assert server.connections == 0
    await raw.close()
    await client.close()
