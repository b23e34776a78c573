"""What can differ between a recovered VM's disk and the disk of before: the way back copies no more than that.

After a planned move the disk of before is the volume at the point, and the overlay's map says what was written since. That is
only so if nobody has touched the disk of before: a file tells by its ctime, which nothing sets back. Whatever is not known
for sure makes the sync compare everything.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rephub.consumers.diskbox.failovers import Failovers
from rephub.consumers.diskbox.seeding import check_not_written
from rephub.core.errors import RephubError
from rephub.core.nbd.uri import parse_uri
from rephub.core.targets import target_kind
from rephub.projections.catalogue import Catalogue, Failover, Volume
from rephub.projections.extent_lists import Extent, bounded
from rephub.projections.view import BLOCK_BYTES

log = logging.getLogger(__name__)


class Failbacks:
    """The ways back that end on one diskbox.

    Args:
        catalogue: the fold of all events.
        failovers: of the diskbox.
        diskbox: its id.
    """

    def __init__(self, catalogue: Catalogue, failovers: Failovers, diskbox: str) -> None:
        self._catalogue = catalogue
        self._failovers = failovers
        self._diskbox = diskbox
        self._as_left: set[str] = set()
        """The protections (`start_id`) whose recovery volume was found as its fail-over had left it."""

    def look(self, volume: Volume) -> None:
        """Before the disk of before is taken over: see whether anybody has touched it since."""
        found = self._catalogue.failovers.get(volume.failback)
        if found is None:
            return
        why = self._touched(found, volume)
        if why:
            log.info("volume=%s failback=whole why=%s", volume.name, why)
        else:
            self._as_left.add(volume.start_id)

    def _touched(self, found: Failover, volume: Volume) -> str:
        """Why the disk of before may not be the volume at the point; empty: it is."""
        item = found.drained.get(volume.name)
        if item is None or not item["stopped"] or item["image"] is None or volume.recovery is None:
            return "it was no planned move of a VM"
        agent, box = self._catalogue.agents.get(item["agent"]), self._catalogue.diskboxes.get(self._diskbox)
        if agent is None or box is None or agent.host != box.host or target_kind(volume.recovery) != "file":
            return "the disk of before is no file of this host"
        image = self._file_of(volume.name, item["image"])
        if image is None or not image.exists() or not image.samefile(volume.recovery):
            return f"the VM that was moved had another disk, {item['image']}"
        if image.stat().st_ctime_ns // 1000 > item["captured_at"]:
            return "the disk of before was changed since the VM was stopped"
        return ""

    def _file_of(self, volume: str, image: str) -> Path | None:
        """The file that a node writes to: its own, or that of a fail-over from which its VM ran."""
        if not image.startswith("nbd"):
            return Path(image)
        try:
            socket = parse_uri(image).path
        except RephubError:
            return None
        for found in self._catalogue.failovers.values():
            for view, plan in zip(found.views, found.plans, strict=False):
                if view["volume"] == volume and parse_uri(view["uri"]).path == socket:
                    return Path(plan["path"])
        return None

    def written(self, volume: Volume) -> list[Extent] | None:
        """All that can differ, at most so many extents as an event takes; None: nobody knows.

        Call it once the recovered VM's writes are captured.
        """
        opened = self._failovers.open.get(volume.failback)
        found = self._catalogue.failovers.get(volume.failback)
        if volume.start_id not in self._as_left or opened is None or found is None:
            return None
        view = opened.views.get(volume.name)
        plan = next((plan for plan in found.plans if plan["volume"] == volume.name), None)
        if view is None or plan is None or not view.committing:
            return None
        try:
            if target_kind(plan["path"]) == "file":
                check_not_written(Path(plan["path"]))
        except RephubError as exc:
            log.info("volume=%s failback=whole why=%s", volume.name, exc.message)
            return None
        blocks = view.overlay.map.written()
        extents = bounded((first * BLOCK_BYTES, (next_ - first) * BLOCK_BYTES) for first, next_ in blocks)
        # No extent at all would mean the whole volume.
        return [(start, min(length, view.size_bytes - start)) for start, length in extents] or [
            (0, BLOCK_BYTES)
        ]
