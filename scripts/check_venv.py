"""Exit 0 if this Python has every package of a lock file in exactly the pinned version, and RepHub itself."""

from __future__ import annotations

import re
import sys
from importlib import metadata, util
from pathlib import Path

PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")


def wrong(lock: Path) -> list[str]:
    """What is missing or has another version, one line each."""
    found = []
    for line in lock.read_text().splitlines():
        pin = PIN.match(line)
        if not pin:
            continue
        name, version = pin.groups()
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is missing")
            continue
        if installed != version:
            found.append(f"{name} is {installed}, pinned is {version}")
    if util.find_spec("rephub") is None:
        found.append("rephub is missing")
    return found


if __name__ == "__main__":
    problems = wrong(Path(sys.argv[1]))
    for problem in problems:
        print(f"setup: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)
