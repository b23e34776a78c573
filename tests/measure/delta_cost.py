"""What a delta sync of a 10-GiB volume moves after the agent was killed, by how much was written meanwhile and how.

.venv/bin/python tests/measure/delta_cost.py
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent_rig import Rig, fresh
from qsd import StorageDaemon
from rephub.infra.kafka.broker import Broker
from rephub.infra.redis import RedisServer
from rephub.schemas import events as ev

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
SIZE = 10 * GIB
SHARES = (0.001, 0.01, 0.1)
WRITES = (("1 MiB", MIB), ("64 KiB", 64 * KIB), ("4 KiB", 4 * KIB))
WRITTEN_MAX = 200_000
"""Writes of 4 KiB; more would touch every granule there is."""


def write(uri: str, length: int, count: int, seed: int) -> int:
    """Write to `count` different places, aligned; returns the bytes."""
    places = random.Random(seed).sample(range(SIZE // length), count)
    program = (
        "import sys, nbd\n"
        "h = nbd.NBD(); h.connect_uri(sys.argv[1]); length = int(sys.argv[2]); data = b'd' * length\n"
        "for line in sys.stdin:\n"
        "    while h.aio_in_flight() >= 16: h.poll(-1)\n"
        "    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), int(line) * length,\n"
        "                 completion=lambda error: 1)\n"
        "while h.aio_in_flight(): h.poll(-1)\n"
    )
    lines = "\n".join(map(str, places))
    subprocess.run(["/usr/bin/python3", "-c", program, uri, str(length)], input=lines, text=True, check=True)
    return count * length


async def measure(folder: Path, rig: Rig) -> None:
    """Protect, then kill and write and come back for each row."""
    daemon, volume = StorageDaemon(folder / "q", [SIZE]), fresh()
    try:
        await rig.protect(volume, daemon.qmp, "disk0", SIZE)
        await rig.protected(volume, 120)
        print("| written | in writes of | dirty | copied | copied / dirty | protected again after |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, length in WRITES:
            for share in SHARES:
                count = int(SIZE * share) // length
                if count > WRITTEN_MAX:
                    continue
                await asyncio.sleep(3)  # Marks of quiet regions go.
                epoch = rig.catalogue.volumes[volume].epoch
                rig.kill()
                dirty = write(daemon.uri(), length, count, epoch)
                began = time.monotonic()
                rig.launch()

                def synced(epoch: int = epoch) -> bool:
                    return rig.catalogue.volumes[volume].synced_epoch > epoch

                await rig.until("synced", synced, 600)
                seconds = time.monotonic() - began
                started = rig.of(ev.VolumeSyncStarted, volume)[-1]
                assert started.mode == "delta", started
                copied = started.total_bytes
                print(
                    f"| {share:.1%} | {name} | {dirty / MIB:.0f} MiB | {copied / MIB:.0f} MiB "
                    f"| {copied / dirty:.2f} | {seconds:.1f} s |",
                    flush=True,
                )
    finally:
        daemon.stop()


async def main() -> None:
    """With a broker and a Redis of its own."""
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        broker, redis = Broker(folder / "broker"), RedisServer(folder / "redis", folder / "s" / "redis.sock")
        broker.start()
        redis.start()
        rig = Rig(folder, broker.bootstrap, redis.url, rotate_seconds=1)
        try:
            await rig.start()
            await measure(folder, rig)
        finally:
            await rig.close()
            redis.stop()
            broker.stop()


if __name__ == "__main__":
    asyncio.run(main())
