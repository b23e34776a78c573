"""Makes region marks durable: the I/O around `dirty.py`.

One round trip at a time and per volume, so that a mark can never overtake the clear before it; what is wanted
meanwhile travels together in the next one (all writes of a loop turn, and more under load).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from rephub.agent.dirty import DirtyRegions
from rephub.agent.queue import Queued
from rephub.core.bitmap.port import DirtyBitmap
from rephub.core.errors import UnavailableError

RETRY_SECONDS = 1.0
"""Pause after the store did not answer; writes are answered after Kafka's ack meanwhile."""

CLEAR_SECONDS = 1.0
"""How often marks are looked at for clearing."""

CHECK_SECONDS = 5.0
"""How often the store is asked whether it still has the marks: one that was restarted, or emptied, answers as if nothing were."""

log = logging.getLogger(__name__)


class Marks:
    """Marks of one attachment.

    Args:
        volume: for the log.
        bitmap: the store's bitmap of this epoch.
        dirty: what is marked, pending, clearable.
        marked: called with the events whose regions are all marked now.
    """

    def __init__(
        self,
        volume: str,
        bitmap: DirtyBitmap,
        dirty: DirtyRegions,
        marked: Callable[[list[Queued]], None],
    ) -> None:
        self._volume = volume
        self._bitmap = bitmap
        self._dirty = dirty
        self._marked = marked
        self._wanted: set[int] = set()
        self._waiting: list[Queued] = []
        self._wake = asyncio.Event()
        self._checked_at = time.monotonic()
        self.away = False
        """The store does not answer."""

    def want(self, regions: Iterable[int], event: Queued | None) -> None:
        """Mark these regions; then report the event, unless it was acked first.

        Args:
            regions: numbers that are not marked.
            event: its answer waits; None if nobody does.
        """
        self._wanted.update(regions)
        if event is not None and not self.away:
            self._waiting.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        # Also a bitmap without marks has to be there: one that is missing is one that was lost.
        self._wake.set()
        while True:
            if time.monotonic() - self._checked_at > CHECK_SECONDS:
                await self._check()
            try:
                async with asyncio.timeout(CLEAR_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                await self._clear()
            else:
                self._wake.clear()
                await self._mark()
            if self.away:
                await asyncio.sleep(RETRY_SECONDS)
                self._wanted = self._dirty.unmarked_pending()
                self._wake.set()

    async def _mark(self) -> None:
        wanted, self._wanted = self._wanted, set()
        waiting, self._waiting = self._waiting, []
        try:
            # Also with nothing wanted after a failure: it shows that the store is back.
            await self._bitmap.mark(wanted)
        except UnavailableError as exc:
            self._failed(exc)
            return
        if self.away:
            self.away = False
            log.info("dirty marks are stored again", extra={"volume": self._volume})
        self._dirty.marks_stored(wanted, time.monotonic())
        self._marked(waiting)

    async def _check(self) -> None:
        """Mark anew all that is dirty if the store has lost marks."""
        self._checked_at = time.monotonic()
        try:
            if self.away or await self._bitmap.is_whole():
                return
            log.warning("dirty marks were lost and are stored again", extra={"volume": self._volume})
            lost = self._dirty.marked | self._dirty.unmarked_pending()
            self._dirty.marks_unknown()
            await self._bitmap.delete()
        except UnavailableError as exc:
            self._failed(exc)
            return
        self._wanted |= lost
        self._wake.set()

    async def _clear(self) -> None:
        regions = self._dirty.take_clearable(time.monotonic())
        if regions:
            try:
                await self._bitmap.clear(regions)
            except UnavailableError as exc:
                self._failed(exc)

    def _failed(self, exc: UnavailableError) -> None:
        """Nothing is known of the store; whoever waits is answered by Kafka's ack."""
        self._dirty.marks_unknown()
        if not self.away:
            self.away = True
            log.warning(
                "dirty marks cannot be stored; writes to clean regions wait for Kafka",
                extra={"volume": self._volume, "error": exc.message},
            )
