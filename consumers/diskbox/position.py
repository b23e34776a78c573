"""Where a recovery volume stands, kept beside it: `volumes/<volume>/position.json`.

Invariant: what is applied is in the recovery volume for sure; nothing above the intent is in it. The file is replaced in
one durable step, the intent before anything of it is applied, applied after everything of it is on disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rephub.consumers.diskbox.files import storage_errors, write_durably
from rephub.core.documents import checksum, parse_object, record_of
from rephub.core.errors import StorageError
from rephub.projections.journal_fold import FoldState

FILE = "position.json"
FORMAT = 2
"""Since 2 with a checksum: a bit that rots on the disk must not move the position. 1 is read as it is."""


@dataclass(slots=True)
class Position:
    """The durable state of one recovery volume."""

    volume: str
    path: str
    """Of the recovery volume's data: a file, a device, or an NBD URI."""
    start_id: str
    """The StartProtect that it serves."""
    applied: FoldState
    """The fold of the journal up to the last event that is applied."""
    intent_offset: int
    ready: bool = False
    """False: the file at `path` is being made."""
    retired: bool = False
    """Protection ended; the data stay."""
    promoted: dict[str, Any] = field(default_factory=dict)
    """{"promotion", "offset"} once promoted; the data are exactly that point."""
    identity: str = ""
    """Of a block device, as far as the kernel knows one."""
    taken_over: bool = False
    """The file was the operator's seed: it is kept whatever happens."""

    @property
    def applied_offset(self) -> int:
        """The last event that is surely in the recovery volume."""
        return self.applied.last_offset

    def to_json(self) -> bytes:
        """As the file holds it."""
        fields = asdict(self)
        return json.dumps({"format": FORMAT, "crc32c": checksum(fields), **fields}, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Position:
        """The position in a file's content. Raises ValueError if it is none, or not what was written."""
        document = parse_object(content)
        found = document.pop("format", None)
        if found == FORMAT and document.pop("crc32c", None) != checksum(document):
            raise ValueError("its checksum is wrong")
        if found not in (1, FORMAT):
            raise ValueError(f"unknown format {found!r}")
        applied = FoldState.from_dict(document.get("applied", {}))
        return record_of(cls, document | {"applied": applied})


def load_position(directory: Path) -> Position | None:
    """The position in a volume's directory; None: there is none.

    Raises:
        StorageError: it cannot be read or is damaged.
    """
    path = directory / FILE
    with storage_errors("read", path):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        return Position.from_json(content)
    except ValueError as exc:
        raise StorageError(
            f"{path} is damaged: {exc}", hint="unprotect with --purge and protect again", path=str(path)
        ) from exc


def save_position(directory: Path, position: Position) -> None:
    """Replace the position durably. Raises StorageError. Blocking: two fsyncs."""
    write_durably(directory / FILE, position.to_json())
