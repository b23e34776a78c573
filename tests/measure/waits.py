"""Who has the core while QEMU or fio could run: writes of 4 KiB at depth 1, from the scheduler's own records. Needs root, and `perf`
(Debian: linux-perf).

.venv/bin/python tests/measure/waits.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.rig import GIB, KIB, MIB, fio, rig

SECONDS = 2
WAIT_MS = 0.5
"""A wait counts from here on: three times the median of a whole write."""
PEOPLE = ("qemu", "fio")


class Ran(NamedTuple):
    """A task had a core; times in seconds, `waited` for it before in milliseconds."""

    cpu: int
    begin: float
    end: float
    name: str
    pid: int
    waited: float


def schedule(record: Path) -> list[Ran]:
    """What `perf sched timehist` says."""
    done = subprocess.run(
        ["perf", "sched", "timehist", "-i", record], capture_output=True, text=True, check=True
    )
    pattern = re.compile(
        r"^\s*([\d.]+) \[(\d+)\]\s+(.*?)\s*(?:\[(?:\d+/)?(\d+)\])?\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s*$"
    )
    found = []
    for line in done.stdout.splitlines():
        if match := pattern.match(line):
            end, cpu, name, pid, _, waited, ran = match.groups()
            found.append(
                Ran(int(cpu), float(end) - float(ran) / 1e3, float(end), name, int(pid or 0), float(waited))
            )
    return found


def main() -> None:
    """Load, record, count."""
    with rig() as found:
        qsd = found.protect("vm1", GIB)
        fio(qsd.uri(), "write", MIB, 4, size=GIB)
        fio(qsd.uri(), "randwrite", 4 * KIB, 32, time_based=1, runtime="8s", size=GIB)
        ours = {found.pid("broker"): "broker", found.pid("diskbox"): "diskbox"}
        ours |= {worker.pid: "agent" for worker in found.workers()}
        load = threading.Thread(
            target=fio,
            args=(qsd.uri(), "randwrite", 4 * KIB, 1),
            kwargs={"time_based": 1, "runtime": f"{SECONDS + 4}s", "size": GIB},
        )
        load.start()
        record = found.folder / "sched"
        subprocess.run(
            ["perf", "sched", "record", "-o", record, "--", "sleep", str(SECONDS)],
            check=True, capture_output=True,
        )  # fmt: skip
        load.join()
        rows = schedule(record)
    waits = [row for row in rows if row.name.startswith(PEOPLE) and row.waited > WAIT_MS]
    had: Counter[str] = Counter()
    for wait in waits:
        begin = wait.begin - wait.waited / 1e3
        for row in rows:
            if row.cpu == wait.cpu and row.end > begin and row.begin < wait.begin:
                owner = ours.get(row.pid, row.name)
                had[owner] += (min(row.end, wait.begin) - max(row.begin, begin)) * 1e3
    switches = sum(row.name.startswith(PEOPLE) for row in rows)
    print(
        f"QEMU and fio: {switches} times on a core in {SECONDS} s, {len(waits)} of them after more than {WAIT_MS} ms"
    )
    for name, milliseconds in had.most_common(8):
        print(f"{milliseconds:8.1f} ms of these waits: {name}")


main()
