"""The control log port: append to and follow `rephub.commands` and `rephub.events`.

Adapters: `memory.py` and `kafka.py`; `tests/conformance/control_cases.py` holds what both must do.
Records that cannot be decoded are skipped and counted (a newer version may have written them), unlike
journal records, which stop the volume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from rephub.core.codec import ControlRecord

Entry = tuple[int, ControlRecord]
"""Offset and record."""


class ControlLog(Protocol):
    """The two topics of the control plane."""

    undecodable: int
    """Records that were skipped since the start."""

    async def start(self) -> None:
        """Connect.

        Raises:
            UnavailableError: no broker answers in time.
            NotFoundError: a topic is missing.
        """

    async def append(self, topic: str, record: ControlRecord) -> int:
        """Write one record, wait until all in-sync replicas have it, return its offset.

        Raises:
            UnavailableError: nothing was written; may be tried again.
            IndeterminateError: it may have been written, or may be yet: ids make a repeat harmless.
        """

    async def next_offset(self, topic: str) -> int:
        """One after the newest record. Raises UnavailableError."""

    async def read(self, topic: str, first_offset: int, next_offset: int) -> list[Entry]:
        """Every decodable record in [first_offset, next_offset).

        Raises:
            IntegrityError: the log does not reach from `first_offset` to `next_offset`.
            UnavailableError: no broker answers in time.
        """

    def tail(self, topic: str, first_offset: int) -> AsyncIterator[list[Entry]]:
        """Records from `first_offset` on, in non-empty lists, waiting for ever, also for a broker that is away.

        Raises:
            IntegrityError: `first_offset` is not in the log.
        """

    async def close(self) -> None:
        """Let go."""
