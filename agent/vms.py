"""All monitor connections of the agent: one per socket, shared by everybody who needs that QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from rephub.agent.vm import Vm
from rephub.agent.workers import WorkerPool

VMS_MAX = 1000
"""Monitors of one host."""


class User(Protocol):
    """Who needs a QEMU."""

    @property
    def name(self) -> str:
        """Of its volume; empty for one without."""

    def vm_gone(self) -> None:
        """The connection ended by itself."""


class Vms:
    """The connections.

    Args:
        pool: whose throttling is off while a QEMU drains.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.on_event: Callable[[Vm, str, dict[str, Any]], None] | None = None
        """Is told every event of every QEMU: name and data."""
        self._pool = pool
        self._vms: dict[str, Vm] = {}
        self._users: dict[str, list[User]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def get(self, path: str, user: User) -> Vm:
        """The connected QEMU behind a monitor socket; `give_back` it.

        Raises:
            NotFoundError, UnavailableError, ConflictError: see `Vm.connect`.
        """
        vm = self._vms.get(path)
        if vm is None:
            vm = self._vms[path] = Vm(path, self._gone, self._heard)
        users = self._users.setdefault(path, [])
        if user not in users:
            users.append(user)
        try:
            await vm.connect()
        except BaseException:
            self.give_back(path, user)
            raise
        return vm

    def give_back(self, path: str, user: User) -> None:
        """The user needs the QEMU no more; the last one's leaving frees the monitor."""
        users = self._users.get(path, [])
        if user in users:
            users.remove(user)
        if not users and path in self._vms:
            del self._users[path]
            task = asyncio.create_task(self._vms.pop(path).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def in_use(self) -> list[Vm]:
        """Connected QEMUs that a volume needs: not those that somebody only looks at."""
        return [vm for path, vm in self._vms.items() if vm.connected and self.volumes(path)]

    def volumes(self, path: str) -> list[str]:
        """Volumes that need the QEMU behind a monitor."""
        return [user.name for user in self._users.get(path, []) if user.name]

    @contextlib.asynccontextmanager
    async def changing(self, vm: Vm) -> AsyncIterator[None]:
        """Hold a QEMU alone, its volumes' answers not throttled: its commands wait for them."""
        async with vm.lock:
            volumes = self.volumes(vm.path)
            await self._pool.throttle(volumes, on=False)
            try:
                yield
            finally:
                await self._pool.throttle(volumes, on=True)

    async def close(self) -> None:
        """Leave all monitors."""
        for vm in list(self._vms.values()):
            await vm.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _heard(self, vm: Vm, name: str, data: dict[str, Any]) -> None:
        if self.on_event:
            self.on_event(vm, name, data)

    def _gone(self, vm: Vm) -> None:
        for user in list(self._users.get(vm.path, [])):
            user.vm_gone()


def is_listening(path: str) -> bool:
    """Whether anybody listens on a unix socket, free to talk or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
