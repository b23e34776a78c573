"""A small JSON file by which a process tells the next one what it has done to VMs.

Replaced in one step, not synced: a host's crash ends its guests, and with them what the note is about.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from rephub.core.documents import parse_json

T = TypeVar("T")

log = logging.getLogger(__name__)


class Note(Generic[T]):
    """One note.

    Args:
        path: of the file.
        is_sound: whether a JSON value is such a note.
        empty: what is read where there is none, or a damaged one.
    """

    def __init__(self, path: Path, is_sound: Callable[[Any], bool], empty: Callable[[], T]) -> None:
        self.path, self._is_sound, self._empty = path, is_sound, empty

    def write(self, value: T) -> None:
        """Replace it. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.new")
        temporary.write_text(json.dumps(value))
        temporary.replace(self.path)

    def remove(self) -> None:
        """Delete it; no error if there is none. Raises OSError."""
        self.path.unlink(missing_ok=True)

    def read(self) -> T:
        """What it says; nothing where it is damaged, as nothing else tells it."""
        try:
            found: T = parse_json(self.path.read_bytes())
            if self._is_sound(found):
                return found
            reason = "another kind of document"
        except FileNotFoundError:
            return self._empty()
        except (OSError, ValueError) as exc:
            reason = str(exc)
        log.error("a note cannot be read", extra={"path": str(self.path), "reason": reason})
        return self._empty()
