"""The projector of one volume: applies its journal behind the history window, up to the floor that points and pins allow.

Two folds of the same journal run at different places. The *head* fold (in the follower) reads along with the journal and feeds
the index and the timeline of (floor, head]. The *applied* fold (in the applier, kept in the position) trails it; both judge alike, so
what is applied is what was shown. In between lies the recoverable past.

The timeline's floor rises in memory before the intent is recorded: a point is refused from the moment it may go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from rephub.consumers.diskbox.applier import Applier
from rephub.consumers.diskbox.files import is_away, is_full
from rephub.consumers.diskbox.follower import Follower
from rephub.consumers.diskbox.journal_source import JournalSource
from rephub.consumers.diskbox.sections import Sections
from rephub.consumers.diskbox.signals import Signal
from rephub.core.codec.runs import Item, between, data_bytes, decode_all, last_offset
from rephub.core.errors import IntegrityError, NotFoundError, RephubError, StorageError, UnavailableError
from rephub.core.journal.port import JournalReader
from rephub.projections.head import Head
from rephub.projections.index import Index
from rephub.projections.journal_fold import JournalFold
from rephub.projections.timeline import Timeline
from rephub.projections.window import History, floor_target, forced_floor, is_cut

log = logging.getLogger(__name__)

APPLY_BYTES = 16 << 20
"""Applied between two fdatasyncs: long enough to coalesce, short enough to hold in memory for 27 volumes."""
FETCH_BYTES = 4 << 20
"""Of the journal, decoded in one go: some 6 ms with writes of 4 KiB, in which nobody's read is answered."""
PACE_SECONDS = 0.5
"""Between two rises of the floor outside a gap: each costs a few fsyncs."""
IDLE_SECONDS = 5.0
"""Nothing to apply: whatever changes that wakes the applier, this only bounds the wait."""
RETRY_SECONDS = 1.0
"""Between two tries while the disk is full, or Kafka or the NBD server is away."""
REOPEN_SECONDS = 10.0
"""Between two tries after any other I/O error."""
CATCH_UP_SECONDS = 30.0
"""How long whoever asks for a point waits for the follower to reach the head."""


GiveWay = Callable[[int], Awaitable[None]]


