"""Peers that mean harm, on real sockets: what a server takes in memory while they try, and a client among bad servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.nbd.loops import Here, on_both_loops, until
from rephub.core.errors import ProtocolError, RephubError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client import NbdClient
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.memory import MemoryExport
from rephub.core.nbd.options import option
from rephub.core.nbd.server import NbdServer
from unit.nbd.wire import HELLO, STRUCTURED, ServerSession, go, request, set_context, write

MIB = 1 << 20
INFO_BYTES = 64 * MIB

SERVER = """
import asyncio, sys
import uvloop
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.memory import MemoryExport
from rephub.core.nbd.server import NbdServer

class Slow(MemoryExport):
    async def write(self, start, data, fua):
        await asyncio.sleep(1)

async def main():
    server = NbdServer()
    server.add_export(MemoryExport(ExportInfo("vol", 64 << 20, block_status=True)))
    server.add_export(Slow(ExportInfo("slow", 64 << 20)))
    await server.listen_unix(sys.argv[1])
    print("ready", flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""
"""A process of its own, so that its memory is the server's alone; a write to `slow` takes a second."""


@dataclass
class Target:
    """The server under attack."""

    path: Path
    pid: int

    def peak_bytes(self) -> int:
        """The most memory it ever had (proc(5), VmHWM)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no VmHWM")

    def forget_peak(self) -> None:
        """The peak is what it has now (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def target(short_session_dir: Path) -> Iterator[Target]:
    path = short_session_dir / "hostile"
    process = subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield Target(path, process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


Attack = Callable[["Foe"], Awaitable[None]]


class Foe:
    """A client that sends what it likes, and reads only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Foe:
        """Connected; what the server says is not taken beyond 4 KiB."""
        return cls(*await asyncio.open_unix_connection(str(path), limit=4096))

    async def send(self, data: bytes) -> bool:
        """Send; False if the server does not take it: half a second passed."""
        self.writer.write(data)
        try:
            await asyncio.wait_for(self.writer.drain(), 0.5)
        except (TimeoutError, OSError):
            return False
        return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def idle(foe: Foe) -> None:
    """Connect and nothing else."""


async def half_an_option(foe: Foe) -> None:
    """The longest option that is taken, less its last byte."""
    await foe.send(HELLO + option(nbd.OPT_GO, bytes(nbd.OPTION_BYTES_MAX))[:-1])


async def many_lists(foe: Foe) -> None:
    """As many options as are allowed, each with the longest answer."""
    await foe.send(HELLO + (STRUCTURED + option(nbd.OPT_LIST) + set_context("vol", *["base:"] * 5000)) * 20)


async def refused_writes(foe: Foe) -> None:
    """4 GiB are announced; 32 MiB of them come."""
    await foe.send(HELLO + go("vol") + request(nbd.CMD_WRITE, 1, 0, (1 << 32) - 1))
    for _ in range(32):
        await foe.send(bytes(MIB))


async def answers_not_taken(foe: Foe) -> None:
    """Reads of 32 MiB whose answers nobody takes."""
    await foe.send(
        HELLO + STRUCTURED + go("vol") + b"".join(request(nbd.CMD_READ, n, 0, 32 * MIB) for n in range(200))
    )


async def errors_not_taken(foe: Foe) -> None:
    """A million requests that are refused, and nobody takes the refusals."""
    await foe.send(HELLO + STRUCTURED + go("vol"))
    while await foe.send(request(99, 1) * 100_000):
        pass


async def writes_answered_late(foe: Foe) -> None:
    """The export is slow, the writes go on."""
    await foe.send(HELLO + go("slow"))
    n = 0
    while await foe.send(write(n, 0, bytes(8 * MIB))):
        n += 1


ATTACKS: dict[str, tuple[Attack, int, float]] = {
    "idle": (idle, 200, 0.15),
    "half an option": (half_an_option, 200, 0.2),
    "many lists": (many_lists, 20, 1.5),
    "refused writes": (refused_writes, 8, 2.5),
    "answers not taken": (answers_not_taken, 2, 100),
    "errors not taken": (errors_not_taken, 8, 6),
    "writes answered late": (writes_answered_late, 2, 75),
}
"""What is done, by how many at a time, and the MiB that each may cost the server (docs/nbd.md, Limits)."""


@pytest.mark.parametrize("attack", ATTACKS)
async def test_hostile_clients_cost_the_server_bounded_memory(target: Target, attack: str) -> None:
    """Twice the same: the second time must not come on top of the first."""
    act, count, limit_mib = ATTACKS[attack]
    async with asyncio.timeout(60):
        async with await NbdClient.connect(path=target.path, export="vol") as honest:
            await honest.write(0, b"honest")
        target.forget_peak()
        before = target.peak_bytes()
        peaks = []
        for _ in range(2):
            async with contextlib.AsyncExitStack() as stack:
                foes = []
                for _ in range(count):
                    foes.append(await Foe.connect(target.path))
                    stack.push_async_callback(foes[-1].close)
                await asyncio.gather(*(act(foe) for foe in foes))
                async with await NbdClient.connect(path=target.path, export="vol") as honest:
                    assert await honest.read(0, 6) == b"honest"
                peaks.append((target.peak_bytes() - before) / MIB)
    print(f"{attack}: {count} clients, {peaks[0]:.1f} and {peaks[1]:.1f} MiB at most")
    assert max(peaks) < 4 + limit_mib * min(count, nbd.CONNECTIONS_MAX)


# Bad servers


@contextlib.asynccontextmanager
async def says(
    here: Here, first: bytes, answer: bytes | None = None, *, hang: bool = False
) -> AsyncIterator[Path]:
    """A server that says `first`, and `answer` once it was asked for something; then it hangs, or hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(first)
            await writer.drain()
            heard = b""
            while answer is not None and nbd.REQUEST_MAGIC.to_bytes(4, "big") not in heard:
                heard += await reader.read(1 << 16)
            writer.write(answer or b"")
            await writer.drain()
            while hang and await reader.read(1 << 16):
                pass
        writer.close()

    path = here.folder / f"bad-{os.urandom(4).hex()}"
    listener = await asyncio.start_unix_server(serve, str(path))
    try:
        yield path
    finally:
        listener.close()
        await listener.wait_closed()


def conversation() -> bytes:
    """What an honest server says to our client until it serves."""
    session = ServerSession(ExportInfo("vol", INFO_BYTES, block_status=True))
    heard = (
        HELLO
        + STRUCTURED
        + set_context("vol", nbd.BASE_ALLOCATION)
        + go("vol", nbd.OPT_GO, nbd.INFO_BLOCK_SIZE)
    )
    return bytes(session.receive(heard).greetings)


@on_both_loops
async def test_a_server_that_hangs_up_at_any_byte_of_the_handshake_is_unavailable(here: Here) -> None:
    whole = conversation()
    for cut in range(0, len(whole), 3):
        async with says(here, whole[:cut]) as path:
            with pytest.raises(UnavailableError):
                await NbdClient.connect(path=path, export="vol", timeout_seconds=10)


ANSWERS = {
    "hangs up": (b"", UnavailableError),
    "rubbish": (b"rubbish " * 40, ProtocolError),
    "an answer to nobody": (nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 77), ProtocolError),
    "4 GiB of data": (
        nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, nbd.REPLY_OFFSET_DATA, 1, (1 << 32) - 1) + bytes(99),
        ProtocolError,
    ),
    "half of the data": (
        nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, nbd.REPLY_OFFSET_DATA, 1, 8 + 4096) + bytes(2000),
        UnavailableError,
    ),
}


