"""A server in this process, on a loop of its own thread, so that strangers can be run synchronously against it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import uvloop

from rephub.core.nbd.export import AsyncExport
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import tcp_uri, unix_uri

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Running:
    """Where the server is, and how to reach into its loop."""

    def __init__(self, server: NbdServer, path: Path, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.path, self.port, self._loop = server, path, port, loop

    def uri(self, export: str, kind: str = "unix") -> str:
        return unix_uri(self.path, export) if kind == "unix" else tcp_uri("127.0.0.1", self.port, export)

    def call(self, coroutine):
        """Run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@contextlib.contextmanager
def running(
    path: Path, loop: str, *exports: AsyncExport, make: Callable[[], NbdServer] = NbdServer
) -> Iterator[Running]:
    """A server with these exports, until the end of the block; its loop must end without complaint."""
    complaints: list[str] = []
    ready: list[Running] = []
    started, stop = threading.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def served() -> AsyncIterator[Running]:
        server = make()
        for export in exports:
            server.add_export(export)
        await server.listen_unix(path)
        port = await server.listen_tcp("127.0.0.1")
        yield Running(server, path, port, asyncio.get_running_loop())
        await server.close()
        assert server.connections == 0

    async def main(context: AbstractAsyncContextManager[Running]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, details: complaints.append(str(details)))
        async with context as found:
            ready.append(found)
            started.set()
            await stop.wait()

    def thread() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            try:
                runner.run(main(served()))
            except BaseException as error:
                complaints.append(repr(error))
                started.set()
                raise

    worker = threading.Thread(target=thread)
    worker.start()
    try:
        assert started.wait(10)
        assert not complaints, complaints
        yield ready[0]
    finally:
        if ready:
            ready[0]._loop.call_soon_threadsafe(stop.set)
        worker.join(30)
    assert not complaints, complaints


def run(*argv: str | Path, check: bool = True, timeout: float = 60) -> str:
    """Run a stranger; its output."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=timeout, check=False
    )
    if check:
        assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_failing(*argv: str | Path) -> str:
    """Run a stranger that must fail; its output."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0, f"{argv} succeeded:\n{done.stdout}"
    return done.stdout + done.stderr
