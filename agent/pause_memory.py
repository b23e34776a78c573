"""What a pause remembered, as the attachments after it use it, until a sync is complete or something does not fit."""

from __future__ import annotations

import logging

from rephub.agent import bitmaps, epochs, source
from rephub.agent.attach import Names
from rephub.agent.bitmaps import Bitmaps
from rephub.agent.epochs import Hint
from rephub.agent.source import Source
from rephub.agent.vm import Vm
from rephub.core.errors import QemuError, UnavailableError
from rephub.core.journal.port import JournalStore
from rephub.projections.catalogue import Volume

log = logging.getLogger(__name__)


class PauseMemory:
    """The bitmaps of a volume's last pause, in one attachment.

    Args:
        volume: as the catalogue has it before the attachment.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._known = dict(volume.bitmap)
        self.bitmaps: Bitmaps | None = bitmaps.names_of(self._known["name"]) if self._known else None
        """What the sync may rely on; None: everything is copied."""
        self.why_full = ""
        """Why everything is copied although there was a pause; else empty."""

    def distrust(self, why: str) -> None:
        """The node may hold other data than the one before: everything is copied."""
        self._copy_all(why)

    async def check(self, vm: Vm, node: str) -> None:
        """Look whether QEMU still has what is known; what cannot be relied on now never will be, and is removed."""
        if self.bitmaps and self._volume.stopped:
            self._copy_all("its recovery volume has stopped")
        elif self.bitmaps and (why := await bitmaps.check(vm, node, self._known)):
            self._copy_all(why)
        await bitmaps.clean(vm, node, self.bitmaps)

    async def check_journal(self, journals: JournalStore) -> None:
        """The bitmaps are worth something only on top of all that was in the journal at the pause.

        Raises:
            UnavailableError: no broker answers in time.
        """
        if self.bitmaps:
            hint = Hint(self._known["epoch"], self._known["offset"])
            if not await epochs.still_holds(journals, self._volume.name, hint):
                self._copy_all("the journal has lost events that were acked before")

    async def open_source(self, vm: Vm, node: str, own: Names, server_path: str) -> Source:
        """Export the volume for sync, with what was remembered until now; call once the filter is in.

        Raises:
            UnavailableError: as `source.open_source`.
        """
        if self.bitmaps:
            try:
                await bitmaps.snapshot(vm, node, self.bitmaps)
                shown = (self.bitmaps.copy, self.bitmaps.guard)
                return await source.open_source(vm, node, own, server_path, shown)
            except (QemuError, UnavailableError) as exc:
                self._copy_all(exc.message)
        return await source.open_source(vm, node, own, server_path)

    def not_shown(self) -> None:
        """QEMU's NBD server has no such contexts: the sync that began copies everything."""
        self.why_full = "QEMU does not show its dirty bitmap"

    async def forget(self, vm: Vm, node: str) -> None:
        """All is in the journal, or nobody wants it any more: remove the bitmaps."""
        await bitmaps.clean(vm, node)
        self.bitmaps = None

    async def keep(self, vm: Vm, node: str) -> None:
        """The attachment ends before its sync was complete: the next one needs what records, not our copy."""
        await bitmaps.clean(vm, node, self.bitmaps)

    def _copy_all(self, why: str) -> None:
        self.bitmaps, self.why_full = None, why
        log.warning("full copy", extra={"volume": self._volume.name, "why": why})
