"""What `agent.compression` costs and saves, with data that can be halved.

.venv/bin/python tests/measure/compression.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.rig import GIB, KIB, MIB, Rig, fio, rig
from qsd import StorageDaemon
from rephub.core.names import journal_topic

SECONDS = 3
LOADS = ((4 * KIB, 1), (4 * KIB, 32), (64 * KIB, 8), (1 * MIB, 4))


def write(disk: StorageDaemon, kind: str, block: int, depth: int, **options: Any) -> None:
    """Half of each block can be packed."""
    fio(disk.uri(), kind, block, depth, size=GIB, buffer_compress_percentage=50, **options)


def journal_bytes(found: Rig) -> int:
    """Of the log on the broker's disk."""
    (folder,) = found.stack.state_dir.rglob(f"{journal_topic('vm1')}-0")
    return sum(file.stat().st_size for file in folder.glob("*.log"))


def main() -> None:
    """A stack for each setting, the same loads on each."""
    for compression in ("none", "zstd"):
        with rig(REPHUB_AGENT__COMPRESSION=compression) as found:
            disk = found.protect("vm1", GIB)
            write(disk, "write", MIB, 4)
            write(disk, "randwrite", 4 * KIB, 32, time_based=1, runtime="5s")
            for block, depth in LOADS:
                offset, size = found.wait_acked("vm1")["acked_offset"], journal_bytes(found)
                cpu, began = found.cpu_seconds()["agent"], time.monotonic()
                write(disk, "randwrite", block, depth, time_based=1, runtime=f"{SECONDS}s")
                events = found.wait_acked("vm1")["acked_offset"] - offset
                print(
                    f"{compression}, {block // KIB} KiB, depth {depth}: {events / (time.monotonic() - began):,.0f} events/s, "
                    f"{(journal_bytes(found) - size) / events:,.0f} bytes and "
                    f"{(found.cpu_seconds()['agent'] - cpu) / events * 1e6:,.1f} µs of the agent's CPU each",
                    flush=True,
                )


main()
