"""The NBD server: listeners, connections, exports that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from rephub.core.errors import ConflictError, UnavailableError, UsageError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.adapter import ExportHandler
from rephub.core.nbd.connection import ServerConnection
from rephub.core.nbd.export import AsyncExport, ExportInfo, RequestHandler

log = logging.getLogger(__name__)

CLOSE_SECONDS_MAX: Final = 2.0
"""How long a closing connection may take to send what was answered; then it is dropped."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path of unix(7), less its NUL."""


class NbdServer:
    """Serves exports on any number of unix and TCP sockets.

    Args:
        exports: by name; entries may be added at any time, here or by `add_export`. Take one away with
            `remove_export`, which closes its connections.
        connections_max: at once. One more takes the place of the oldest that has not ended its handshake; where all have,
            it is closed unanswered.
        one_connection: accept one connection in the server's life, then stop listening (capture: QEMU would
            reconnect silently).
    """

    def __init__(
        self,
        exports: dict[str, tuple[ExportInfo, RequestHandler]] | None = None,
        connections_max: int = nbd.CONNECTIONS_MAX,
        *,
        one_connection: bool = False,
    ) -> None:
        self.exports = {} if exports is None else exports
        self._connections_max = connections_max
        self._one_connection = one_connection
        self._spent = False
        self._connections: dict[ServerConnection, None] = {}
        """In order of arrival."""
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[Path, int]] = []

    @property
    def connections(self) -> int:
        """How many there are now, those in the handshake included."""
        return len(self._connections)

    async def listen_unix(self, path: Path | str, mode: int = 0o600) -> None:
        """Listen on a unix socket; nobody can connect before it has its mode.

        Raises:
            UsageError: the path is too long for a socket.
            ConflictError: somebody listens there, or something else is there.
            UnavailableError: the directory is missing or forbidden.
        """
        path = Path(path)
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            raise UsageError(f"socket path {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes")
        sock = _bound_unix(path)
        try:
            path.chmod(mode)
            loop = asyncio.get_running_loop()
            backlog = 1 if self._one_connection else nbd.CONNECTIONS_MAX
            listener = await loop.create_unix_server(self._connection, sock=sock, backlog=backlog)
        except BaseException:
            sock.close()
            path.unlink(missing_ok=True)
            raise
        self._paths.append((path, path.stat().st_ino))
        self._listeners.append(listener)

    async def listen_tcp(self, host: str, port: int = 0) -> int:
        """Listen on TCP; port 0 takes a free one.

        Returns:
            The port.

        Raises:
            ConflictError: the port is taken.
            UnavailableError: no such address.
        """
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._connection, host, port, backlog=nbd.CONNECTIONS_MAX, reuse_address=True
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"port {port} of {host} is taken") from error
            raise UnavailableError(f"cannot listen on {host}:{port}: {error}") from error
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def add_export(self, export: AsyncExport) -> None:
        """Serve an `AsyncExport` under its own name.

        Raises:
            ConflictError: the name is taken.
        """
        name = export.info.name
        if name in self.exports:
            raise ConflictError(f"an export named {name!r} is served already")
        self.exports[name] = (export.info, ExportHandler(export))

    async def remove_export(self, name: str) -> None:
        """Stop serving an export: close its connections, wait for its requests under way; no error if unknown.

        When this returns nobody calls the export any more. Takes at most `CLOSE_SECONDS_MAX` plus the deadline of
        `ExportHandler.drain`.
        """
        entry = self.exports.pop(name, None)
        if entry is None:
            return
        _, handler = entry
        await self._close([c for c in self._connections if c.handler is handler])
        if isinstance(handler, ExportHandler):
            await handler.drain()

    async def close(self) -> None:
        """Stop listening, close all connections, wait for the requests under way of async exports."""
        self._stop_listening()
        await self._close(list(self._connections))
        for _, handler in list(self.exports.values()):
            if isinstance(handler, ExportHandler):
                await handler.drain()

    async def _close(self, connections: list[ServerConnection]) -> None:
        for connection in connections:
            connection.close()
        if connections:
            gone = [connection.gone for connection in connections]
            await asyncio.wait(gone, timeout=CLOSE_SECONDS_MAX)
            for connection in connections:
                if not connection.gone.done():
                    connection.abort()
            await asyncio.wait(gone, timeout=CLOSE_SECONDS_MAX)

    def _connection(self) -> ServerConnection:
        return ServerConnection(self.exports, self._opened, self._forget)

    def _forget(self, connection: ServerConnection) -> None:
        self._connections.pop(connection, None)

    def _make_room(self) -> bool:
        """Drop the oldest connection that is still in its handshake: an honest one takes milliseconds for it."""
        for connection in self._connections:
            if connection.handler is None:
                log.warning("nbd=idle_connection_dropped connections_max=%d", self._connections_max)
                self._forget(connection)
                connection.abort()
                return True
        return False

    def _opened(self, connection: ServerConnection) -> bool:
        if self._spent:
            log.warning("nbd=second_connection_refused")
            return False
        if len(self._connections) >= self._connections_max and not self._make_room():
            log.warning("nbd=connection_refused connections_max=%d", self._connections_max)
            return False
        self._connections[connection] = None
        if self._one_connection:
            self._spent = True
            self._stop_listening()
        return True

    def _stop_listening(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        paths, self._paths = self._paths, []
        for path, inode in paths:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:  # not one that somebody made there since
                    path.unlink()


def _bound_unix(path: Path) -> socket.socket:
    """A socket bound to `path`, not listening yet; a stale one there is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            sock.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise UnavailableError(f"cannot make socket {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        ConflictError: somebody does, or it is no socket.
    """
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConflictError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: it is alive
    raise ConflictError(f"somebody listens on {path} already")
