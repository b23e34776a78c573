"""What a sync may rely on: what the control process knows of the volume from before the attachment."""

from __future__ import annotations

from dataclasses import dataclass, field

from rephub.agent.delta import Source as BitmapSource
from rephub.agent.delta import to_copy, union
from rephub.agent.extents import Extent
from rephub.core.bitmap.port import REGION_BYTES


@dataclass(frozen=True, slots=True)
class Known:
    """See `memory.decide`; travels as JSON. By itself: nothing, everything is copied."""

    mode: str = "full"
    """full, continued or delta."""
    bitmaps: tuple[str, str] | None = None
    """Copy and guard that the source shows (see `bitmaps.py`)."""
    regions: list[int] = field(default_factory=list)
    """Marked in Redis."""

    async def extents(self, source: BitmapSource, size_bytes: int, cursor_bytes: int) -> list[Extent] | None:
        """What is to be copied; None: everything, also where the source does not show the bitmaps.

        Args:
            source: export of the volume.
            size_bytes: of the volume.
            cursor_bytes: what a continued sync finds synced, and acked, lies below.

        Raises:
            UnavailableError, ProtocolError, RequestError: they cannot be read.
        """
        if self.bitmaps is None:
            return None
        dirty = await to_copy(source, self.bitmaps[0], self.bitmaps[1], size_bytes)
        if dirty is None:
            return None
        dirty += [(region * REGION_BYTES, REGION_BYTES) for region in self.regions]
        if self.mode == "continued":
            dirty.append((cursor_bytes, max(0, size_bytes - cursor_bytes)))
        return union(dirty, size_bytes)
