"""The product's sizes, made small: a volume of 32 KiB has eight regions, reads in chunks and windows, splits events.

The rules do not depend on the sizes; a run with many regions and chunks that takes milliseconds does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from rephub.agent import capture, delta, dirty, extents, queue, sync
from rephub.core.codec import runs
from rephub.projections import head

BLOCK = 1024
REGION = 4096
CHUNK = 2048
WINDOW = 8192
EVENT = 4096
SIZE = 32 << 10
BACKLOG = 16 << 10

_SIZES = (
    (extents, "REGION_BYTES", REGION), (dirty, "REGION_BYTES", REGION), (delta, "REGION_BYTES", REGION),
    (dirty.DirtyRegions.__init__, "__defaults__", (2,)), (queue, "EVENT_DATA_BYTES_MAX", EVENT), (capture, "EVENT_DATA_BYTES_MAX", EVENT),
    (head, "SECTION_RECORDS", 8), (runs, "RUN_MIN", 2), (sync, "CHUNK_BYTES", CHUNK), (sync, "WINDOW_BYTES", WINDOW), (sync, "BACKLOG_BYTES_MAX", BACKLOG),
)  # fmt: skip


@contextlib.contextmanager
def small() -> Iterator[None]:
    """The product with these sizes."""
    with contextlib.ExitStack() as stack:
        for module, name, value in _SIZES:
            stack.enter_context(patch.object(module, name, value))
        yield
