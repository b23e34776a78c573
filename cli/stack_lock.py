"""Who supervises a stack: a lock that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from rephub.core.documents import parse_object, record_of
from rephub.infra.files import storage_error
from rephub.infra.process import start_time

FILE = "lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The supervisor that holds the lock."""

    pid: int
    started_at: float


class StackLock:
    """Held by the supervisor of a state directory as long as it lives.

    Args:
        state_dir: exists already.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take it, without waiting; False if another process has it. Raises StorageError."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise storage_error(exc, self._path, "cannot open") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        try:
            os.ftruncate(descriptor, 0)
            me = {"pid": os.getpid(), "started_at": start_time(os.getpid())}
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        except OSError as exc:
            os.close(descriptor)
            raise storage_error(exc, self._path, "cannot write") from exc
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give it back; the file stays, so that nobody locks a name that another one removes."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(state_dir: Path) -> Holder | None:
    """Who holds the lock now; None if nobody does."""
    path = state_dir / FILE
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _read(path)
    except OSError as exc:
        raise storage_error(exc, path, "cannot open") from exc
    return None


def _read(path: Path) -> Holder:
    try:
        document = parse_object(path.read_bytes())
        return record_of(Holder, {"pid": document["pid"], "started_at": document["started_at"]})
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, 0.0)  # it is just being written: somebody holds it, we will know who a moment later
