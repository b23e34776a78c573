"""`STATE/diskboxes.json`: the diskboxes that a stack has grown by; written by the hub's provider, followed by the supervisor.

A wish that lasts: the supervisor starts what is listed, now and at each `up`. A file, not a message, so that it does
not matter which of the two runs at the moment.
"""

from __future__ import annotations

import json
from pathlib import Path

from rephub.core.documents import parse_object
from rephub.core.errors import StorageError, UsageError
from rephub.core.names import check_name
from rephub.infra.files import write_atomic

FILE = "diskboxes.json"


def grown_diskboxes(state_dir: Path) -> list[str]:
    """Names in the order in which they were asked for.

    Raises:
        StorageError: the file is there and cannot be read: volumes may be on diskboxes that would not be started.
    """
    path = state_dir / FILE
    try:
        return [check_name(name, "diskbox") for name in parse_object(path.read_bytes())["diskboxes"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, UsageError) as exc:
        raise StorageError(
            f"cannot read {path}: {exc}",
            hint='it lists the diskboxes beside the first one: {"diskboxes": ["diskbox2"]}',
            path=str(path),
        ) from exc


def add_diskbox(state_dir: Path, name: str) -> None:
    """Add a name unless it is listed; durable when this returns. Raises StorageError."""
    known = grown_diskboxes(state_dir)
    if name not in known:
        write_atomic(state_dir / FILE, json.dumps({"diskboxes": [*known, check_name(name, "diskbox")]}))
