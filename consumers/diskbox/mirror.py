"""Mirrors in Redis what others like to know: the diskbox's lease, applied offsets, pins. Nothing depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from typing import Protocol

from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.bitmap.port import BitmapStore
from rephub.core.errors import UnavailableError
from rephub.core.names import diskbox_lease_key, pin_key

PERIOD_SECONDS = 1.0
LEASE_SECONDS = 10.0
"""Leases end by themselves after that."""


class Mirrored(Protocol):
    """What is mirrored of a diskbox."""

    name: str
    url: str
    volumes: dict[str, BoxVolume]


async def mirror(diskbox: Mirrored, bitmaps: BitmapStore) -> None:
    """Renew for ever; a Redis that is away is tried again."""
    acked: dict[str, int] = {}
    while True:
        with contextlib.suppress(UnavailableError):
            lease = json.dumps({"pid": os.getpid(), "url": diskbox.url})
            await bitmaps.renew_lease(diskbox_lease_key(diskbox.name), lease, LEASE_SECONDS)
            await _volumes(diskbox.volumes, bitmaps, acked)
        await asyncio.sleep(PERIOD_SECONDS)


async def _volumes(volumes: Mapping[str, BoxVolume], bitmaps: BitmapStore, acked: dict[str, int]) -> None:
    for name, box in list(volumes.items()):
        projector = box.projector
        if projector is None:
            continue
        applied = projector.applier.applied_offset
        if acked.get(name) != applied and applied >= 0:
            await bitmaps.set_ack(name, {"applied_offset": applied})
            acked[name] = applied
        for pin, offset in list(projector.pins.items()):
            await bitmaps.renew_lease(pin_key(name, pin), str(offset), LEASE_SECONDS)
