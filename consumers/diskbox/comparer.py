"""Compares what the journal's Digest events say of a protected volume with the volume as it is here, at their very offsets.

A digest is taken note of in the loop turn in which it is read, and pins its offset until it was compared: so the view at
that offset can be read at leisure, while the projector goes on. Digests of comparisons that nobody asked for cost nothing.
Hashing happens in threads, one digest at a time for each volume and a few for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from rephub.consumers.diskbox.projector import Projector
from rephub.consumers.diskbox.view import HOLE_AND_ZERO, View
from rephub.core.digests import DIGEST_BYTES, chunks, differing_chunks
from rephub.core.errors import RephubError, RequestError, StorageError, UnavailableError
from rephub.projections.extent_lists import Extent, bounded, joined, total
from rephub.schemas.journal import Digest

READ_BYTES = 1 << 20
"""Read and hashed at once; a whole number of chunks of each digest."""

BACKLOG_MAX = 65_536
"""Digests that wait, of 1 MiB each at most times: 64 GiB, some 30 MB of memory. They hold the floor meanwhile."""

BOX_COMPARES_MAX = 2
"""Hashing at once in a diskbox: the projectors of its other volumes keep their share of disk and cores."""

STALL_SECONDS = 60.0
"""Nothing of a round was compared for so long: what is missing does not come."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Round:
    """One round of a comparison, as far as it got here."""

    round: int
    compared_bytes: int = 0
    compared_offset: int = -1
    differing: list[Extent] = field(default_factory=list)
    error: RephubError | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a round found."""

    offset: int
    compared_bytes: int
    differing_bytes: int
    differing: list[Extent]


class Comparer:
    """Comparisons of one volume.

    Args:
        projector: of the volume; it tells of digests from here on.
        gate: of the diskbox, of BOX_COMPARES_MAX.
    """

    def __init__(self, projector: Projector, gate: asyncio.Semaphore) -> None:
        self._projector = projector
        self._gate = gate
        self._rounds: dict[str, _Round] = {}
        """By run; those that are under way."""
        self._backlog: deque[tuple[int, Digest]] = deque()
        projector.follower.on_digest = self._take

    def begin(self, run: str) -> None:
        """Take note of the run's digests from now on; no error if it is so already."""
        self._rounds.setdefault(run, _Round(0))

    def end(self, run: str) -> None:
        """Forget the run; no error if there is none."""
        if self._rounds.pop(run, None) is not None:
            self._backlog = deque(item for item in self._backlog if item[1].run != run)
            self._pin()
            self._projector.changed.notify()

    def knows(self, run: str) -> bool:
        """Whether digests of the run are taken note of."""
        return run in self._rounds

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            if not self._backlog:
                await self._projector.changed.wait()
                continue
            journal_offset, record = self._backlog[0]
            found = self._rounds.get(record.run)
            if found is not None and found.round == record.round and found.error is None:
                await self._compare(found, journal_offset, record)
            if self._backlog and self._backlog[0][1] is record:
                self._backlog.popleft()
            self._pin()
            self._projector.changed.notify()
            await asyncio.sleep(0)

    async def result(self, run: str, round_: int, last_offset: int, digested_bytes: int) -> Result:
        """Wait until a round is compared.

        Args:
            run: the comparison.
            round_: of it.
            last_offset: of its last digest.
            digested_bytes: that its digests cover.

        Raises:
            UnavailableError: digests of it were read by a life of this diskbox before, or nothing goes on.
            StorageError: the recovery volume, or the journal, cannot be read.
            IntegrityError: the volume stopped.
        """
        loop = asyncio.get_running_loop()
        before, stalled_at = (-1, -1), 0.0
        while True:
            found = self._round(run, round_)
            if self._projector.head_offset >= last_offset and not self._waiting(run, round_):
                break
            now = (self._projector.head_offset, found.compared_bytes)
            if now != before:
                before, stalled_at = now, loop.time() + STALL_SECONDS
            elif loop.time() > stalled_at:
                raise UnavailableError(
                    f"comparing volume {self._projector.volume} does not go on",
                    hint="is the journal, or the recovery volume, out of reach? rephub status",
                )
            await self._projector.changed.wait(1.0)
        if found.compared_bytes != digested_bytes:
            raise UnavailableError(
                f"the diskbox was restarted while volume {self._projector.volume} was compared",
                hint="verify again",
            )
        differing = joined(found.differing)
        offset = max(last_offset, found.compared_offset)
        return Result(offset, found.compared_bytes, total(differing), bounded(differing))

    def _round(self, run: str, round_: int) -> _Round:
        """The round as far as it got; an empty one before its first digest. Raises: as `result`."""
        found = self._rounds.get(run)
        if found is None:
            raise UnavailableError(
                f"comparison {run} of volume {self._projector.volume} is over", hint="verify again"
            )
        if self._projector.stopped is not None:
            raise self._projector.stopped
        if found.round != round_:
            return _Round(round_)
        if found.error is not None:
            raise found.error
        return found

    def _waiting(self, run: str, round_: int) -> bool:
        return any(record.run == run and record.round == round_ for _, record in self._backlog)

    def _take(self, journal_offset: int, record: Digest) -> None:
        """A digest was read; in this loop turn nothing above its offset is applied."""
        found = self._rounds.get(record.run)
        if found is None or record.round < found.round or self._projector.floor_offset > journal_offset:
            # Of no interest; or read again after a restart, when it may be applied in part what comes after it.
            return
        if record.round > found.round:
            found = self._rounds[record.run] = _Round(record.round)
        if len(self._backlog) >= BACKLOG_MAX:
            found.error = UnavailableError(
                f"volume {self._projector.volume} is compared more slowly than it is read",
                hint="verify again with --rate, below what the recovery volume's disk reads",
            )
            return
        self._backlog.append((journal_offset, record))
        self._pin()
        self._projector.changed.notify()

    def _pin(self) -> None:
        if self._backlog:
            self._projector.pin("digests", self._backlog[0][0])
        else:
            self._projector.unpin("digests")

    async def _compare(self, found: _Round, journal_offset: int, record: Digest) -> None:
        try:
            view = View(self._projector, journal_offset, None)
            async with self._gate:
                differing = await _differing(view, record)
        except RequestError as exc:
            stopped = self._projector.stopped
            found.error = stopped or StorageError(
                f"cannot read volume {self._projector.volume} at offset {journal_offset}: {exc.message}",
                hint="rephub status",
                errno=exc.errno,
            )
            log.warning("volume=%s not_compared=%s", self._projector.volume, exc.message)
            return
        found.differing += differing
        found.compared_bytes += record.length
        found.compared_offset = journal_offset


