"""One QEMU behind its monitor socket: connect, run QMP commands, hear events. Works the same with a VM and with
`qemu-storage-daemon`.

Every wait is bounded. One connection serves all volumes of the QEMU: a second client on one socket would hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from rephub.core.errors import ConflictError, NotFoundError, QemuError, UnavailableError

CONNECT_SECONDS = 3.0
"""A monitor greets at once; one that has a client already never does."""

QUERY_SECONDS = 10.0
"""QEMU's main loop may be busy for a while, for example with a slow disk."""

DRAIN_SECONDS = 30.0
"""Commands that wait for all requests under way."""

Handler = Callable[[str, dict[str, Any]], None]

log = logging.getLogger(__name__)
# The library logs an error for each failed connect; `Vm.connect` raises one that says more.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Vm:
    """One monitor connection.

    Args:
        path: of the monitor's unix socket.
        gone: called when an established connection ends by itself.
        heard: called with each event's name and data.
    """

    def __init__(
        self,
        path: str,
        gone: Callable[[Vm], None],
        heard: Callable[[Vm, str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.path = path
        self.pid = 0
        """Process id of the QEMU; 0 if it cannot be seen from here."""
        self.version = (0, 0, 0)
        self.lock = asyncio.Lock()
        """Held by whoever attaches, detaches or cleans: one change of this QEMU at a time."""
        self._gone = gone
        self._heard = heard
        self._client: QMPClient | None = None
        self._handlers: dict[str, Handler] = {}
        self._listening: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether commands can be run."""
        return self._client is not None

    async def connect(self) -> None:
        """Connect if not connected.

        Raises:
            NotFoundError: no socket of this name.
            UnavailableError: nobody listens, no permission, or another client holds the monitor.
            ConflictError: somebody listens who is no QMP monitor.
        """
        async with self._connecting:
            if self._client is None:
                await self._connect()

    async def _connect(self) -> None:
        sock = await _connected_socket(self.path)
        self.pid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        client = QMPClient("rephub")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if await _first_byte(sock) == b"{":
                    await client.connect(sock)
        except TimeoutError:
            sock.close()
            raise UnavailableError(
                f"monitor {self.path} does not greet within {CONNECT_SECONDS:g} s",
                hint="another client may hold it: give RepHub a monitor socket of its own",
            ) from None
        except (QMPError, OSError) as exc:
            sock.close()
            raise UnavailableError(
                f"monitor {self.path} ended the connection: {exc}", hint="is the VM running?"
            ) from exc
        if client.runstate.name != "RUNNING":
            sock.close()
            raise ConflictError(
                f"who listens on {self.path} is no QMP monitor",
                hint="name the socket of a QMP monitor: not of an HMP monitor, a console or an NBD server",
            )
        greeting = client.greeting
        assert greeting is not None
        qemu: Any = greeting.QMP.version["qemu"]
        self.version = (qemu["major"], qemu["minor"], qemu["micro"])
        self._client = client
        self._listening = asyncio.create_task(self._listen(client))

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, seconds: float = QUERY_SECONDS
    ) -> Any:
        """Run a command.

        Raises:
            QemuError: QEMU refused it.
            UnavailableError: not connected, the connection ended, or no answer in time; whether the command
                was run is then unknown.
        """
        client = self._client
        if client is None:
            raise UnavailableError(f"monitor {self.path} is not connected", hint="is the VM running?")
        try:
            async with asyncio.timeout(seconds):
                return await client.execute(command, arguments)
        except ExecuteError as exc:
            raise QemuError(f"QEMU refused {command}: {exc}", command=command, description=str(exc)) from exc
        except TimeoutError:
            raise UnavailableError(
                f"QEMU at {self.path} did not answer {command} within {seconds:g} s",
                hint="is the VM stopped, or its storage stuck?",
            ) from None
        except (ExecInterruptedError, QMPError, OSError) as exc:
            raise UnavailableError(f"QEMU at {self.path} went away during {command}") from exc

    def on_job(self, job: str, handler: Handler | None) -> None:
        """Tell a block job's events (name, data) to the handler; None: to nobody any more."""
        if handler is None:
            self._handlers.pop(job, None)
        else:
            self._handlers[job] = handler

    async def close(self) -> None:
        """Leave the monitor."""
        client, self._client = self._client, None
        if self._listening:
            self._listening.cancel()
            await asyncio.wait({self._listening})
            self._listening = None
        if client:
            await _disconnect(client)

    async def _listen(self, client: QMPClient) -> None:
        with client.listener() as listener:
            ended = asyncio.create_task(_ended(client))
            try:
                await self._dispatch(listener, ended)
            finally:
                ended.cancel()
        if self._client is client:
            self._client = None
            self._listening = None
            log.warning("monitor connection ended", extra={"monitor": self.path})
            await _disconnect(client)
            self._gone(self)

    async def _dispatch(self, listener: EventListener, ended: asyncio.Task[None]) -> None:
        while not ended.done():
            event = asyncio.create_task(listener.get())
            try:
                await asyncio.wait({event, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # Also when this is cancelled: a task that nobody awaits would be destroyed while pending.
                event.cancel()
            if not event.done():
                continue
            message: Any = event.result()
            data = message.get("data", {})
            name, job = str(message["event"]), data.get("device") or data.get("id")
            handler = self._handlers.get(job)
            log.debug("qmp event", extra={"monitor": self.path, "event": name, "job": job})
            if handler:
                handler(name, data)
            if self._heard:
                self._heard(self, name, data)


async def _ended(client: QMPClient) -> None:
    """Return when the connection is no longer running."""
    while client.runstate.name == "RUNNING":
        await client.runstate_changed()


async def _disconnect(client: QMPClient) -> None:
    # The library raises what ended the connection; it is ended all the same.
    with contextlib.suppress(EOFError, OSError, QMPError, TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.disconnect()


async def _first_byte(sock: socket.socket) -> bytes:
    """What the peer says first, left in the socket; empty if it hangs up. A QMP monitor begins with `{`."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if readable.done() else readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(sock.fileno())
    return sock.recv(1, socket.MSG_PEEK)


async def _connected_socket(path: str) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - one inode, at once
            raise NotFoundError(f"{path} is no socket", hint="name QEMU's QMP monitor socket with --qmp")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, path)
        except BaseException:
            sock.close()
            raise
    except FileNotFoundError:
        raise NotFoundError(
            f"monitor socket {path} is not there",
            hint="start QEMU with a QMP socket of RepHub's own, and name its path",
        ) from None
    except ConnectionRefusedError:
        raise UnavailableError(f"nobody listens on monitor {path}", hint="is the VM running?") from None
    except (TimeoutError, BlockingIOError):
        raise UnavailableError(
            f"monitor {path} takes no connection",
            hint="another client may hold it: give RepHub a monitor socket of its own",
        ) from None
    except OSError as exc:
        raise UnavailableError(
            f"monitor {path} cannot be reached: {exc.strerror or exc}",
            hint="the agent's user needs access to the socket",
        ) from exc
    return sock


@contextlib.asynccontextmanager
async def tolerated(*words: str) -> AsyncIterator[None]:
    """Let a QemuError pass whose description holds one of the words: what was to be removed is gone."""
    try:
        yield
    except QemuError as exc:
        if not any(word in exc.description for word in words):
            raise


def find(items: Iterable[dict[str, Any]], key: str, value: str) -> dict[str, Any] | None:
    """The first document whose `key` is `value`."""
    return next((item for item in items if item.get(key) == value), None)