@on_both_loops
async def test_a_server_that_answers_badly_fails_all_that_waits_with_an_error_of_ours(here: Here) -> None:
    for answer, expected in ANSWERS.values():
        async with says(here, conversation(), answer) as path:
            client = await NbdClient.connect(path=path, export="vol", timeout_seconds=10)
            calls = [client.read(0, 4096), client.write(0, b"x"), client.block_status(0, 4096)]
            found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert {type(error) for error in found} == {expected}, answer
            await until(lambda bad=client: not bad.alive)
            with pytest.raises(RephubError):
                await client.flush()
            await client.close()


@on_both_loops
async def test_a_server_that_never_answers_is_let_go_at_the_callers_deadline(here: Here) -> None:
    async with says(here, conversation(), hang=True) as path:
        client = await NbdClient.connect(path=path, export="vol", timeout_seconds=10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.read(0, 4096), 0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.write(0, bytes(32 * MIB)), 0.1)
        await asyncio.wait_for(client.close(), 10)


class Patchwork(MemoryExport):
    """Every other byte is a hole, it says."""

    async def block_status(self, start: int, length: int) -> list[tuple[int, int]]:
        return [(1, 3 * (n & 1)) for n in range(start, start + min(length, 9000))]


@on_both_loops
async def test_a_server_with_an_extent_for_each_byte_is_given_up(here: Here) -> None:
    """A volume of a terabyte would be a list of as many extents."""
    server = NbdServer()
    here.stack.push_async_callback(server.close)
    server.add_export(Patchwork(ExportInfo("vol", 1 << 40, block_status=True)))
    await server.listen_unix(here.folder / "s")
    async with await NbdClient.connect(path=here.folder / "s", export="vol") as client:
        assert len(await client.block_status(0, 50_000)) == 50_000
        with pytest.raises(ProtocolError, match="absurdly many"):
            await client.block_status(0, 1 << 40)
        assert await client.read(0, 1) == b"\0"
