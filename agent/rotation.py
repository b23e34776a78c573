"""Rotates the records that QEMU keeps of writes, and looks whether they hold anybody else's."""

from __future__ import annotations

import time

from rephub.agent import attach, source
from rephub.agent.grip import Grip, drain
from rephub.agent.vm import Vm
from rephub.core.errors import ConflictError


class Rotation:
    """Records of one attachment; see `bitmaps.py`.

    Args:
        grip: the attachment.
    """

    def __init__(self, grip: Grip) -> None:
        self._grip = grip
        self._begun = time.monotonic(), -1
        """When the newest record began, and what was acked then."""

    def is_due(self, acked_offset: int, seconds: float) -> bool:
        """Whether something was acked since the newest record in QEMU began, and that is so many seconds ago."""
        at, offset = self._begun
        return self._grip.memory.rotates and acked_offset > offset and time.monotonic() - at >= seconds

    async def rotate(self) -> None:
        """Begin the next record of writes in QEMU; older ones go once all that they hold is acked.

        Raises:
            RephubError: QEMU or worker cannot be asked, or refuse; the records that are there hold all the same.
        """
        grip = self._grip
        vm = await grip.vm()
        before = await grip.call("position")
        async with grip.changing(vm):
            await grip.memory.rotate(vm, grip.node, before["acked_seq"], before["acked_offset"])
            # Once more: on an iothread, writes may come between the transaction's own drain and its actions.
            await drain(vm)
            # A mirror that somebody ended brought us nothing since: what the records hold is not in the queue.
            await attach.check_job(vm, grip.names.job)
        turn = await grip.call("turn")
        grip.memory.rotated(turn["received_seq"])
        self._begun = time.monotonic(), before["acked_offset"]
        await self._watch_foreign(vm, turn["touched_bytes"])

    async def _watch_foreign(self, vm: Vm, touched_bytes: int | None) -> None:
        """Capture is lost if the record that ended holds more than the guest's writes: somebody writes below the filter."""
        grip = self._grip
        last = await grip.memory.last_record(vm, grip.node)
        if touched_bytes is None or last is None or last[1] <= touched_bytes or grip.source is not None:
            # Also while a verify has the export: it looks at more than this.
            return
        async with grip.changing(vm):
            at = await source.open_source(vm, grip.node, grip.names, grip.server_path, (last[0],))
        try:
            server = at.address.to_dict()
            answer = await grip.call("foreign", server=server, export=at.export, record=last[0])
        finally:
            async with grip.changing(vm):
                await source.close_source(vm, grip.names, grip.server_path)
        if answer["extents"]:
            start, count = answer["extents"][0][0], len(answer["extents"])
            why = (
                f"somebody else wrote to node {grip.node}, in {count} places of 64 KiB, first at byte {start}"
            )
            grip.keeper.lost(grip.held.epoch, ConflictError(why, hint="who else has the disk open?"))
