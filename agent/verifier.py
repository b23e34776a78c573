"""The control process's half of a comparison: one task per volume that does the round which the catalogue is at.

Beside the keeper and not in it: a round takes as long as the disk is large, and the keeper has to see to capture meanwhile. Before
the keeper lets go of an attachment it stops this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from rephub.agent.digest import HELD_READS_MAX
from rephub.agent.extents import Extent, split
from rephub.agent.hold import Hold
from rephub.agent.parts import Parts
from rephub.agent.sync import CHUNK_BYTES as READ_BYTES
from rephub.core.digests import CHUNK_BYTES
from rephub.core.errors import RephubError
from rephub.projections.entities import Comparison
from rephub.schemas import events as ev

EXACT_TRIES_MAX = 4
"""Times that a chunk is looked at exactly before the bytes that are written meanwhile are left out."""

STEP_SECONDS = 30.0
"""For steps that read at most HELD_READS_MAX MiB and wait for one ack."""

log = logging.getLogger(__name__)


class Verifier:
    """Comparisons of one volume.

    Args:
        volume: its name.
        parts: of the process.
    """

    def __init__(self, volume: str, parts: Parts) -> None:
        self._volume = volume
        self._parts = parts
        self._task: asyncio.Task[None] | None = None
        self._at: tuple[str, int] = ("", 0)
        """Run and round that the task is, or was, about."""

    def look(self, hold: Hold | None) -> None:
        """Begin or end the task as the catalogue wants it.

        Args:
            hold: the attachment; None while there is none, or while it is being synced.
        """
        comparison = self._parts.catalogue.comparison_of(self._volume)
        due = (
            comparison
            if comparison is not None
            and comparison.state == "digesting"
            and hold is not None
            and hold.held.epoch == comparison.epoch
            else None
        )
        at = (due.name, due.round) if due is not None else ("", 0)
        if self._task is not None and not self._task.done():
            if at != self._at:
                self._task.cancel()
            return
        if due is not None and hold is not None and at != self._at:
            self._at = at
            self._task = asyncio.create_task(self._round(hold, due))

    async def stop(self) -> None:
        """End the task; returns when it has let go of QEMU and worker."""
        task, self._task = self._task, None
        self._at = ("", 0)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _round(self, hold: Hold, comparison: Comparison) -> None:
        run, round_ = comparison.name, comparison.round
        try:
            counts = await self._digested(hold, comparison)
        except RephubError as exc:
            log.warning("not verified", extra={"volume": self._volume, "error": exc.message})
            self._emit(ev.VerifyFailed, comparison, verify=run, error=exc.to_json())
        except Exception as exc:
            log.exception("not verified", extra={"volume": self._volume})
            error = RephubError(
                f"verify of volume {self._volume} failed: {exc!r}", hint="see the agent's log"
            )
            self._emit(ev.VerifyFailed, comparison, verify=run, error=error.to_json())
        else:
            self._emit(
                ev.ExtentsDigested, comparison, run=run, round=round_, epoch=comparison.epoch, **counts
            )

    async def _digested(self, hold: Hold, comparison: Comparison) -> dict[str, Any]:
        """Do the round; returns the counts that its event carries."""
        seconds = max(STEP_SECONDS, comparison.deadline_at / 1e6 - time.time())
        extents = [(start, length) for start, length in comparison.extents]
        source = await hold.open_source()
        try:
            at = source.address
            await hold.compare(
                "begin", STEP_SECONDS, run=comparison.name, round_=comparison.round, export=source.export,
                server={"path": at.path} if at.path else {"host": at.host, "port": at.port},
                rate_bytes=comparison.rate_bytes,
            )  # fmt: skip
            copied = 0
            if comparison.copies:
                copied = (await hold.compare("copy", seconds, extents=extents))["copied_bytes"]
            if comparison.exact:
                counts = await self._exactly(hold, extents)
            else:
                counts = await hold.compare("digest", seconds, extents=extents)
            await hold.compare("end", STEP_SECONDS)
            return counts | {"copied_bytes": copied}
        finally:
            with contextlib.suppress(RephubError):
                # Gone or going: then there is nothing to stop.
                await hold.compare("stop", STEP_SECONDS)
            with contextlib.suppress(RephubError):
                await hold.tidy()

    async def _exactly(self, hold: Hold, extents: list[Extent]) -> dict[str, Any]:
        """Digest extents while no write is on its way; what is written all the time in ever smaller parts."""
        left = deque((piece, 1) for piece in _pieces(extents, READ_BYTES))
        counts: dict[str, Any] = {"last_offset": -1, "digested_bytes": 0, "skipped_bytes": 0}
        while left:
            tries = left[0][1]
            batch: list[Extent] = []
            while left and left[0][1] == tries and len(batch) < HELD_READS_MAX:
                batch.append(left.popleft()[0])
            await hold.compare("hold", STEP_SECONDS, extents=batch)
            await hold.settle()
            counts = await hold.compare("release", STEP_SECONDS, final=tries >= EXACT_TRIES_MAX)
            left.extend((piece, tries + 1) for piece in _pieces(counts.pop("again"), CHUNK_BYTES))
        return counts

    def _emit(self, event_type: type[ev.Record], comparison: Comparison, **fields: Any) -> None:
        failed = event_type is ev.VerifyFailed
        self._parts.announcer.emit(
            event_type,
            comparison.name if failed else f"{comparison.name}/{comparison.round}",
            cause_id=comparison.event_id,
            command_id=comparison.command_id,
            volume=self._volume,
            **fields,
        )


def _pieces(extents: Iterable[Extent], bytes_max: int) -> Iterator[Extent]:
    for start, length in extents:
        yield from split(start, length, bytes_max)
