"""Starts the parts of a stack in stages, starts again what dies, stops all in order.

Knows nothing of what the parts are: `cli/plan.py` says that. The invariant: whenever `run` has ended, by whatever
way, no part runs any more; if the supervisor is killed, the kernel ends its children (`infra/process.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rephub.cli.part_spec import READY_SECONDS_MAX, STOP_ORDER, STOP_SECONDS, PartSpec, Stage
from rephub.cli.parts import Part, write_parts
from rephub.cli.restarts import RestartRule
from rephub.core.errors import RephubError, StorageError, UnavailableError
from rephub.infra.process import bound_log, kill_session, last_lines, spawn, start_time

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
GROW_SECONDS = 0.25
"""Between looks for parts that were added."""
HOUSEKEEPING_SECONDS = 5.0
"""Between looks at log sizes, calm parts and a state file that could not be written."""


@dataclass(slots=True)
class Running:
    """A part and its present process."""

    spec: PartSpec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restarts: int = 0
    state: str = "stopped"
    last_exit: str = ""
    rule: RestartRule = field(default_factory=RestartRule)

    def record(self) -> Part:
        """As `parts.py` keeps it."""
        pid = self.process.pid if self.process else None
        spec = self.spec
        return Part(spec.name, spec.kind, pid, self.started_at, self.restarts, self.state, self.last_exit)


class Supervisor:
    """Runs one stack.

    Args:
        state_dir: where `supervisor.json` goes.
        stages: what to run.
        restart: start again what dies.
        say: tells a waiting person one line.
        on_change: called after a part got a new process while the stack is up.
        grown: parts that were added since the stack is up; asked again and again, each part may be told often.
    """

    def __init__(
        self,
        state_dir: Path,
        stages: Sequence[Stage],
        *,
        restart: bool,
        say: Callable[[str], None],
        on_change: Callable[[], None],
        grown: Callable[[], Sequence[PartSpec]] = tuple,
    ) -> None:
        self._state_dir = state_dir
        self._stages = stages
        self._restart = restart
        self._say = say
        self._on_change = on_change
        self._grown = grown
        self._running: list[Running] = []
        self._unsaved = False
        self._up = False

    def pids(self) -> dict[str, int | None]:
        """Kind → pid of the present process of its first part, for all kinds; None where there is none."""
        found: dict[str, int | None] = {"supervisor": os.getpid()} | dict.fromkeys(reversed(STOP_ORDER))
        first = {one.spec.kind: one for one in reversed(self._running)}
        return found | {kind: one.process.pid for kind, one in first.items() if one.process}

    async def run(self, on_ready: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Start all, call `on_ready`, watch until `stop` is set, end all.

        Raises:
            UnavailableError: a part did not become ready; all are stopped again.
        """
        work = asyncio.create_task(self._work(on_ready))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await _unwrapped(work)
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            await self._stop_all()

    async def _work(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for stage in self._stages:
                if stage.parts:
                    self._say(f"starting {', '.join(spec.kind for spec in stage.parts)}")
                await self._start_stage(stage, group)
            self._up = True
            await on_ready()
            group.create_task(self._keep_house())
            group.create_task(self._grow(group))

    async def _start_stage(self, stage: Stage, group: asyncio.TaskGroup) -> None:
        fresh = [Running(spec) for spec in stage.parts]
        self._running += fresh
        async with asyncio.TaskGroup() as starting:  # the first failure ends the wait for the others
            for one in fresh:
                starting.create_task(self._start_first(one))
        await stage.after()
        for one in fresh:
            group.create_task(self._watch(one))

    async def _start_first(self, one: Running) -> None:
        """Prepare and start a part, and wait until it can be used.

        Raises:
            UnavailableError: it ended, or was not ready in time.
        """
        await asyncio.to_thread(one.spec.prepare)
        process = self._spawn(one)
        began = time.monotonic()
        while time.monotonic() - began < READY_SECONDS_MAX:
            if await one.spec.ready() and process.poll() is None:
                self._say(f"{one.spec.kind} is ready ({time.monotonic() - began:.1f} s)")
                return
            if process.poll() is not None:
                raise UnavailableError(
                    f"{one.spec.kind} ended at its start ({_how(process.returncode)}): {last_lines(one.spec.log)}",
                    hint=f"see {one.spec.log}",
                )
            await asyncio.sleep(POLL_SECONDS)
        raise UnavailableError(
            f"{one.spec.kind} was not ready within {READY_SECONDS_MAX:.0f} s: {last_lines(one.spec.log)}",
            hint=f"see {one.spec.log}",
        )

    async def _grow(self, group: asyncio.TaskGroup) -> None:
        """Start the parts that are added; one that does not start is tried again like one that died."""
        while True:
            await asyncio.sleep(GROW_SECONDS)
            try:
                wanted = self._grown()
            except RephubError as exc:  # what runs goes on; the list may be mended meanwhile
                log.error("no new part", extra={"error": exc.message})
                await asyncio.sleep(HOUSEKEEPING_SECONDS)
                continue
            known = {one.spec.name for one in self._running}
            for spec in wanted:
                if spec.name not in known:
                    one = Running(spec)
                    self._running.append(one)
                    log.info("part added", extra={"part": spec.name})
                    group.create_task(self._watch_new(one))

    async def _watch_new(self, one: Running) -> None:
        try:
            self._spawn(one)
        except RephubError as exc:
            log.error("part does not start", extra={"part": one.spec.name, "error": exc.message})
            one.last_exit = exc.message
            await self._start_again(one)
        self._changed()
        await self._watch(one)

    def _spawn(self, one: Running) -> subprocess.Popen[bytes]:
        spec = one.spec
        process = spawn(spec.argv(), log=spec.log, env=spec.env, cwd=spec.cwd)
        one.process, one.state = process, "running"
        one.started_at = start_time(process.pid) or 0.0
        self._save()
        return process

    async def _watch(self, one: Running) -> None:
        """Wait for the part's end; start it again if that is wanted; for ever."""
        while one.process:
            await wait_ended(one.process)
            kill_session(
                one.process.pid
            )  # what it left behind, such as an agent's workers; not reaped yet: its pid is its own
            one.last_exit = _how(one.process.wait())
            one.process = None
            log.warning("part ended", extra={"part": one.spec.name, "status": one.last_exit})
            if not self._restart:
                one.state = "stopped"
                self._changed()
                return
            await self._start_again(one)

    async def _start_again(self, one: Running) -> None:
        while True:
            restart = one.rule.on_death(time.monotonic())
            one.state = "flapping" if restart.flapping else "waiting"
            self._changed()
            await asyncio.sleep(restart.delay_seconds)
            one.restarts += 1
            try:
                self._spawn(one)
            except RephubError as exc:  # no memory, no disk: the next try may have some
                log.error("part does not start", extra={"part": one.spec.name, "error": exc.message})
                one.last_exit = exc.message
                continue
            one.state = "flapping" if restart.flapping else "running"
            log.info("part started again", extra={"part": one.spec.name, "restarts": one.restarts})
            self._changed()
            return

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            now = time.monotonic()
            for one in self._running:
                bound_log(one.spec.log)
                if one.state == "flapping" and one.process and one.rule.is_calm(now):
                    one.state, self._unsaved = "running", True
            if self._unsaved:
                self._changed()

    def _changed(self) -> None:
        self._save()
        if self._up:
            try:
                self._on_change()
            except StorageError:
                self._unsaved = True

    def _save(self) -> None:
        """Write the state file; on a full disk the stack goes on and the file is written later."""
        me = Part("supervisor", "supervisor", os.getpid(), start_time(os.getpid()) or 0.0)
        try:
            write_parts(self._state_dir, [me, *(one.record() for one in self._running)])
            self._unsaved = False
        except StorageError as exc:
            if not self._up:
                raise
            self._unsaved = True
            log.warning("state file is not up to date", extra={"error": exc.message})

    async def _stop_all(self) -> None:
        for kind in STOP_ORDER:
            await asyncio.gather(*(self._stop(one) for one in self._running if one.spec.kind == kind))

    async def _stop(self, one: Running) -> None:
        process, one.state = one.process, "stopped"
        if process is None:
            return
        self._say(f"stopping {one.spec.kind}")
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS[one.spec.kind]):
                await wait_ended(process)
        except TimeoutError:
            log.error("part did not stop and is killed", extra={"part": one.spec.name})
        kill_session(process.pid)
        await wait_ended(process)
        one.last_exit, one.process = _how(process.wait()), None


async def wait_ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a child's end without a thread (pidfd_open(2)); does not reap it."""
    if process.returncode is not None:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _unwrapped(work: asyncio.Task[None]) -> None:
    """The task's result; of a group of errors the first one, which is the cause of the others' cancellation."""
    try:
        await work
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _how(status: int) -> str:
    """`status 3`, `signal SIGKILL`."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
