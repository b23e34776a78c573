"""Fetches a recovery volume from another diskbox: its content over NBD, its position from the log.

The position is written `ready` only after all content is durable; a copy that was cut off is begun anew. So a directory
here holds nothing, a half copy that nobody opens, or a recovery volume that stands exactly where the old one stood still.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rephub.consumers.diskbox.files import ThreadedFile, storage_errors
from rephub.consumers.diskbox.position import Position, save_position
from rephub.consumers.diskbox.recovery import create_raw_file, write_at
from rephub.core.documents import parse_object
from rephub.core.errors import ConflictError, RequestError, StorageError
from rephub.core.nbd.client import NbdClient
from rephub.projections.journal_fold import FoldState

CHUNK_BYTES = 4 << 20
"""One read: large enough to be fast, small enough to stop soon."""
SPAN_BYTES = 1 << 30
"""One question about holes."""
HOLE = 1
"""base:allocation: NBD_STATE_HOLE."""


async def fetch_copy(
    directory: Path, volume: str, start_id: str, served: dict[str, str], progress: Callable[[int, int], None]
) -> Position:
    """Copy content and position.

    Args:
        directory: of the volume here; nothing in it is kept.
        volume: its name.
        start_id: what the new position serves.
        served: {"uri", "position"} as the old diskbox told them.
        progress: called with (done, total) bytes; raises to stop.

    Returns:
        The position, ready.

    Raises:
        UnavailableError, ProtocolError: the old diskbox went away; try again.
        ConflictError: it serves something else, or runs another version.
        StorageError: a disk fails, here or there.
    """
    try:
        state = FoldState.from_dict(parse_object(served["position"]))
    except (ValueError, TypeError, KeyError) as exc:
        raise ConflictError(
            f"the position of volume {volume} cannot be read: {exc}", hint="run one version on both diskboxes"
        ) from exc
    path = directory / "data.raw"
    position = Position(volume, str(path), start_id, state, state.last_offset)
    await asyncio.to_thread(_begin, directory, path, position)
    client = await NbdClient.connect_uri(served["uri"])
    try:
        if client.size_bytes != state.size_bytes:
            raise ConflictError(
                f"{served['uri']} has {client.size_bytes} bytes, the volume {state.size_bytes}"
            )
        await _fill(client, path, progress)
    except RequestError as exc:
        raise StorageError(f"cannot read {served['uri']}: {exc.message}", errno=errno.EIO) from exc
    finally:
        await client.close()
    position = replace(position, ready=True)
    await asyncio.to_thread(save_position, directory, position)
    return position


def _begin(directory: Path, path: Path, position: Position) -> None:
    with storage_errors("create", directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_position(directory, position)
        path.unlink(missing_ok=True)
    create_raw_file(path, position.applied.size_bytes)


async def _fill(client: NbdClient, path: Path, progress: Callable[[int, int], None]) -> None:
    with storage_errors("write", path):
        file = ThreadedFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            start = 0
            while start < client.size_bytes:
                span = min(SPAN_BYTES, client.size_bytes - start)
                for length, flags in await client.block_status(start, span):
                    await _extent(client, file, start, length, progress, hole=bool(flags & HOLE))
                    start += length
            await file.run(os.fsync)
        finally:
            file.close()


async def _extent(
    client: NbdClient,
    file: ThreadedFile,
    start: int,
    length: int,
    progress: Callable[[int, int], None],
    *,
    hole: bool,
) -> None:
    end = start + length
    while start < end and not hole:
        step = min(CHUNK_BYTES, end - start)
        await file.run(write_at, start, [await client.read(start, step)])
        start += step
        progress(start, client.size_bytes)
    progress(end, client.size_bytes)
