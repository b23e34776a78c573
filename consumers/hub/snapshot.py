"""The catalogue on disk: a start need not fold the whole log, and `status` answers with the hub down."""

from __future__ import annotations

import logging
from pathlib import Path

from crc32c import crc32c

from rephub.core.documents import checksum, parse_object
from rephub.infra.files import private_dir, write_atomic
from rephub.projections.catalogue import Catalogue

FILE = "catalogue.json"

VERSION = 3
"""Of the document; a snapshot of another version is not used, the log is folded anew. Since 3 with a checksum."""

log = logging.getLogger(__name__)


def load(directory: Path) -> Catalogue:
    """The catalogue of the last snapshot; an empty one if there is none that can be used."""
    path = directory / FILE
    try:
        return read(path)
    except FileNotFoundError:
        return Catalogue()
    except (OSError, ValueError) as exc:
        extra = {"path": str(path), "reason": str(exc)}
        log.warning("snapshot not used, folding the whole log", extra=extra)
        return Catalogue()


def read(path: Path) -> Catalogue:
    """The catalogue in a snapshot.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another version.
    """
    document = parse_object(path.read_bytes())
    if document.get("version") != VERSION:
        raise ValueError(f"version {document.get('version')!r}")
    catalogue = document.get("catalogue")
    if document.get("crc32c") != checksum(catalogue):
        raise ValueError("its checksum is wrong")
    try:
        return Catalogue.from_dict(catalogue)  # type: ignore[arg-type]  # whatever it is
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"no catalogue: {exc!r}") from exc


def save(directory: Path, catalogue: Catalogue) -> None:
    """Replace the snapshot. Raises StorageError."""
    private_dir(directory)
    text = catalogue.to_json()
    crc = f"{crc32c(text.encode()):08x}"  # as `checksum` has it, without making the text twice
    write_atomic(directory / FILE, f'{{"version":{VERSION},"crc32c":"{crc}","catalogue":{text}}}')
