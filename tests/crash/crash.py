"""Kills and freezes parts of a real stack at random, under a load that knows what it wrote, with fail-over tests open.

    .venv/bin/python tests/crash/crash.py --seconds 300 --seed 7

Every few seconds a process of {agent, one of its workers, broker, Redis, hub, diskbox} gets SIGKILL, and the supervisor
starts it again, or SIGSTOP, and SIGCONT after 0 to 5 s. Then: no guest error; the volume is `protected` again by itself; the
newest point equals the disk; at 20 random points, and at every named checkpoint, the view is closed under order, and holds
all that was answered before the checkpoint was asked for; an open test shows what it showed, or is said to be gone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.schemas import events as ev
from requests_shown import SECTOR, Request, violations
from stack import Stack, events, read_uri

DISK_BYTES = 16 << 20
DEPTH = 8
ORDER_REQUESTS = 200
"""One order of the load; between two, its answers are looked at."""
REST_SECONDS = 0.1
"""After each: the judge looks at every request at every point."""
PAUSE_SECONDS = (1.0, 4.0)
"""Between two faults."""
FROZEN_SECONDS_MAX = 5.0
POINTS = 20
PROTECTED_SECONDS = 180.0
"""From the last fault until everything must be as it was."""
KINDS = ("agent", "worker", "broker", "redis", "hub", "diskbox")
VOLUME = "crash"


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


class Guest(threading.Thread):
    """Writes numbered sectors until told to stop; remembers every request."""

    def __init__(self, uri: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._load = Load(uri)
        self._seed = seed
        self._over = threading.Event()
        self.requests: list[Request] = []
        self.clock = 0
        self.slowest_seconds = 0.0
        self.error: Any = None

    def run(self) -> None:
        order = 0
        while not self._over.is_set():
            began = time.monotonic()
            answer = self._load.ask(
                "numbered",
                depth=DEPTH,
                count=ORDER_REQUESTS,
                first=len(self.requests) + 1,
                sectors=DISK_BYTES // SECTOR,
                seed=self._seed + order,
            )
            if "error" in answer:
                self.error = answer["error"]
                return
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            base, order = self.clock, order + 1
            made = [
                [number, sector, sectors, base + sent, base + answered]
                for number, sector, sectors, sent, answered in answer["requests"]
            ]
            self.clock = max(item[4] for item in made)
            self.requests += made
            time.sleep(REST_SECONDS)

    def end(self) -> None:
        """Stop after the order that is under way."""
        self._over.set()
        self.join(120)
        if self.is_alive():
            raise BrokenPromiseError("the guest hangs")
        self._load.close()


@dataclass
class Named:
    """A checkpoint that was made."""

    name: str
    offset: int
    answered: int
    """Clock of the guest when it was asked for."""


@dataclass
class Crash:
    """One run.

    Args:
        stack: up, with restarts on.
        daemon: the guest's QEMU.
        rng: seeded.
        say: progress.
    """

    stack: Stack
    daemon: StorageDaemon
    rng: random.Random
    seed: int
    say: Any = print
    faults: Counter[str] = field(default_factory=Counter)
    checkpoints: list[Named] = field(default_factory=list)
    refused: int = 0
    fots: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    fots_gone: int = 0

    def run(self, seconds: float) -> str:
        """Do it; returns the last line."""
        self.stack.protect(VOLUME, self.daemon.qmp, "disk0", "--history", "24h,20GiB")
        guest = Guest(self.daemon.uri(), self.seed)
        guest.start()
        self._fot_opened(guest)
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self._fault()
            time.sleep(self.rng.uniform(*PAUSE_SECONDS))
            if guest.error:
                raise BrokenPromiseError(f"the guest got an error: {guest.error}")
            self._checkpoint(guest)
        guest.end()
        if guest.error:
            raise BrokenPromiseError(f"the guest got an error: {guest.error}")
        recovered = self._recovered()
        points = self._judge(guest)
        syncs = Counter(event.mode for event in events(self.stack) if isinstance(event, ev.VolumeSyncStarted))
        killed = sum(count for kind, count in self.faults.items() if kind.startswith("kill"))
        return (
            f"seed {self.seed}: {killed} kills and {sum(self.faults.values()) - killed} freezes survived "
            f"({', '.join(f'{kind} {count}' for kind, count in sorted(self.faults.items()))}); "
            f"{sum(syncs.values())} syncs ({', '.join(f'{mode} {count}' for mode, count in sorted(syncs.items()))}); "
            f"{len(guest.requests)} writes, slowest {ORDER_REQUESTS} {guest.slowest_seconds:.1f} s; "
            f"{points} points right, {len(self.checkpoints)} checkpoints ({self.refused} refused), "
            f"{len(self.fots)} tests ({self.fots_gone} said to be gone); protected again after {recovered:.1f} s"
        )

    def _fault(self) -> None:
        kind = self.rng.choice(KINDS)
        pid = self._pid(kind)
        if pid is None:
            return
        if self.rng.random() < 0.6:
            self.say(f"SIGKILL to {kind} {pid}")
            self.faults[f"kill {kind}"] += 1
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                self.faults[f"kill {kind}"] -= 1
            return
        frozen = self.rng.uniform(0, FROZEN_SECONDS_MAX)
        self.say(f"SIGSTOP to {kind} {pid} for {frozen:.1f} s")
        try:
            freeze(pid)
        except (ProcessLookupError, FileNotFoundError):
            return
        self.faults[f"freeze {kind}"] += 1
        time.sleep(frozen)
        thaw(pid)

    def _pid(self, kind: str) -> int | None:
        """Process of a part, or of a worker of the agent; None if it is just being restarted."""
        document = json.loads((self.stack.state_dir / "supervisor.json").read_text())
        wanted = "agent" if kind == "worker" else kind
        pid = next((one["pid"] for one in document["parts"] if one["kind"] == wanted), None)
        if pid is None or kind != "worker":
            return pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(self.rng.choice(children)) if children else None

    def _checkpoint(self, guest: Guest) -> None:
        """Ask for one; it may be refused, but if it is made it counts."""
        answered, name = guest.clock, f"crash-{len(self.checkpoints)}-{self.refused}"
        code, document = self.stack.call("checkpoint", "create", name, "--volume", VOLUME, "--timeout", "2")
        if code == 0:
            self.checkpoints.append(Named(name, document["offsets"][VOLUME], answered))
        else:
            self.refused += 1

    def _fot_opened(self, guest: Guest) -> None:
        """A test of a point, written to, that stays open all the time."""
        self.stack.wait_until("the guest writes", lambda: guest.requests)
        fot = self.stack.run("fot", "start", VOLUME, "--latest")
        load = Load(fot["uri"])
        load("write", start=4096, length=4096, seed=self.seed)
        load("flush")
        load.close()
        self.fots[fot["fot"]] = fot["uri"], read_uri(fot["uri"], self.stack.state_dir / "read")

    def _recovered(self) -> float:
        """Wait until the volume is protected by itself; how long it took."""
        began = time.monotonic()
        while True:
            code, document = self.stack.call("status", VOLUME)
            found = document["volumes"][0] if code == 0 and document["volumes"] else {}
            if found.get("state") == "protected" and found["consistent"]:
                return time.monotonic() - began
            if time.monotonic() - began > PROTECTED_SECONDS:
                raise BrokenPromiseError(
                    f"not protected {PROTECTED_SECONDS:g} s after the last fault: {found}"
                )
            time.sleep(0.2)

    def _judge(self, guest: Guest) -> int:
        self._checkpoint(guest)
        newest = self.stack.read_view(VOLUME, "--latest")
        if newest != self.daemon.content():
            raise BrokenPromiseError("the newest point is not the disk")
        timeline = self.stack.run("timeline", VOLUME)
        ranges = [one for one in timeline["ranges"] if one["kind"] == "restorable"]
        listed = {one["checkpoint"] for one in timeline["checkpoints"]}
        offsets = [self._any_offset(ranges) for _ in range(POINTS)]
        for offset in offsets:
            view = self.stack.read_view(VOLUME, "--offset", str(offset))
            if found := violations(guest.requests, view):
                raise BrokenPromiseError(f"offset {offset}: {found[:3]}")
        for named in self.checkpoints:
            if named.name not in listed:
                continue
            view = self.stack.read_view(VOLUME, "--offset", str(named.offset))
            if found := violations(guest.requests, view, answered_before=named.answered):
                raise BrokenPromiseError(f"checkpoint {named.name} at {named.offset}: {found[:3]}")
        self._judge_fots()
        return len(offsets) + len(self.checkpoints)

    def _any_offset(self, ranges: list[dict[str, Any]]) -> int:
        """Each range as likely as any other: the short ones are between faults."""
        one = self.rng.choice(ranges)
        return self.rng.randint(one["first_offset"], one["last_offset"])

    def _judge_fots(self) -> None:
        alive = {
            one["fot"]: one for one in self.stack.run("fot", "list")["fots"] if one["state"] == "started"
        }
        for name, (uri, before) in self.fots.items():
            if name not in alive:
                self.fots_gone += 1
            elif read_uri(uri, self.stack.state_dir / "read") != before:
                raise BrokenPromiseError(f"fail-over test {name} shows other data than it did")


def crash(seconds: float, seed: int, *, say: Any = print) -> str:
    """A run on a stack and a disk of its own, which are gone afterwards.

    Returns:
        One line: what was survived.

    Raises:
        BrokenPromiseError: a promise was broken; the stack's directory is kept.
    """
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))
    stack, ok = Stack(folder / "s"), False
    daemon = StorageDaemon(folder / "q", [DISK_BYTES])
    try:
        stack.run("up", "--detach")
        line = Crash(stack, daemon, random.Random(seed), seed, say).run(seconds)
        ok = True
        return line
    finally:
        stack.down()
        daemon.stop()
        if ok:
            shutil.rmtree(folder)
        else:
            say(f"seed {seed}; state and logs are in {folder}")


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    print(crash(options.seconds, seed, say=lambda line: print(line, flush=True)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
