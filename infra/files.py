"""Files under the state directory: made privately, replaced atomically, failures as errors of our tree."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from rephub.core.errors import StorageError

FREE_BYTES_MIN = 32 << 20
"""Least free space to start on: Kafka's own first files plus logs; the journal needs more, but not at once."""


def private_dir(path: Path) -> Path:
    """The directory, made with mode 0700 if it was not there.

    Raises:
        StorageError: it cannot be made, or is something else, or is not ours to write.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise storage_error(exc, path, "cannot make directory") from exc
    if not os.access(path, os.W_OK | os.X_OK):
        raise StorageError(
            f"directory {path} is not writable",
            hint="give another --state-dir, or change its owner",
            path=str(path),
        )
    return path


def write_atomic(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file by new content; a reader sees the old or the new one, also after a crash.

    Raises:
        StorageError: the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(exc, path, "cannot write") from exc


def check_free_space(path: Path) -> None:
    """Refuse to start on a full file system.

    Raises:
        StorageError: fewer than FREE_BYTES_MIN bytes are free.
    """
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES_MIN:
        raise StorageError(
            f"only {free >> 20} MiB are free under {path}, {FREE_BYTES_MIN >> 20} MiB are needed to start",
            hint="free some space, or give another --state-dir",
            path=str(path),
            free_bytes=free,
        )


def storage_error(exc: OSError, path: Path, what: str) -> StorageError:
    """An OSError as an error of our tree."""
    return StorageError(
        f"{what} {path}: {exc.strerror or exc}",
        hint="check owner, mode and free space of the state directory",
        errno=exc.errno,
        path=str(path),
    )
