"""Which adapter a recovery volume has, and whether a device or an export may become one.

A target is ours if a position names it. Any other one has to be empty: a file that does not exist, a device or export
whose first and last MiB are zeroes. So whoever wants to give up what is on a device says so by zeroing its ends.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from rephub.consumers.diskbox.position import Position
from rephub.consumers.diskbox.recovery import RawFile, RecoveryVolume
from rephub.consumers.diskbox.recovery_device import EDGE_BYTES, BlockDevice, check_device, foreign
from rephub.consumers.diskbox.recovery_nbd import NbdVolume, connect, unfit
from rephub.core.errors import ConflictError, UsageError
from rephub.core.nbd.uri import parse_uri
from rephub.core.targets import target_kind


async def open_recovery(position: Position) -> RecoveryVolume:
    """The recovery volume of a position. Raises StorageError."""
    return await open_target(position.path, position.applied.size_bytes, position.identity)


async def open_target(target: str, size_bytes: int, identity: str) -> RecoveryVolume:
    """A recovery volume that was made before.

    Args:
        target: file, device or NBD URI.
        size_bytes: of the volume.
        identity: of the device, as far as it is known.

    Raises:
        StorageError: it is away, or another one.
    """
    kind = target_kind(target)
    if kind == "nbd":
        return await NbdVolume.open(target, size_bytes)
    path = Path(target)
    if kind == "device":
        return await asyncio.to_thread(BlockDevice, path, size_bytes, identity)
    return RawFile(path)


async def check_target(target: str, size_bytes: int, *, ours: bool) -> str:
    """Whether a device or an export may become a recovery volume; nothing is changed. Files are checked where made.

    Returns:
        The device's identity; else empty.

    Raises:
        UsageError: a bad URI.
        NotFoundError: no such device.
        ConflictError: not fit, in use, or somebody's data are on it.
        StorageError: the server does not answer, or it cannot be read.
    """
    kind = target_kind(target)
    if kind == "device":
        return await asyncio.to_thread(check_device, Path(target), size_bytes, ours=ours)
    if kind == "nbd":
        await _check_export(target, size_bytes, ours=ours)
    return ""


async def _check_export(uri: str, size_bytes: int, *, ours: bool) -> None:
    at = parse_uri(uri)
    if at.path is not None and not at.path.is_absolute():
        raise UsageError(f"the socket in {uri} is not an absolute path")
    client = await connect(uri)
    try:
        if why := unfit(client, size_bytes):
            raise ConflictError(
                f"recovery volume {uri}: {why}",
                hint="name another export, or start its server otherwise",
                path=uri,
            )
        capacity = client.size_bytes
    finally:
        await client.close()
    if ours:
        return
    volume = await NbdVolume.open(uri, capacity)
    try:
        for start in (0, max(0, capacity - EDGE_BYTES)):
            if any(await volume.pread(start, min(EDGE_BYTES, capacity))):
                raise foreign(uri, "zero its first and last MiB")
    finally:
        await volume.close()
