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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from rephub.agent.digest import HELD_READS_MAX
from rephub.agent.extents import Extent, split
from rephub.agent.hold import Hold
from rephub.agent.parts import Parts
from rephub.agent.sync import CHUNK_BYTES as READ_BYTES
from rephub.core.digests import CHUNK_BYTES
from rephub.core.errors import RephubError, UnavailableError
from rephub.projections.entities import Comparison
from rephub.schemas import events as ev

EXACT_TRIES_MAX = 4
"""Times that a chunk is looked at exactly before the bytes that are written meanwhile are left out."""

STEP_SECONDS = 30.0
"""For steps that read at most HELD_READS_MAX MiB and wait for one ack."""

SYNC_SECONDS_MAX = 30 * 24 * 3600.0
"""A first copy has no deadline; a call has to have one."""

NOTHING = ("", 0, "")

log = logging.getLogger(__name__)


class Verifier:
    """Comparisons of one volume.

    Args:
        volume: its name.
        parts: of the process.
        synced: called with epoch and offset of `SyncCompleted` where the comparison was the volume's sync.
        wake: called when a task ended: `look` again.
    """

    def __init__(
        self, volume: str, parts: Parts, synced: Callable[[int, int], None], wake: Callable[[], None]
    ) -> None:
        self._volume = volume
        self._parts = parts
        self._synced = synced
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._at = NOTHING
        """Run, round and state that the task is, or was, about."""

    def look(self, hold: Hold | None) -> None:
        """Begin or end the task as the catalogue wants it.

        Args:
            hold: the attachment; None while there is none, or while the keeper is busy with it.
        """
        comparison = self._parts.catalogue.comparison_of(self._volume)
        due = (
            comparison
            if comparison is not None
            and comparison.state in ("digesting", "copying")
            and hold is not None
            and hold.held.epoch == comparison.epoch
            else None
        )
        at = (due.name, due.round, due.state) if due is not None else NOTHING
        if self._task is not None and not self._task.done():
            if at != self._at:
                self._at = NOTHING
                self._task.cancel()
            return
        if due is not None and hold is not None and at != self._at:
            self._at = at
            self._task = asyncio.create_task(self._round(hold, due))
            self._task.add_done_callback(lambda _: self._wake())

    async def stop(self) -> None:
        """End the task; returns when it has let go of QEMU and worker."""
        task, self._task = self._task, None
        self._at = NOTHING
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _round(self, hold: Hold, comparison: Comparison) -> None:
        run, round_, copying = comparison.name, comparison.round, comparison.state == "copying"
        try:
            counts = await (self._copied if copying else self._digested)(hold, comparison)
        except RephubError as exc:
            log.warning("not verified", extra={"volume": self._volume, "error": exc.message})
            self._failed(comparison, round_, exc)
        except Exception as exc:
            log.exception("not verified", extra={"volume": self._volume})
            error = RephubError(
                f"verify of volume {self._volume} failed: {exc!r}", hint="see the agent's log"
            )
            self._failed(comparison, round_, error)
        else:
            if copying:
                self._synced(comparison.epoch, counts["offset"])
            else:
                fields = {"run": run, "round": round_, "epoch": comparison.epoch} | counts
                self._emit(ev.ExtentsDigested, comparison, f"{run}/{round_}", **fields)

    def _failed(self, comparison: Comparison, round_: int, error: RephubError) -> None:
        # A sync goes on after it, and may fail again; a verify ends once, whoever says so.
        subject = f"{comparison.name}/{round_}" if comparison.sync else comparison.name
        self._emit(ev.VerifyFailed, comparison, subject, verify=comparison.name, error=error.to_json())

    async def _digested(self, hold: Hold, comparison: Comparison) -> dict[str, Any]:
        """Do the round; returns the counts that its event carries."""
        left = SYNC_SECONDS_MAX if comparison.sync else comparison.deadline_at / 1e6 - time.time()
        seconds = max(STEP_SECONDS, left)
        extents = [(start, length) for start, length in comparison.extents]
        async with self._begun(hold, comparison):
            copied = 0
            if comparison.copies:
                copied = (await hold.compare("copy", seconds, extents=extents))["copied_bytes"]
            if comparison.exact:
                counts = await self._exactly(hold, extents)
            else:
                counts = await hold.compare("digest", seconds, extents=extents)
            return counts | {"copied_bytes": copied}

    async def _copied(self, hold: Hold, comparison: Comparison) -> dict[str, Any]:
        """End a sync that compares: copy what differs; `offset` is its end's."""
        extents = [(start, length) for start, length in comparison.extents]
        async with self._begun(hold, comparison):
            return await hold.compare("finish", SYNC_SECONDS_MAX, extents=extents)

    @contextlib.asynccontextmanager
    async def _begun(self, hold: Hold, comparison: Comparison) -> AsyncIterator[None]:
        """The worker reads the volume; a sync has its source open until it is over."""
        source = hold.source if comparison.sync else await hold.open_source()
        try:
            if source is None:
                raise UnavailableError(f"volume {self._volume} cannot be read any more")
            at = source.address
            await hold.compare(
                "begin", STEP_SECONDS, run=comparison.name, round_=comparison.round, export=source.export,
                server={"path": at.path} if at.path else {"host": at.host, "port": at.port},
                rate_bytes=comparison.rate_bytes, sync=comparison.sync,
            )  # fmt: skip
            yield
            await hold.compare("end", STEP_SECONDS)
        finally:
            with contextlib.suppress(RephubError):
                # Gone or going: then there is nothing to stop.
                await hold.compare("stop", STEP_SECONDS)
            if not comparison.sync:
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

    def _emit(self, event_type: type[ev.Record], comparison: Comparison, subject: str, **fields: Any) -> None:
        self._parts.announcer.emit(
            event_type,
            subject,
            cause_id=comparison.event_id,
            command_id=comparison.command_id,
            volume=self._volume,
            **fields,
        )


def _pieces(extents: Iterable[Extent], bytes_max: int) -> Iterator[Extent]:
    for start, length in extents:
        yield from split(start, length, bytes_max)
