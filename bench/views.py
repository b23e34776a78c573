"""How long it takes until a point can be read."""

from __future__ import annotations

import asyncio
import random
import time

from bench.harness import median
from bench.rig import Rig
from rephub.core.nbd.client import NbdClient

READS = 9
"""Connections to each view: how long a read takes depends on what the kernel has in its cache."""


def opening(found: Rig, rounds: int, volume: str) -> tuple[float, float]:
    """Seconds from FotRequested to FotStarted, and from connecting to the first bytes of a journaled block; medians."""
    opens, reads = [], []
    for _ in range(rounds):
        view = found.stack.run("fot", "start", volume, "--latest", "--read-only")
        requested = found.event_at("FotRequested", fot=view["fot"])
        opens.append((found.event_at("FotStarted", fot=view["fot"]) - requested) / 1e6)
        reads.append(asyncio.run(_first_read(view["uri"])))
        found.stack.run("fot", "stop", view["fot"])
    return median(opens), median(reads)


async def _first_read(uri: str) -> float:
    client = await NbdClient.connect_uri(uri)
    start, journaled = 0, []
    while start < client.size_bytes:
        for length, flags in await client.block_status(start, client.size_bytes - start):
            journaled += [] if flags else range(start, start + length, 4096)
            start += length
    await client.close()
    seconds = []
    for block in random.choices(journaled, k=READS):
        began = time.monotonic()
        client = await NbdClient.connect_uri(uri)
        await client.read(block, 4096)
        seconds.append(time.monotonic() - began)
        await client.close()
    return median(seconds)
