"""Child processes that never outlive their parent.

`spawn` starts a program itself (no shell, no wrapper), so its pid is the program's; the kernel sends it SIGTERM when
the thread that started it ends (`PR_SET_PDEATHSIG`, prctl(2)), whatever killed that one. Start children from a thread
that lives as long as they shall.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rephub.core.errors import UnavailableError
from rephub.infra.files import storage_error

LOG_BYTES_MAX = 32 << 20
"""Of one log of one part; as much again is kept of what was before."""

_JAVA_FRAME = re.compile(r"\s+(at \S+\(.*\)|\.\.\. \d+ more)")
"""Lines of a stack trace that name no reason."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    death_signal: int = signal.SIGTERM,
    only_errors: bool = False,
    hint: str = "run `make setup`",
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with its output appended to a log file.

    Args:
        argv: program and arguments; the program is looked up on PATH.
        log: receives stdout and stderr.
        env: the whole environment; None: ours.
        cwd: working directory; None: ours.
        death_signal: what the child gets when we die.
        only_errors: keep stderr only.
        hint: of the error if it cannot be started.

    Raises:
        UnavailableError: the program is not there or cannot be run.
        StorageError: the log cannot be opened.
    """
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # we died before the line above took effect
            os._exit(1)

    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise storage_error(exc, log, "cannot open log") from exc
    try:
        return subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if only_errors else output,
            stderr=output,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=in_child,  # noqa: PLW1509 - only system calls, no lock, nothing allocated that matters
        )
    except OSError as exc:
        raise UnavailableError(f"cannot start {argv[0]}: {exc.strerror or exc}", hint=hint) from exc
    finally:
        os.close(output)


def stop(process: subprocess.Popen[bytes], deadline_seconds: float) -> int:
    """SIGTERM, and SIGKILL to its whole session once the deadline is over; returns the exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            kill_session(process.pid)
    return process.wait(deadline_seconds)


def kill_session(pid: int) -> None:
    """SIGKILL to a process started by `spawn` and to what it started and left in its process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def start_time(pid: int) -> float | None:
    """When the process began, seconds since the epoch; None if there is none (or only its zombie).

    Pid and start time together name one process for ever; a pid alone is used again.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same(pid: int, started_at: float) -> bool:
    """Whether the process that began then still runs (half a second of clock adjustment is forgiven)."""
    began = start_time(pid)
    return began is not None and abs(began - started_at) < 0.5


def bound_log(log: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Keep a log from filling the disk: past the limit its content moves to `NAME.1` and it begins anew.

    Its writer has it open for appending, so it is emptied, not replaced; a line written in between may be lost.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > bytes_max:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)


def last_lines(log: Path, count: int = 3, bytes_max: int = 4096) -> str:
    """The end of a log as one line, for an error message; empty if there is none.

    A daemon of ours ends with `error: …`, which is then the whole answer.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - bytes_max))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [line for line in lines if line.strip() and not _JAVA_FRAME.match(line)]
    for line in reversed(lines[-count:]):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return " | ".join(line.strip() for line in lines[-count:])
