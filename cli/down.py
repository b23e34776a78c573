"""`rephub down`: the end of a stack; idempotent."""

from __future__ import annotations

import os
import signal
import time

from rephub.cli.output import Cli, verb
from rephub.cli.part_spec import STOP_SECONDS_MAX
from rephub.cli.stack_lock import holder
from rephub.core.errors import DeadlineError
from rephub.infra.process import is_same

SUPERVISOR_EXIT_SECONDS_MAX = 10.0


@verb()
def down(cli: Cli) -> None:
    """Stop what `up` started, agent first; data stay."""
    from rephub.cli.parts import alive, read_parts  # noqa: PLC0415 - keep --help fast
    from rephub.cli.stack import forget_stack, reap_leftovers, wait_gone  # noqa: PLC0415

    known = read_parts(cli.state_dir)
    running = [part for part in known if alive(part)]
    supervisor = holder(cli.state_dir)
    if supervisor:
        cli.progress("stopping agent, diskbox, hub, Redis, broker")
        _end_supervisor(cli)
        # A part that had to be left by a killed supervisor is ended here.
        running = [part for part in known if part.kind != "supervisor"]
        # It frees the lock a moment before it is gone, and with it the last open file below the directory.
        wait_gone([part for part in known if part.kind == "supervisor"], SUPERVISOR_EXIT_SECONDS_MAX)
    if any(alive(part) for part in running):
        reap_leftovers(cli.state_dir, cli.progress)
        wait_gone(running, 1.0)
    if cli.state_dir.is_dir():
        forget_stack(cli.state_dir)
    already = not supervisor and not running
    text = f"nothing runs under {cli.state_dir}" if already else f"stopped; data stay under {cli.state_dir}"
    cli.emit({"stopped": True, "already": already, "state_dir": str(cli.state_dir)}, text)


def _end_supervisor(cli: Cli) -> None:
    """SIGTERM, wait for the lock, SIGKILL at the deadline.

    Raises:
        DeadlineError: it does not end.
    """
    deadline = time.monotonic() + STOP_SECONDS_MAX
    signalled = killed = False
    while current := holder(cli.state_dir):
        if not signalled and current.pid and is_same(current.pid, current.started_at):
            os.kill(current.pid, signal.SIGTERM)
            signalled = True
        if time.monotonic() > deadline:
            if killed:
                raise DeadlineError(f"the supervisor (pid {current.pid}) does not end", hint="see its log")
            os.kill(current.pid, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + 10.0
        time.sleep(0.05)
