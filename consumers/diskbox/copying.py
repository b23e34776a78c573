"""`promote --to PATH`: a sparse copy of a view, made beside its place and moved there whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors, sync_directory
from rephub.consumers.diskbox.hydrator import Hydrator, Pace
from rephub.consumers.diskbox.recovery import check_free, write_at
from rephub.consumers.diskbox.view import HOLE_AND_ZERO, View
from rephub.core.errors import RequestError, StorageError, UsageError

CHUNK_BYTES = 4 << 20


async def copy_view(view: View, target: Path, step_done: Callable[[int], None]) -> None:
    """Write what the view shows to a new file.

    Args:
        view: of the point.
        target: absolute path.
        step_done: called with the bytes that are done, between two steps; what it raises ends the copy.

    Raises:
        UsageError: the path is not absolute.
        ConflictError: something that is not empty is there.
        StorageError: the disk refuses; nothing is left.
    """
    if not target.is_absolute():
        raise UsageError(f"{target} is not an absolute path")
    check_free(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    # Cold, each block that was written at random costs the fetch of a batch.
    view.hydrator = hydrator = Hydrator(
        view.projector, view.offset, view.size_bytes, temporary.with_suffix(".journal"), Pace(0)
    )
    with storage_errors("write", target):
        file = ThreadedFile(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            await file.run(os.ftruncate, view.size_bytes)
            await hydrator.complete(lambda: step_done(0))
            await _copy(view, file, step_done)
            await file.run(os.fsync)
            check_free(target)
            temporary.replace(target)
            sync_directory(target.parent)
        except RequestError as exc:
            raise StorageError(
                f"cannot read {view.info.description}: {exc.message}", errno=errno.EIO
            ) from exc
        finally:
            await hydrator.close()
            file.close()
            temporary.unlink(missing_ok=True)


async def _copy(view: View, file: ThreadedFile, step_done: Callable[[int], None]) -> None:
    start = 0
    while start < view.size_bytes:
        for length, flags in await view.block_status(start, view.size_bytes - start):
            end = start + length
            while start < end:
                step_done(start)
                step = min(CHUNK_BYTES, end - start)
                if flags != HOLE_AND_ZERO:
                    await file.run(write_at, start, [memoryview(await view.read(start, step))])
                start += step
