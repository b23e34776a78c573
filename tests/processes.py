"""What tests do to processes that is not over when the system call returns."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

FREEZE_SECONDS_MAX = 10.0


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread of the process stands still.

    The signal alone returns at once; a daemon with many threads may answer one more request after it.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + FREEZE_SECONDS_MAX
    while any(state not in "TtXZ" for state in _thread_states(pid)):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.001)


def thaw(pid: int) -> None:
    """SIGCONT; nothing if the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _thread_states(pid: int) -> list[str]:
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return states
