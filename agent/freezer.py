"""Freezes the guests behind some volumes for the moment of a marker, and thaws them whatever happens.

A guest that stays frozen is worse than any checkpoint is good. So a thaw is a task of its own, which no error and no
cancellation ends, which begins at the limit at the latest, and which is repeated until the guest confirmed it or is
gone. What may be frozen also stands in a file: an agent that was killed thaws it after its restart.

Freezing makes the guest write, which capture has to answer: nothing here holds answers or drains a QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from rephub.agent.guest_agent import HINT, GuestAgent, find_socket
from rephub.agent.note import Note
from rephub.agent.vms import Vms
from rephub.core.errors import NotFoundError, RephubError, UnavailableError

SYNC_SECONDS = 3.0
"""A guest agent that runs answers at once; one that is stuck is found out before anything is frozen."""

THAW_SECONDS = 3.0
"""One try."""

RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 2.0

WAIT_SECONDS = 5.0
"""How long a checkpoint, or a stop of the agent, waits for thaws to be confirmed; they are repeated beyond it."""

log = logging.getLogger(__name__)


class _Visitor:
    """Who looks at a VM without holding any of its volumes."""

    name = ""

    def vm_gone(self) -> None:
        """Nothing to do: the next command says so."""


class Frozen:
    """Guests that are frozen, or that could not be; `Freezer.freeze` makes it.

    Args:
        until: when they are thawed at the latest, by the monotonic clock.
        done: called once all are thawed.
    """

    def __init__(self, until: float, done: asyncio.Event) -> None:
        self.until = until
        self.failure: RephubError | None = None
        """Why not all of them are frozen; then none is."""
        self.agents: list[GuestAgent] = []
        self._thawing: list[asyncio.Task[None]] = []
        self._begun = False
        self._done = done
        self._timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """From now on the thaw begins by itself at the limit."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self.until - time.monotonic()), self.thaw)

    def thaw(self) -> None:
        """Begin to thaw, without a pause; once."""
        if self._begun:
            return
        self._begun = True
        if self._timer:
            self._timer.cancel()
        self._thawing = [asyncio.create_task(_thaw(agent)) for agent in self.agents]
        for task in self._thawing:
            task.add_done_callback(self._ended)
        if not self._thawing:
            self._done.set()

    async def thawed(self) -> str:
        """Thaw and wait for it, up to WAIT_SECONDS; what is to be said of guests that do not confirm."""
        self.thaw()
        if self._thawing:
            await asyncio.wait(self._thawing, timeout=WAIT_SECONDS)
        late = [agent.path for agent in self.agents if agent.may_be_frozen]
        return f"no thaw was confirmed on {', '.join(late)}: it is repeated until it is" if late else ""

    def _ended(self, _task: asyncio.Task[None]) -> None:
        if all(task.done() for task in self._thawing):
            self._done.set()


def frozen_note(directory: Path) -> Note[list[str]]:
    """Sockets of guests that may be frozen; half of the list would leave guests so."""

    def is_sound(found: Any) -> bool:
        return isinstance(found, list) and all(isinstance(path, str) for path in found)

    return Note(directory / "frozen.json", is_sound, list)


class Freezer:
    """All freezes of this agent, one at a time.

    Args:
        vms: monitor connections.
        directory: of the agent, for the note of what may be frozen.
        seconds: limit of a freeze as a whole, from its first step until the thaw begins.
    """

    def __init__(self, vms: Vms, directory: Path, seconds: float) -> None:
        self._vms = vms
        self._note = frozen_note(directory)
        self._seconds = seconds
        self._visitor = _Visitor()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def recover(self) -> None:
        """Thaw what a process before this one may have left frozen."""
        paths = self._note.read()
        if not paths:
            return
        log.warning("a former process may have left guests frozen: thawing", extra={"sockets": paths})
        frozen = self._frozen(time.monotonic())
        for path in paths:
            agent = GuestAgent(path)
            agent.may_be_frozen = True
            frozen.agents.append(agent)
        frozen.thaw()

    async def freeze(self, monitors: Iterable[str]) -> Frozen:
        """Freeze the guests behind all these monitors, or none.

        Returns:
            What is frozen; its `thaw` must be called. With `failure` set, nothing is and thaws have been begun.
        """
        until = time.monotonic() + self._seconds
        try:
            async with asyncio.timeout(self._seconds):
                while not self._idle.is_set():
                    await self._idle.wait()
        except TimeoutError:
            frozen = Frozen(until, asyncio.Event())
            frozen.failure = UnavailableError("a former freeze has not ended", hint="see the agent's log")
            return frozen
        frozen = self._frozen(until)
        try:
            await self._freeze_all(frozen, sorted(set(monitors)))
            frozen.arm()
        except RephubError as exc:
            frozen.failure = exc
            await frozen.thawed()
        except BaseException:
            frozen.thaw()
            raise
        return frozen

    async def stop(self) -> None:
        """Wait for thaws under way, up to WAIT_SECONDS; the note keeps what is left for the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await self._idle.wait()

    def _frozen(self, until: float) -> Frozen:
        self._idle.clear()
        done = asyncio.Event()
        task = asyncio.create_task(self._forget(done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Frozen(until, done)

    async def _forget(self, done: asyncio.Event) -> None:
        await done.wait()
        self._note.remove()
        self._idle.set()

    async def _freeze_all(self, frozen: Frozen, monitors: list[str]) -> None:
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + max(0.0, frozen.until - time.monotonic())
            ):
                for monitor in monitors:
                    frozen.agents.append(GuestAgent(await self._socket(monitor)))
                await _all(_reach(agent) for agent in frozen.agents)
                # Before the first freeze: whatever happens from here on, somebody will know.
                self._note.write([agent.path for agent in frozen.agents])
                await _all(_freeze(agent) for agent in frozen.agents)
        except TimeoutError:
            raise UnavailableError(
                f"the guest was not frozen within {self._seconds:g} s", hint="agent.freeze_seconds"
            ) from None
        except OSError as exc:
            raise UnavailableError(f"cannot write {self._note.path}: {exc.strerror}") from exc

    async def _socket(self, monitor: str) -> str:
        vm = await self._vms.get(monitor, self._visitor)
        try:
            return await find_socket(vm)
        finally:
            self._vms.give_back(monitor, self._visitor)


async def _all(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run steps at the same time; the first error ends the others, and none runs on behind it."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _reach(agent: GuestAgent) -> None:
    try:
        async with asyncio.timeout(SYNC_SECONDS):
            await agent.sync()
    except TimeoutError:
        raise UnavailableError(
            f"the guest agent on {agent.path} does not answer within {SYNC_SECONDS:g} s", hint=HINT
        ) from None


async def _freeze(agent: GuestAgent) -> None:
    if not await agent.freeze():
        raise UnavailableError("the guest has no file system that can be frozen", hint="mount one")
    if not await agent.is_frozen():
        raise UnavailableError("the guest thawed by itself")


async def _thaw(agent: GuestAgent) -> None:
    """Thaw one guest, again and again until it confirms or is gone."""
    delay = RETRY_SECONDS
    while agent.may_be_frozen:
        try:
            async with asyncio.timeout(THAW_SECONDS):
                await agent.thaw()
        except NotFoundError:
            log.warning("the VM went away while frozen", extra={"socket": agent.path})
            agent.may_be_frozen = False
        except (RephubError, TimeoutError) as exc:
            log.error(
                "not thawed, trying again", extra={"socket": agent.path, "error": str(exc) or "timeout"}
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_SECONDS_MAX)
    agent.close()
