"""One stack from the supervisor's side: lock, leftovers of a crash, plan, run, endpoints file.

Used by `up` in the foreground, and by the detached supervisor process (`cli/detached.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rephub.cli import endpoints as endpoints_file
from rephub.cli import parts as parts_file
from rephub.cli.endpoints import Endpoints, read_endpoints
from rephub.cli.parts import Part, alive, read_parts
from rephub.cli.plan import Plan, UpOptions, make_plan
from rephub.cli.stack_lock import StackLock, holder
from rephub.cli.supervisor import Supervisor
from rephub.core.config import check_state_dir_length
from rephub.core.errors import DeadlineError, UnavailableError
from rephub.infra.files import private_dir, write_atomic
from rephub.infra.process import kill_session

LEFTOVER_SECONDS_MAX = 15.0
"""Children of a killed supervisor got SIGTERM from the kernel; after so long they get SIGKILL."""

OTHER_UP_SECONDS_MAX = 120.0
"""How long a second `up` waits for the first one."""

TARGETS_FILE = "prometheus-targets.json"
"""Kept when the stack ends: Prometheus is to notice that."""

Say = Callable[[str], None]
OnReady = Callable[[dict[str, Any]], None]


def run_stack(options: UpOptions, say: Say, on_ready: OnReady, *, ignore_hangup: bool = False) -> None:
    """Run a stack until SIGTERM or SIGINT; if one runs already, answer with that and return.

    Args:
        options: of `up`.
        say: one line of progress.
        on_ready: receives the document of `up`, once.
        ignore_hangup: a detached supervisor outlives its terminal.

    Raises:
        UsageError, StorageError, UnavailableError: nothing runs and nothing is left.
    """
    check_state_dir_length(options.state_dir)
    private_dir(options.state_dir)
    lock = StackLock(options.state_dir)
    if not lock.acquire():
        on_ready(wait_other_up(options.state_dir))
        return
    try:
        reap_leftovers(options.state_dir, say)
        asyncio.run(_run(make_plan(options), options, say, on_ready, ignore_hangup=ignore_hangup))
    finally:
        forget_stack(options.state_dir)
        lock.release()


def wait_other_up(state_dir: Path) -> dict[str, Any]:
    """The document of the stack that runs there, with `already`; waits while it still starts.

    Raises:
        UnavailableError: it gave up.
        DeadlineError: it is still starting.
    """
    deadline = time.monotonic() + OTHER_UP_SECONDS_MAX
    while time.monotonic() < deadline:
        if (state_dir / endpoints_file.FILE).exists():
            return read_endpoints(state_dir).to_document() | {"already": True}
        if holder(state_dir) is None:
            raise UnavailableError(f"another `up` of {state_dir} failed", hint="repeat `rephub up`")
        time.sleep(0.05)
    raise DeadlineError(f"another `up` of {state_dir} is not ready", hint="look into its logs directory")


def reap_leftovers(state_dir: Path, say: Say) -> None:
    """End what a killed supervisor may have left, and remove its endpoints file.

    Raises:
        DeadlineError: a process does not even end by SIGKILL.
    """
    (state_dir / endpoints_file.FILE).unlink(missing_ok=True)
    left = [part for part in read_parts(state_dir) if part.kind != "supervisor" and alive(part)]
    if not left:
        return
    say(f"ending {', '.join(part.name for part in left)}, left by a supervisor that was killed")
    for part in left:
        _signal(part, signal.SIGTERM)
    if not wait_gone(left, LEFTOVER_SECONDS_MAX):
        for part in left:
            if part.pid and alive(part):
                kill_session(part.pid)
        if not wait_gone(left, LEFTOVER_SECONDS_MAX):
            names = ", ".join(f"{part.name} (pid {part.pid})" for part in left if alive(part))
            raise DeadlineError(
                f"cannot end {names}", hint="a process in disk sleep ends when its disk answers"
            )


def wait_gone(parts: list[Part], deadline_seconds: float) -> bool:
    """Wait until none of the processes runs; False at the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while any(alive(part) for part in parts):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def forget_stack(state_dir: Path) -> None:
    """Remove what only a running stack has."""
    (state_dir / endpoints_file.FILE).unlink(missing_ok=True)
    (state_dir / parts_file.FILE).unlink(missing_ok=True)


async def _run(plan: Plan, options: UpOptions, say: Say, on_ready: OnReady, *, ignore_hangup: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, (lambda: None) if ignore_hangup else stop.set)

    def publish() -> Endpoints:
        endpoints = plan.endpoints(supervisor.pids())
        write_atomic(options.state_dir / endpoints_file.FILE, json.dumps(endpoints.to_document()))
        write_atomic(options.state_dir / TARGETS_FILE, json.dumps(plan.scraped()))
        return endpoints

    def on_change() -> None:
        publish()

    supervisor = Supervisor(
        options.state_dir,
        plan.stages,
        restart=options.restart,
        say=say,
        on_change=on_change,
        grown=plan.grown,
    )

    async def all_ready() -> None:
        document = publish().to_document()
        on_ready(document | {"already": False})

    try:
        await supervisor.run(all_ready, stop)
    finally:
        await plan.stop_outside()


def _signal(part: Part, number: signal.Signals) -> None:
    if part.pid and alive(part):
        try:
            os.kill(part.pid, number)
        except ProcessLookupError:
            return
