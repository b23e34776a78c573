"""Time and scheduling: an event loop whose clock jumps to the next timer, and processes that can be killed or stopped.

Everything is ordered by the seed: within a process callbacks run first in, first out, as asyncio promises; which process
runs next is drawn. A killed process runs nothing more, not even a `finally`, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar, copy_context
from typing import Any
from unittest.mock import patch

EPOCH_NS = 1_800_000_000_000_000_000
"""What `time.time_ns()` says at the start."""

STEP_NS = 1_000
"""What one callback takes: events of one burst have different times."""

STEPS_MAX = 400_000
"""A run that takes more is stuck."""

_process: ContextVar[Process | None] = ContextVar("process", default=None)


class StuckError(AssertionError):
    """Nothing can happen any more, or no end is in sight."""


class SimFuture(asyncio.Future):  # type: ignore[type-arg]
    """A future whose hash does not depend on where it lies in memory, so that sets of them have one order."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = next(kwargs["loop"].numbers)

    def __hash__(self) -> int:
        return self.number


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """As SimFuture."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.number = next(kwargs["loop"].numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.number


class Process:
    """Tasks that live and die together."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.stopped = False
        """By SIGSTOP: what is due waits."""
        self.fuse: int | None = None
        """The process is killed before so many further steps."""
        self.on_killed: Callable[[], None] | None = None
        self.ready: deque[asyncio.Handle] = deque()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """A task of this process."""
        context = copy_context()
        context.run(_process.set, self)
        return self.loop.create_task(work, name=name, context=context)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Let the process call a function when it runs next."""
        context = copy_context()
        context.run(_process.set, self)
        self.loop.call_soon(function, *args, context=context)

    def kill(self) -> None:
        """Run nothing of it any more."""
        if self.alive:
            self.alive = False
            self.ready.clear()
            if self.on_killed:
                self.on_killed()


class SimLoop(asyncio.BaseEventLoop):
    """Args: random: decides which process runs next, and how long a thread takes."""

    def __init__(self, seed: random.Random) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self._random = seed
        self.now_ns = 0
        self.steps = 0
        self.trace = 0
        """Of what ran, in which order: equal for equal seeds."""
        self.world = Process(self, "world")
        self.processes: list[Process] = [self.world]
        self.tasks: list[asyncio.Task[Any]] = []
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self.set_task_factory(self._make_task)

    def process(self, name: str) -> Process:
        """A new process."""
        made = Process(self, name)
        self.processes = [item for item in self.processes if item.alive]
        self.processes.append(made)
        return made

    def time(self) -> float:
        """Seconds since the start."""
        return self.now_ns / 1e9

    def create_future(self) -> Any:
        """See SimFuture."""
        return SimFuture(loop=self)

    def _make_task(self, _loop: Any, work: Any, context: Any = None) -> Any:
        task = SimTask(work, loop=self, context=context)
        self.tasks.append(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """Queue in the context's process."""
        handle = asyncio.Handle(callback, args, self, context)
        self._queue(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """Queue when the clock is there."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (round(when * 1e9), next(self._order), timer))
        timer._scheduled = False
        return timer

    def run_in_executor(self, _executor: Any, function: Any, *args: Any) -> Any:
        """A thread: it runs after a while, whether somebody still waits or not."""
        future = self.create_future()

        def run() -> None:
            try:
                result = function(*args)
            except BaseException as exc:  # the thread's, whoever waits gets it
                if not future.cancelled():
                    future.set_exception(exc)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_later(self.latency(), run)
        return future

    def latency(self) -> float:
        """How long a disk, a thread or a message takes: mostly short, sometimes long."""
        draw = self._random.random()
        return draw * 0.0005 if draw < 0.9 else (draw - 0.9) * 0.3

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Failures are looked at where they matter."""

    def get_debug(self) -> bool:
        """Never: it would take wall-clock time."""
        return False

    def _queue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process) or self.world  # type: ignore[attr-defined]
        if process.alive:
            process.ready.append(handle)

    def run_until_complete(self, work: Any) -> Any:
        """Run the work, as a task of the world, to its end."""
        events._set_running_loop(self)
        try:
            task = self.world.spawn(work)
            while not task.done():
                self._step()
            return task.result()
        finally:
            self._bury()
            events._set_running_loop(None)
            self.close()

    def _step(self) -> None:
        ready = [item for item in self.processes if item.ready and not item.stopped]
        if not ready:
            self._jump()
            return
        process = ready[0] if len(ready) == 1 else ready[int(self._random.random() * len(ready))]
        if process.fuse is not None:
            process.fuse -= 1
            if process.fuse < 0:
                process.kill()
                return
        handle = process.ready.popleft()
        if handle._cancelled:  # type: ignore[attr-defined]
            return
        self.steps += 1
        self.now_ns += STEP_NS
        self.trace = (self.trace * 31 + self.now_ns + len(process.ready)) & 0xFFFFFFFF
        if self.steps > STEPS_MAX:
            raise StuckError(f"no end after {self.steps} steps, at {self.time():.3f} s")
        self._due()
        handle._run()

    def _jump(self) -> None:
        while self._timers and self._timers[0][2]._cancelled:  # type: ignore[attr-defined]
            heapq.heappop(self._timers)
        if not self._timers:
            raise StuckError(f"nothing can happen any more, at {self.time():.3f} s")
        self.now_ns = max(self.now_ns, self._timers[0][0])
        self._due()

    def _due(self) -> None:
        while self._timers and self._timers[0][0] <= self.now_ns:
            timer = heapq.heappop(self._timers)[2]
            if not timer._cancelled:  # type: ignore[attr-defined]
                self._queue(timer)

    def _bury(self) -> None:
        """End what is left, quietly: nothing of it counts."""
        for _ in range(3):
            tasks, self.tasks = self.tasks, []
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if task.done():
                    continue
                for _try in range(8):
                    try:
                        task.get_coro().close()  # type: ignore[union-attr]
                    except BaseException:
                        continue
                    break
        self._timers.clear()
        for process in self.processes:
            process.ready.clear()


@contextlib.contextmanager
def virtual_time(loop: SimLoop) -> Iterator[None]:
    """`time.time`, `time.time_ns` and `time.monotonic` are the loop's, everywhere."""
    with (
        patch.object(time, "time_ns", lambda: EPOCH_NS + loop.now_ns),
        patch.object(time, "time", lambda: (EPOCH_NS + loop.now_ns) / 1e9),
        patch.object(time, "monotonic", loop.time),
    ):
        yield
