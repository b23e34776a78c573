"""`STATE/supervisor.json`: which processes a stack consists of; written by the supervisor, judged by readers.

A reader asks the system about each pid, so that the answer is right also when the supervisor itself was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rephub.core.documents import parse_object, record_of
from rephub.infra.files import write_atomic
from rephub.infra.process import is_same

FILE = "supervisor.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a stack, as the supervisor knew it."""

    name: str
    """`broker`, `redis`, `hub1`, `agent1`, …: the id for a daemon."""
    kind: str
    """supervisor, broker, redis, hub, agent, diskbox."""
    pid: int | None
    started_at: float
    """Start of the process, seconds since the epoch: with the pid it names the process for ever."""
    restarts: int = 0
    state: str = "running"
    """running, waiting (for its next start), flapping (dies again and again), stopped (nobody starts it again)."""
    last_exit: str = ""
    """How it ended last time: `status 1`, `signal SIGKILL`; empty if it never did."""


def write_parts(state_dir: Path, parts: list[Part]) -> None:
    """Replace the file. Raises StorageError."""
    write_atomic(state_dir / FILE, json.dumps({"parts": [asdict(part) for part in parts]}))


def read_parts(state_dir: Path) -> list[Part]:
    """What the file says; empty if there is none or it is damaged."""
    try:
        entries = parse_object((state_dir / FILE).read_bytes())["parts"]
        return [record_of(Part, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def alive(part: Part) -> bool:
    """Whether that very process still runs."""
    return part.pid is not None and is_same(part.pid, part.started_at)


def parts(state_dir: Path) -> list[dict[str, Any]]:
    """The stack's processes for `status`: name, kind, pid, alive, restarts, state, last_exit; empty if none is known."""
    found = []
    for part in read_parts(state_dir):
        running = alive(part)
        state = part.state if running or part.state != "running" else "stopped"
        found.append(
            {
                "name": part.name,
                "kind": part.kind,
                "pid": part.pid if running else None,
                "alive": running,
                "restarts": part.restarts,
                "state": state,
                "last_exit": part.last_exit,
            }
        )
    return found