async def _differing(view: View, record: Digest) -> list[Extent]:
    """What of a digest's extent is otherwise in the view.

    Raises:
        RequestError: the view cannot be read.
    """
    start, end = record.start, record.start + record.length
    if not _is_sane(record, view.size_bytes):
        return [(start, record.length)]
    differing: list[Extent] = []
    while start < end:
        if not record.digests:
            # Zeroes: what is a hole here as well need not be read.
            for length, flags in await view.block_status(start, end - start):
                if flags != HOLE_AND_ZERO:
                    differing += await _read_and_compare(view, start, length, record)
                start += length
            continue
        # Cut where chunks are.
        length = min(end, (start // READ_BYTES + 1) * READ_BYTES) - start
        differing += await _read_and_compare(view, start, length, record)
        start += length
    return differing


async def _read_and_compare(view: View, start: int, length: int, record: Digest) -> list[Extent]:
    differing: list[Extent] = []
    for at, size in chunks(start, length, READ_BYTES):
        data = await view.read(at, size)
        first = at // record.chunk_bytes - record.start // record.chunk_bytes
        said = memoryview(record.digests)[first * DIGEST_BYTES :] if record.digests else b""
        differing += await asyncio.to_thread(differing_chunks, data, at, record.chunk_bytes, said)
    return differing


def _is_sane(record: Digest, size_bytes: int) -> bool:
    """Whether the digest can be of this volume; one that cannot be is a difference."""
    end, chunk_bytes = record.start + record.length, record.chunk_bytes
    if (
        record.start < 0
        or record.length <= 0
        or end > size_bytes
        or chunk_bytes <= 0
        or READ_BYTES % chunk_bytes
    ):
        return False
    count = (end - 1) // chunk_bytes - record.start // chunk_bytes + 1
    return len(record.digests) in (0, count * DIGEST_BYTES)
