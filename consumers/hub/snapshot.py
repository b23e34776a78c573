"""The catalogue on disk: a start need not fold the whole log, and `status` answers with the hub down."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from rephub.infra.files import private_dir, write_atomic
from rephub.projections.catalogue import Catalogue

FILE = "catalogue.json"

VERSION = 2
"""Of the document; a snapshot of another version is not used, the log is folded anew."""

log = logging.getLogger(__name__)


def load(directory: Path) -> Catalogue:
    """The catalogue of the last snapshot; an empty one if there is none that can be used."""
    path = directory / FILE
    try:
        document = json.loads(path.read_text())
        if document["version"] == VERSION:
            return Catalogue.from_dict(document["catalogue"])
        reason = f"version {document['version']}"
    except FileNotFoundError:
        return Catalogue()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        reason = str(exc)
    log.warning("snapshot not used, folding the whole log", extra={"path": str(path), "reason": reason})
    return Catalogue()


def save(directory: Path, catalogue: Catalogue) -> None:
    """Replace the snapshot. Raises StorageError."""
    private_dir(directory)
    document = {"version": VERSION, "catalogue": catalogue.to_dict()}
    write_atomic(directory / FILE, json.dumps(document, separators=(",", ":")))
