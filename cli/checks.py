"""What `rephub doctor` looks at: each check is a function that returns findings and never raises for what it checks."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rephub.cli.endpoints import Endpoints
from rephub.cli.parts import parts
from rephub.cli.plan import is_ready
from rephub.core.config import STATE_DIR_BYTES_MAX
from rephub.core.errors import RephubError
from rephub.infra.kafka import reach, topics
from rephub.infra.kafka.broker import find_runtime
from rephub.infra.redis import ask_redis

JAVA_MIN = 17
"""Kafka 4 brokers (KIP-1013)."""

QEMU_MIN = (7, 2)
"""Oldest that the project's tests pass on."""

FREE_BYTES_WANTED = 2 << 30
"""Below it a busy journal fills the disk within minutes."""

_TIME_ERROR = 5
"""adjtimex(2): the kernel says that nothing disciplines this clock."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Args:
        check: what was looked at.
        level: `ok`; `note`: worth knowing; `warning`: protection is weaker than it could be; `failed`: does not work.
        message: what was found.
        hint: what to do; empty for ok.
    """

    check: str
    level: str
    message: str
    hint: str = ""

    @property
    def degraded(self) -> bool:
        """Whether it makes `doctor` exit with 3."""
        return self.level in {"warning", "failed"}


def check_java() -> Iterator[Finding]:
    """Java and Kafka's jars, for a broker of our own."""
    try:
        runtime = find_runtime()
    except RephubError as exc:
        yield Finding("java", "warning", exc.message, exc.hint)
        return
    said = _say(runtime.java, "-version")
    found = re.search(r'version "(\d+)', said)
    good = bool(found) and int(found.group(1) if found else 0) >= JAVA_MIN
    first = said.splitlines()[0] if said else "java says nothing"
    yield Finding(
        "java", "ok" if good else "warning", first, "" if good else f"Kafka 4 needs Java {JAVA_MIN} or newer"
    )
    yield Finding("kafka jars", "ok", str(runtime.libs))


def check_tools() -> Iterator[Finding]:
    """QEMU's tools and redis-server."""
    for tool in ("qemu-storage-daemon", "qemu-img", "qemu-system-x86_64"):
        if not shutil.which(tool):
            yield Finding(tool, "warning", f"{tool} is not installed", "run `make setup`")
            continue
        said = _say(tool, "--version")
        found = re.search(r"version (\d+)\.(\d+)", said)
        version = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
        old = version < QEMU_MIN
        line = said.splitlines()[0] if said else f"{tool} says nothing"
        yield Finding(tool, "warning" if old else "ok", line, "not tested before QEMU 7.2" if old else "")
    if shutil.which("redis-server"):
        yield Finding("redis-server", "ok", _say("redis-server", "--version").strip())
    else:
        yield Finding(
            "redis-server", "warning", "redis-server is not installed", "run `make setup`, or use --redis"
        )


def check_state_dir(state_dir: Path) -> Iterator[Finding]:
    """Length, access, free space."""
    size = len(os.fsencode(state_dir))
    if size > STATE_DIR_BYTES_MAX:
        yield Finding(
            "state directory",
            "failed",
            f"its path is {size} bytes long, at most {STATE_DIR_BYTES_MAX} fit a unix socket below it",
            "give a shorter --state-dir",
        )
    existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("state directory", "failed", f"{existing} is not writable", "give another --state-dir")
        return
    free = shutil.disk_usage(existing).free
    level = "warning" if free < FREE_BYTES_WANTED else "ok"
    hint = "free some space: a full disk stops the broker" if level == "warning" else ""
    yield Finding("disk space", level, f"{free / (1 << 30):.1f} GiB are free under {existing}", hint)


def check_clock() -> Iterator[Finding]:
    """Whether something keeps the clock right: `--time` and RPO are read from it."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, all modes zero: only a question
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state == _TIME_ERROR:
        yield Finding(
            "clock",
            "note",
            "the clock is not synchronised",
            "run an NTP client on hosts whose times you compare",
        )
    else:
        yield Finding("clock", "ok", "synchronised" if state >= 0 else "the kernel does not tell")


def check_guest_discard() -> Iterator[Finding]:
    """A property of QEMU's mirror that an operator should know."""
    yield Finding(
        "guest discard",
        "note",
        "a guest's discard (TRIM) is a no-op while its disk is protected: QEMU's mirror filter swallows it",
        "run fstrim while the volume is not protected",
    )


def check_parts(state_dir: Path) -> Iterator[Finding]:
    """Whether the supervisor and its parts run."""
    known = parts(state_dir)
    if not known:
        yield Finding("stack", "note", f"no stack runs under {state_dir}", "start one with `rephub up`")
    for part in known:
        if not part["alive"]:
            how = f"; it ended with {part['last_exit']}" if part["last_exit"] else ""
            yield Finding(
                part["name"],
                "failed",
                f"does not run{how}",
                f"see {state_dir}/logs; `rephub down`, `rephub up`",
            )
        elif part["state"] == "flapping":
            message = f"dies again and again: {part['restarts']} restarts, last {part['last_exit']}"
            yield Finding(part["name"], "warning", message, f"see {state_dir}/logs")
        else:
            yield Finding(part["name"], "ok", f"runs (pid {part['pid']}, {part['restarts']} restarts)")


async def check_daemons(endpoints: Endpoints) -> list[Finding]:
    """Whether the daemons answer."""
    ready = await asyncio.gather(*(is_ready(url) for url in endpoints.urls.values()))
    return [
        Finding(
            f"{kind} status", "ok" if good else "failed", f"{'answers' if good else 'no answer'} at {url}"
        )
        for (kind, url), good in zip(endpoints.urls.items(), ready, strict=True)
    ]


async def check_kafka(bootstrap: str) -> list[Finding]:
    """Reachable, how many brokers, what survives a power cut, topics as defined."""
    try:
        cluster = await reach.ask(bootstrap)
        flushes = await topics.flushes_each_message(bootstrap)
        wrong = await topics.differences(bootstrap)
    except RephubError as exc:
        return [Finding("kafka", "failed", exc.message, exc.hint)]
    found = [Finding("kafka", "ok", f"{cluster.brokers} broker(s) at {bootstrap}")]
    if cluster.brokers == 1 and not flushes:
        found.append(
            Finding(
                "journal durability",
                "note",
                "lab-only: one broker without flush.messages=1: its acks are page cache, a power cut loses acked events",
                "use three brokers, or set flush.messages=1 on the journal topics",
            )
        )
    for topic, properties in wrong.items():
        said = ", ".join(f"{key} is {has or 'unset'}, not {want}" for key, (has, want) in properties.items())
        found.append(Finding(f"topic {topic}", "warning", said, "set it with kafka-configs.sh --alter"))
    return found


def check_redis(url: str) -> Iterator[Finding]:
    """Reachable, and whether it keeps what it answered."""
    try:
        persistence = ask_redis(url)
    except RephubError as exc:
        yield Finding("redis", "failed", exc.message, exc.hint)
        return
    if persistence == {"appendonly": "yes", "appendfsync": "always"}:
        yield Finding("redis", "ok", "answers; appendonly yes, appendfsync always")
    else:
        said = ", ".join(f"{key} {value or 'unknown'}" for key, value in persistence.items())
        yield Finding(
            "redis",
            "warning",
            f"marks do not survive its restart: {said}",
            "set appendonly yes and appendfsync always",
        )


def _say(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()