class Projector:
    """Follows one journal and applies it.

    Args:
        volume: name.
        applier: recovery volume and position.
        reader: of the journal, started.
        history: what is asked for.
        on_stopped: called with (offset, error) when the volume stops at an event or on its disk.
        on_resumed: called with the offset from which it goes on.
        reopen: opens the recovery volume anew after an I/O error.
        pace_seconds: see PACE_SECONDS.
    """

    def __init__(
        self,
        volume: str,
        applier: Applier,
        reader: JournalReader,
        history: History,
        *,
        on_stopped: Callable[[int, RephubError], None],
        on_resumed: Callable[[int], None],
        reopen: Callable[[], Awaitable[None]],
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self.volume = volume
        self.applier = applier
        self.history = history
        self.cut = False
        """The byte limit has taken points younger than asked, and nobody has said so yet."""
        self.reader = reader
        self.source = JournalSource(reader)
        self.changed = Signal()
        self.pins: dict[str, int] = {}
        self._yielding: dict[str, GiveWay] = {}
        self.divergence: IntegrityError | None = None
        """The journal is not the one that the position is of: only a new start helps."""
        self.storage: StorageError | None = None
        """The disk refuses; it is tried again."""
        self._on_stopped, self._on_resumed, self._reopen = on_stopped, on_resumed, reopen
        self._pace_seconds = pace_seconds
        self._frozen_at: int | None = None
        self._rate = 0
        """Bytes a second that are applied at most while `_frozen_at` is set; 0: no limit."""
        self._room_bytes = applier.position.applied.size_bytes
        """The recovery volume can grow to this size."""
        self._no_room = False
        self.follower = Follower(
            volume,
            Head(applier.position.applied, applier.intent_offset),
            Sections(applier.directory),
            self.source,
            self.changed,
            applies_at_once=lambda: self.storage is None and self._frozen_at is None,
            on_stopped=self._stop,
            on_resumed=on_resumed,
        )
        self._recent = self.follower.recent

    @property
    def poison(self) -> IntegrityError | None:
        """An event stopped the volume; what follows is looked at for a full sync only."""
        return self.follower.poison

    @property
    def stopped(self) -> RephubError | None:
        """Why the volume stands still, if it does."""
        return self.divergence or self.poison or self.storage

    @property
    def head_offset(self) -> int:
        """The last record that was read."""
        return self.follower.head.offset

    @property
    def head(self) -> JournalFold:
        """The fold at the head."""
        return self.follower.head.fold

    @property
    def timeline(self) -> Timeline:
        """Of (floor, head]."""
        return self.follower.head.timeline

    @property
    def index(self) -> Index:
        """Of (applied, head]."""
        return self.follower.head.index

    @property
    def floor_offset(self) -> int:
        """No earlier point can be opened."""
        return self.timeline.floor_offset

    async def run(self) -> None:
        """Follow and apply until cancelled, or until the journal diverged."""
        try:
            await self._check_position()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.follower.run(self.reader), name=f"follow {self.volume}")
                group.create_task(self._apply_for_ever(), name=f"apply {self.volume}")
        except* (IntegrityError, NotFoundError) as group_error:
            self._diverge(group_error.exceptions[0])

    def _diverge(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        message = getattr(error, "message", str(error))
        self.divergence = IntegrityError(
            f"the journal of {self.volume} diverged: {message}", hint=f"rephub resync {self.volume}"
        )
        self._stop(self.applier.applied_offset, self.divergence)

    def _stop(self, journal_offset: int, error: RephubError) -> None:
        log.error("volume=%s stopped_at=%d error=%s", self.volume, journal_offset, error.message)
        self._on_stopped(journal_offset, error)
        self.changed.notify()

    async def _check_position(self) -> None:
        """Compare the record at the applied offset with the one that was applied."""
        state = self.applier.position.applied
        while True:
            try:
                first_offset, next_offset = await self.reader.first_offset(), await self.reader.next_offset()
                intent_offset = self.applier.intent_offset
                if next_offset <= intent_offset:
                    raise IntegrityError(f"it ends at {next_offset}, before the intent {intent_offset}")
                if first_offset > state.last_offset + 1:
                    raise IntegrityError(
                        f"it starts at {first_offset}, after the applied offset {state.last_offset}"
                    )
                if first_offset <= state.last_offset and not await self.source.holds(state):
                    raise IntegrityError(
                        f"the record at the applied offset {state.last_offset} is another one"
                    )
            except UnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _apply_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        last_rise = -self._pace_seconds
        while True:
            left = last_rise + self._pace_seconds - loop.time()
            if left > 0 and not self.follower.is_in_gap and self.applier.applied_offset >= self.floor_offset:
                await self.changed.wait(left)
                continue
            try:
                moved = await self._advance()
            except UnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except StorageError as exc:
                await self._wait_for_storage(exc)
                continue
            if moved:
                last_rise = loop.time()
            else:
                await self.changed.wait(IDLE_SECONDS)

    async def _advance(self) -> bool:
        """Let the floor rise as far as it may and apply up to there; whether anything was done."""
        await self._check_room()
        await self._pass_pins()
        target = self._target()
        # Read before the floor rises: a record that cannot be read any more is to cost no point below it.
        ahead = await self._items_due(target)
        if self.follower.rots(ahead):
            return True
        # Points may have been pinned meanwhile.
        target = min(target, self._target())
        if self._frozen_at is None and is_cut(self.timeline, self.history, target):
            self.cut = True
        self.timeline.drop(target)
        floor = self.floor_offset
        if floor > self.applier.intent_offset:
            await self.applier.set_intent(floor)
        moved = False
        while self.applier.applied_offset < self.applier.intent_offset:
            if self.applier.applied_offset >= self.head_offset or self._is_held_by_rot():
                await self.changed.wait(RETRY_SECONDS)
                continue
            last = min(self.applier.intent_offset, self.head_offset)
            first = self.applier.applied_offset + 1
            items = between(ahead, first, last) or await self._items_due(last)
            if self.follower.rots(items):
                return True
            if not items:
                raise RuntimeError(f"{self.volume}: nothing to apply after {self.applier.applied_offset}")
            ahead = await self._apply(items, last)
            self.follower.drop(self.applier.applied_offset)
            self._storage_is_back()
            self._forget_recent()
            self.changed.notify()
            moved = True
            if self._frozen_at is not None and self._rate:
                await asyncio.sleep(sum(map(data_bytes, items)) / self._rate)
        return moved

    async def _pass_pins(self) -> None:
        """Where the byte limit forces the floor past pins that can give way, have them do so."""
        if self._frozen_at is not None or not self._yielding:
            return
        firm = [point for holder, point in self.pins.items() if holder not in self._yielding]
        forced = forced_floor(self.timeline, self.history, firm)
        for holder, give_way in list(self._yielding.items()):
            if self.pins.get(holder, forced) < forced:
                await give_way(forced)

    async def _apply(self, items: list[Item], last: int) -> list[Item]:
        """Apply items; what follows them up to `last` is read meanwhile. Returns what was read, if anything."""
        following = None
        if last_offset(items[-1]) < last and self._recent.is_empty:
            following = asyncio.create_task(self._fetched(last_offset(items[-1]) + 1, last))
        try:
            await self.applier.apply(items)
            with contextlib.suppress(UnavailableError, IntegrityError):
                return await following if following is not None else []
            return []  # the next try says what is wrong
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait([following])
                if not following.cancelled():
                    following.exception()  # seen

    def _target(self) -> int:
        """Where the floor may rise to now."""
        if self._frozen_at is None:
            target = floor_target(self.timeline, self.history, self.pins.values())
        else:
            target = max(min([self._frozen_at, *self.pins.values()]), self.floor_offset)
            if self._is_held_by_rot():
                target = self.floor_offset
        return min(target, self.head_offset)

    def _is_held_by_rot(self) -> bool:
        """The point that is to be applied exactly cannot be reached: an event below it cannot be read any more."""
        return self._frozen_at is not None and self.timeline.is_spoiled(self._frozen_at)

    async def _check_room(self) -> None:
        """The volume has grown: say that its target is too small now, and not when the growth is applied some day."""
        wanted = self.head.state.size_bytes
        if wanted <= self._room_bytes:
            return
        try:
            await self.applier.recovery.check_room(wanted)
        except StorageError:
            self._no_room = True
            raise
        self._room_bytes = wanted
        if self._no_room:
            self._no_room = False
            self._storage_is_back()
            self.changed.notify()

    def _storage_is_back(self) -> None:
        if self.storage is not None:
            error, self.storage = self.storage, None
            log.info("volume=%s storage=back applied=%d", self.volume, self.applier.applied_offset)
            if not is_full(error):
                self._on_resumed(self.applier.applied_offset)

    async def _items_due(self, last: int) -> list[Item]:
        """What is to be applied next, up to offset `last` and about APPLY_BYTES."""
        first = self.applier.applied_offset + 1
        self._forget_recent()
        return self._recent.between(first, last, APPLY_BYTES) or await self._fetched(first, last)

    async def _fetched(self, first: int, last: int) -> list[Item]:
        items: list[Item] = []
        total = 0
        while first <= last and total < APPLY_BYTES:
            records = await self.source.records(first, FETCH_BYTES)
            items += decode_all(records.upto(last))
            total += len(records.buffer)
            first = records.last_offset + 1
        return items

    def _forget_recent(self) -> None:
        self._recent.drop(self.applier.applied_offset)
        if not self.follower.is_in_gap and self.applier.applied_offset >= self.floor_offset:
            self._recent.clear()

    async def _wait_for_storage(self, error: StorageError) -> None:
        """After a failed write or sync nothing is known: open anew, apply again from the applied offset."""
        if self.storage is None:
            self.storage = error
            if is_full(error):
                log.error("volume=%s paused error=%s", self.volume, error.message)
            else:
                self._stop(self.applier.applied_offset, error)
        self._recent.clear()
        self.changed.notify()
        await asyncio.sleep(RETRY_SECONDS if is_full(error) or is_away(error) else REOPEN_SECONDS)
        try:
            await self._reopen()
        except StorageError as exc:
            log.warning("volume=%s reopen_failed error=%s", self.volume, exc.message)

    def pin(self, holder: str, journal_offset: int, give_way: GiveWay | None = None) -> None:
        """Hold the floor at or below a point until `unpin`; the caller has just resolved the point.

        Args:
            holder: its name; one pin each.
            journal_offset: the point.
            give_way: called with an offset when the history's byte limit forces the floor up to there, before anything
                beyond the point is applied. It pins a higher point, or sees to it that the pin goes. None: the pin holds
                whatever comes.
        """
        self.pins[holder] = journal_offset
        if give_way is not None:
            self._yielding[holder] = give_way

    def unpin(self, holder: str) -> None:
        """Let go; no error if there is no such pin."""
        self._yielding.pop(holder, None)
        if self.pins.pop(holder, None) is not None:
            self.changed.notify()

    async def catch_up(self, timeout_seconds: float = CATCH_UP_SECONDS) -> None:
        """Wait until everything that is in the journal now was read.

        Raises:
            DeadlineError: it was not in time.
            UnavailableError: the journal cannot be asked.
            IntegrityError: the journal diverged.
        """
        next_offset = await self.reader.next_offset()
        await self.changed.wait_for(
            lambda: self.divergence is not None or self.head_offset >= next_offset - 1,
            timeout_seconds,
            f"reading the journal of {self.volume} up to offset {next_offset - 1}",
        )
        if self.divergence is not None:
            raise self.divergence

    def hold_at(self, journal_offset: int, bytes_per_second: int = 0) -> None:
        """Let the floor rise to the point and nowhere else until `thaw`, as far as pins let it.

        Args:
            journal_offset: the point.
            bytes_per_second: applied at most; 0: as fast as it goes.
        """
        self._frozen_at, self._rate = journal_offset, bytes_per_second
        self.changed.notify()

    async def apply_exactly(
        self, journal_offset: int, timeout_seconds: float, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Let the floor rise to the point and nowhere else from now on; wait until it is applied, or `given_up`.

        Raises:
            DeadlineError: not in time; it goes on.
            StorageError: the disk refuses; it goes on when it can.
            IntegrityError: an event that is to be applied cannot be read any more.
        """
        self.hold_at(journal_offset)
        await self.changed.wait_for(
            lambda: (
                self.applier.applied_offset >= journal_offset
                or self.storage is not None
                or self._is_held_by_rot()
                or given_up()
            ),
            timeout_seconds,
            f"applying {self.volume} up to offset {journal_offset}",
        )
        if self._is_held_by_rot():
            raise IntegrityError(
                f"{self.volume} cannot be applied up to offset {journal_offset}: an event below cannot be read any more",
                hint=f"rephub resync {self.volume}",
            )
        if self.applier.applied_offset < journal_offset and self.storage is not None:
            raise self.storage

    def freeze(self) -> None:
        """Apply nothing beyond the intent until `thaw`; reading goes on."""
        self._frozen_at = self.applier.intent_offset
        self._recent.clear()
        self.changed.notify()

    async def stand_still(self, timeout_seconds: float) -> int:
        """Freeze, and wait until the recovery volume is exactly a point.

        Returns:
            That point: applied, intent and floor.

        Raises:
            DeadlineError: not in time.
            StorageError: the disk refuses.
            IntegrityError: the journal diverged.
        """
        self.freeze()
        applier = self.applier
        await self.changed.wait_for(
            lambda: (
                applier.applied_offset >= max(applier.intent_offset, self.floor_offset)
                or self.storage is not None
                or self.divergence is not None
            ),
            timeout_seconds,
            f"applying {self.volume} up to its intent",
        )
        if (error := self.storage or self.divergence) is not None:
            raise error
        return applier.applied_offset

    def thaw(self) -> None:
        """Undo `apply_exactly` or `freeze`: trail the head again."""
        self._frozen_at = None
        self.changed.notify()
