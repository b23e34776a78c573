"""Direct sockets between agents: a unix socket under the state directory, or TCP where it is configured.

They speak the calls of `ipc.py`. Nothing travels here but the steps of a checkpoint (`hold_side.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from rephub.agent.ipc import Channel, Document
from rephub.core.config import Settings, socket_path
from rephub.core.errors import UnavailableError

CONNECT_SECONDS = 2.0
"""A direct socket of the same site; no hold has begun by then."""

PEERS_MAX = 64
"""Connections at once; a coordinator has one for each checkpoint that is under way."""

Serve = Callable[[str, Document], Awaitable[Document]]

log = logging.getLogger(__name__)


class PeerServer:
    """Listens for other agents.

    Args:
        settings: say where.
        serve: answers their calls.
    """

    def __init__(self, settings: Settings, serve: Serve) -> None:
        self._settings = settings
        self._serve = serve
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; returns the address for `AgentAnnounced`.

        Raises:
            UnavailableError: the address is taken or is none of this host.
        """
        agent = self._settings.agent
        try:
            if agent.peer_host:
                family = socket.AF_INET6 if ":" in agent.peer_host else socket.AF_INET
                self._listener = socket.create_server((agent.peer_host, agent.peer_port), family=family)
                address = f"tcp:{agent.peer_host}:{self._listener.getsockname()[1]}"
            else:
                digest = hashlib.sha256(agent.id.encode()).hexdigest()[:12]
                path = socket_path(self._settings, f"p{digest}")
                path.unlink(missing_ok=True)
                self._listener = socket.socket(socket.AF_UNIX)
                self._listener.bind(str(path))
                path.chmod(0o600)
                self._listener.listen()
                address = f"unix:{path}"
        except OSError as exc:
            raise UnavailableError(
                f"cannot listen for other agents: {exc}", hint="see agent.peer_host and agent.peer_port"
            ) from exc
        self._listener.setblocking(False)  # noqa: FBT003 - the library's signature
        self._accepting = asyncio.create_task(self._accept(self._listener))
        return address

    async def stop(self) -> None:
        """Close everything."""
        tasks = [*self._serving, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener:
            self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _address = await loop.sock_accept(listener)
            if len(self._serving) >= PEERS_MAX:
                sock.close()
                continue
            task = asyncio.create_task(self._talk(sock))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _talk(self, sock: socket.socket) -> None:
        channel = _channel(sock, self._serve)
        try:
            await channel.open()
            await channel.run()
        finally:
            channel.close()


@contextlib.asynccontextmanager
async def connected(agent: str, address: str) -> AsyncIterator[Channel]:
    """A channel to another agent.

    Args:
        agent: its name, for errors.
        address: as it announced it.

    Raises:
        UnavailableError: it cannot be reached.
    """
    kind, _, place = address.partition(":")
    if kind not in ("unix", "tcp"):
        raise UnavailableError(
            f"agent {agent} has no address for checkpoints of groups", hint="restart it with this version"
        )
    loop = asyncio.get_running_loop()
    sock = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if kind == "unix":
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)  # noqa: FBT003 - the library's signature
                await loop.sock_connect(sock, place)
            else:
                host, _, port = place.rpartition(":")
                sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
                sock.setblocking(False)  # noqa: FBT003 - the library's signature
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(sock, (host, int(port)))
    except (OSError, ValueError, TimeoutError) as exc:
        if sock:
            sock.close()
        raise UnavailableError(
            f"agent {agent} cannot be reached at {address}: {exc or 'no answer'}",
            hint="agents on several hosts need agent.peer_host; is it running? rephub status",
        ) from exc
    channel = _channel(sock, _no_calls, f"agent {agent}")
    await channel.open()
    running = asyncio.create_task(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        await asyncio.gather(running, return_exceptions=True)


def _channel(sock: socket.socket, serve: Serve, peer: str = "the other agent") -> Channel:
    return Channel(sock, serve, lambda _notice, _fields: None, peer=peer)


async def _no_calls(op: str, _fields: Document) -> Document:
    raise UnavailableError(f"a coordinator serves no calls ({op})")
