"""What is known of a volume from before an attachment, and what the attachment leaves for the next one.

Known are the chain of bitmaps in QEMU (`bitmaps.py`), marks and the place of a sync in Redis, and what the catalogue says of
the recovery volume. `decide` makes of it how much the sync has to copy; whatever is missing or does not fit makes that
more, never less.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rephub.agent import bitmaps, epochs, source
from rephub.agent.attach import Names
from rephub.agent.bitmaps import Chain
from rephub.agent.epochs import Hint
from rephub.agent.source import Source
from rephub.agent.vm import Vm
from rephub.core.bitmap.port import BitmapStore
from rephub.core.errors import QemuError, RephubError, UnavailableError
from rephub.core.journal.port import JournalStore
from rephub.projections.catalogue import Volume

RESUMABLE = ("full", "continued")
"""Modes of sync that go through the whole volume in order, so that the next attachment can go on."""

EPOCHS_MARKED = 16
"""Marks of so many epochs may be left when a sync completes: as many attachments may have failed in between."""

log = logging.getLogger(__name__)


def decide(volume: Volume, fault: str, cursor_bytes: int) -> tuple[str, str]:
    """How the sync of the next attachment makes the recovery volume right; pure.

    Args:
        volume: as the catalogue has it before the attachment.
        fault: why the chain of bitmaps cannot be relied on, or an empty string.
        cursor_bytes: the sync that was interrupted is complete up to here.

    Returns:
        Its mode, and why it is not less: `delta` copies what the chain says is dirty, `continued` that and what the sync
        before had not reached, `compare` compares both sides and copies what differs, `full` copies everything.
    """
    known = volume.bitmap
    interrupted = bool(known) and not known["based"] and volume.sync_mode in RESUMABLE
    if volume.to_compare:
        return "compare", ""
    if volume.stopped:
        return "full", "its recovery volume has stopped"
    if volume.resync_id:
        return "full", ""
    if interrupted and not fault and cursor_bytes > 0:
        return "continued", ""
    if not volume.whole:
        return "full", fault
    why = fault or volume.differs
    if not known:
        why = why or "nothing in QEMU tells what was written meanwhile"
    elif not known["based"]:
        why = why or "the sync before was not completed"
    return ("compare", why) if why else ("delta", "")


class Memory:
    """One attachment's memory of what was before, and its own chain.

    Args:
        volume: as the catalogue has it before the attachment.
        attachment_id: of the attachment, 32 hexadecimal digits.
    """

    def __init__(self, volume: Volume, attachment_id: str) -> None:
        self._volume = volume
        self._attachment_id = attachment_id
        self._known = dict(volume.bitmap)
        self._fault = ""
        self._offset = int(self._known.get("offset", -1))
        self._own: Chain | None = None
        self._left: dict[str, Any] = {}
        self._number = 0
        """Of our newest record."""
        self._received_seq: int | None = 0
        """All that the records before the newest hold is in our queue up to here; None: that is not known."""
        self.mode, self.why = "full", ""
        """As `decide` gives them, once `check` and `look_up` are through."""
        self.cursor_bytes = 0
        """Where a continued sync begins."""
        self.marked: set[int] = set()
        """Regions that Redis says are dirty."""

    # Before the attachment.

    def distrust(self, why: str) -> None:
        """The node may hold other data than the one before."""
        self._fault = why

    async def check(self, vm: Vm, node: str) -> None:
        """Look whether QEMU still has what is known; what cannot be relied on now never will be, and is removed."""
        if self._known:
            self._fault = self._fault or await bitmaps.check(vm, node, self._known)
        if self._trusted:
            base = self._known["name"]
            self._offset = max(self._offset, await bitmaps.acked_offset(vm, node, base))
            await bitmaps.clean(vm, node, bitmaps.chain_of(base))
        else:
            await bitmaps.clean(vm, node)

    async def look_up(self, journals: JournalStore, store: BitmapStore) -> None:
        """See whether the journal still holds what the chain builds on, and what Redis knows; decide.

        Raises:
            UnavailableError: no broker answers in time.
        """
        name, epoch = self._volume.name, self._known.get("epoch", 0)
        if self._trusted:
            hint = Hint(epoch, self._offset)
            if not await epochs.still_holds(journals, name, hint):
                self._fault = "the journal has lost events that were acked before"
        if self._trusted and not self._volume.paused_at:
            try:
                # The chain has all of it too, as long as QEMU is right: so marks that Redis has lost are no fault.
                self.marked = await store.bitmap(name, epoch).load() or set()
                ack = await store.get_ack(name)
            except UnavailableError:
                ack = {}
            if ack.get("epoch") == epoch:
                self.cursor_bytes = ack.get("synced_bytes", 0)
        self.mode, self.why = decide(self._volume, self._fault, self.cursor_bytes)
        if self.mode != "continued":
            self.cursor_bytes = 0
        if self.why:
            log.warning("no delta", extra={"volume": name, "mode": self.mode, "why": self.why})

    @property
    def reason(self) -> str:
        """Why more is done than to copy a difference, for the timeline; empty: it is not, or nobody expects it."""
        what = {"full": "full copy", "compare": "compared"}.get(self.mode, self.mode)
        return f"{what}: {self.why}" if self.why else ""

    @property
    def relies(self) -> bool:
        """The sync copies less than all, because of the chain before."""
        return self.mode in ("delta", "continued")

    @property
    def _trusted(self) -> bool:
        return bool(self._known) and not self._fault

    # The attachment.

    async def begin(self, vm: Vm, node: str, offset: int) -> None:
        """Begin our chain, before the filter is in; without one the next attachment compares.

        Args:
            vm: connected, its lock held.
            node: node name.
            offset: of our EpochStarted, which is acked.

        Raises:
            UnavailableError: QEMU went away.
        """
        base = bitmaps.chain_name(node, self._attachment_id)
        try:
            self._left = await bitmaps.begin(vm, node, base, offset)
        except QemuError as exc:
            log.warning("no dirty bitmap", extra={"volume": self._volume.name, "error": exc.message})
            return
        self._own, self._number = bitmaps.chain_of(base), 1

    async def undo(self, vm: Vm, node: str) -> None:
        """The attachment failed: its chain goes, the one before stays."""
        self._own = None
        await self.keep(vm, node)

    async def open_source(self, vm: Vm, node: str, own: Names, server_path: str) -> Source:
        """Export the volume for sync, with what is known until now; call once the filter is in.

        Raises:
            UnavailableError: as `source.open_source`.
        """
        chain = self._own
        if chain is None:
            if self.relies:
                self._without("QEMU has no dirty bitmap for it")
            return await source.open_source(vm, node, own, server_path)
        persistent = self._left["persistent"]
        if self.relies:
            try:
                before = bitmaps.chain_of(self._known["name"])
                await bitmaps.inherit(vm, node, chain, before, persistent=persistent)
                await bitmaps.snapshot(vm, node, chain)
                return await source.open_source(vm, node, own, server_path, (chain.copy, chain.guard))
            except (QemuError, UnavailableError) as exc:
                self._without(exc.message)
        opened = await source.open_source(vm, node, own, server_path)
        if self._own is not None:
            try:
                await bitmaps.make_guard(vm, node, chain, server_path, persistent=persistent)
            except (QemuError, UnavailableError) as exc:
                self._without(exc.message)
        return opened

    def _without(self, why: str) -> None:
        """Nothing is inherited, nothing is left."""
        self._own, self._left = None, {}
        if self.relies:
            self.mode, self.why = ("compare" if self._volume.whole else "full"), why
            self.cursor_bytes = 0
        log.warning("no dirty bitmap", extra={"volume": self._volume.name, "why": why})

    @property
    def shown(self) -> list[str] | None:
        """Copy and guard that the source shows; None: the sync relies on none."""
        return [self._own.copy, self._own.guard] if self._own and self.relies else None

    @property
    def left(self) -> dict[str, Any]:
        """What `FilterAttached` says of the chain."""
        fields = {"compare": self.mode == "compare"}
        if not self._own:
            return fields
        left = {key: self._left[key] for key in ("persistent", "image")}
        return fields | left | {"bitmap": self._own.base, "based": self.mode == "delta"}

    def not_shown(self) -> None:
        """QEMU's NBD server has no such contexts: the sync that began copies everything."""
        self.mode, self.why = "full", "QEMU does not show its dirty bitmap"

    # Beside capture.

    @property
    def rotates(self) -> bool:
        """There is a chain, and it is ours."""
        return self._own is not None

    async def completed(self, vm: Vm, node: str, server_path: str) -> None:
        """Sync is complete, and acked: only our own chain is needed from here on.

        Raises:
            QemuError: QEMU refused.
            UnavailableError: QEMU went away.
        """
        if self._own is None:
            await bitmaps.clean(vm, node)
            return
        await bitmaps.clean(vm, node, self._own)
        if self.relies:
            # The node cannot be cut while it is mirrored.
            await bitmaps.make_guard(vm, node, self._own, server_path, persistent=self._left["persistent"])
            self.mode = ""

    async def rotate(self, vm: Vm, node: str, acked_seq: int, acked_offset: int) -> None:
        """Begin the next record, and drop those whose content is acked; `rotated` must follow.

        Args:
            vm: connected, its lock held.
            node: node name.
            acked_seq: newest `seq` of the queue that is acked.
            acked_offset: its journal offset.

        Raises:
            QemuError: QEMU refused.
            UnavailableError: QEMU went away.
        """
        assert self._own is not None
        base, persistent = self._own.base, self._left["persistent"]
        self._number = await bitmaps.rotate(vm, node, base, acked_offset, persistent=persistent)
        received_seq, self._received_seq = self._received_seq, None
        if received_seq is not None and acked_seq >= received_seq:
            # What is only in older records is acked, and the newest one's name says so.
            await bitmaps.drop(vm, node, base, self._number - 1)

    def rotated(self, received_seq: int) -> None:
        """QEMU was drained since, and this is the newest `seq` in the queue."""
        self._received_seq = received_seq

    async def last_record(self, vm: Vm, node: str) -> tuple[str, int] | None:
        """The record that ended with the last rotation, and how many bytes are dirty in it.

        None if it is the first one, which inherits what others wrote, or gone.
        """
        assert self._own is not None
        return (
            await bitmaps.dirty_bytes(vm, node, self._own.base, self._number - 1)
            if self._number > 2
            else None
        )

    async def pause(self, vm: Vm, node: str, server_path: str, offset: int) -> dict[str, Any]:
        """A chain that records from here on; returns `name`, `persistent` and `image` of `Volume.bitmap`.

        Raises:
            QemuError: QEMU refused.
            UnavailableError: QEMU went away.
        """
        if self._own is None:
            await self.begin(vm, node, offset)
            if self._own is None:
                raise UnavailableError(
                    f"QEMU takes no dirty bitmap on node {node}", hint="see the agent's log"
                )
            await bitmaps.make_guard(vm, node, self._own, server_path, persistent=self._left["persistent"])
        else:
            self._number = await bitmaps.rotate(
                vm, node, self._own.base, offset, persistent=self._left["persistent"]
            )
        return dict(self._left)

    async def paused(self, vm: Vm, node: str) -> None:
        """Everything captured is acked: what was written before the pause is in the journal."""
        assert self._own is not None
        await bitmaps.drop(vm, node, self._own.base, self._number)

    async def forget(self, vm: Vm, node: str) -> None:
        """Nobody wants it any more: remove the bitmaps."""
        await bitmaps.clean(vm, node)
        self._own = None

    async def keep(self, vm: Vm, node: str) -> None:
        """The attachment is over: the next one needs what records, not what was made for our sync."""
        names = [self._known["name"]] if self._trusted else []
        chains = [bitmaps.chain_of(name) for name in names] + ([self._own] if self._own else [])
        await bitmaps.clean(vm, node, *chains)


async def forget_marks(store: BitmapStore, volume: str, epochs_over: Iterable[int]) -> None:
    """Remove the dirty marks of epochs that nobody looks at any more; they are only in the way."""
    try:
        for epoch in epochs_over:
            await store.bitmap(volume, epoch).delete()
    except RephubError as exc:
        log.debug("marks not removed", extra={"volume": volume, "error": exc.message})
