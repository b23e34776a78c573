"""The dirty bitmap port: which 1-MiB regions of a volume may differ from what the journal holds.

Adapters: `memory.py` and `redis.py`; `tests/conformance/bitmap_cases.py` holds what both must do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

REGION_BYTES = 1 << 20


class DirtyBitmap(Protocol):
    """Marks of one volume in one epoch.

    The attachment that owns the epoch marks through one object, and nobody else marks: the first `mark` of an
    object makes the bitmap, later ones expect it, so that a bitmap which was lost and grew again is not
    taken for whole.
    """

    async def mark(self, regions: Collection[int]) -> None:
        """Set bits; one round trip. Returns once the store has them.

        Raises:
            UnavailableError: the store does not answer in time; the marks may or may not be set.
        """

    async def clear(self, regions: Collection[int]) -> None:
        """Clear bits; one round trip. Raises UnavailableError."""

    async def load(self) -> set[int] | None:
        """The marked regions, or None if the store may have lost some (key missing, store restarted).

        An agent that finds its own marks lost calls `delete()` and marks anew all that it knows is dirty.

        Raises:
            UnavailableError: the store does not answer in time.
        """

    async def is_whole(self) -> bool:
        """Whether `load` would give regions, for less: also one that this object has not made yet is whole.

        Raises:
            UnavailableError: the store does not answer in time.
        """

    async def delete(self) -> None:
        """Forget the bitmap: the epoch is history. Raises UnavailableError."""


class BitmapStore(Protocol):
    """A Redis, or its stand-in; also keeps acks and leases.

    Every method raises UnavailableError when the store does not answer in time.
    """

    def bitmap(self, volume: str, epoch: int) -> DirtyBitmap:
        """The bitmap of a volume in an epoch; `mark` makes it."""

    async def set_ack(self, volume: str, fields: dict[str, int]) -> None:
        """Merge fields {epoch, seq, acked_offset, applied_offset, at} into the volume's ack hash."""

    async def get_ack(self, volume: str) -> dict[str, int]:
        """The volume's ack hash; empty if there is none."""

    async def renew_lease(self, key: str, value: str, ttl_seconds: float) -> None:
        """Set a lease key that ends by itself."""

    async def get_lease(self, key: str) -> str | None:
        """The value of a lease that has not ended; None if there is none."""

    async def drop(self, *keys: str) -> None:
        """Delete keys."""

    async def close(self) -> None:
        """Let go."""
