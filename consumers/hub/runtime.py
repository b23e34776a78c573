"""What the hub does with the log: folds events, answers commands, writes what is due, keeps a snapshot.

All decisions are in `projections/decisions.py`; Faust (`app.py`) brings records here. One lock: a decision is made
on the catalogue at the head of the hub's own writes, and nothing is decided until they are folded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from rephub.consumers.hub import snapshot
from rephub.core.control.ids import command_id, event_id
from rephub.core.control.port import ControlLog
from rephub.core.errors import (
    ConflictError,
    FencedError,
    IndeterminateError,
    IntegrityError,
    RephubError,
    StorageError,
    UnavailableError,
)
from rephub.core.journal.port import JournalAdmin
from rephub.core.names import EVENTS_TOPIC
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import make
from rephub.projections.decisions import decide, pending
from rephub.projections.entities import DiskboxRequest
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

TICK_SECONDS = 0.5
"""How often deadlines are looked at when no event comes."""

FOLD_SECONDS = 1.0
"""How long an own write may take to come back through Faust before it is read directly: after a long absence Faust
first works through what was folded at the start already."""

WRITE_SECONDS_MAX = 60.0
"""How long one call of the log is tried; a broker restart fits in."""

RETRY_SECONDS = 0.5

CATCH_UP_RECORDS = 20_000
"""Read and folded at once: a few MiB, and no more live objects than the garbage collector likes to look at."""

SNAPSHOT_SECONDS = 0.5
"""Longest age of the snapshot: `status` reads it when the hub is down."""

REACTION_ROUNDS_MAX = 1000
"""Rounds of reactions without a pause; more would mean that two reactions cause each other for ever."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


class Hub:
    """The hub without its transport.

    Args:
        hub_id: its id.
        directory: for the snapshot.
        control: the log, started by `start`.
        journals: makes and deletes journals.
        clock: microseconds since the Unix epoch.
        silent: diskboxes that do not answer now.
        gone: those that have not answered for so many seconds, see `liveness.py`.
        lost_seconds: a diskbox that is silent for so long is lost; 0: never by itself.
    """

    def __init__(
        self,
        hub_id: str,
        directory: Path,
        control: ControlLog,
        journals: JournalAdmin,
        clock: Callable[[], int] = now_us,
        silent: Callable[[], Collection[str]] = frozenset,
        gone: Callable[[float], Mapping[str, str]] = lambda _seconds: {},
        lost_seconds: float = 0.0,
    ) -> None:
        self.hub_id = hub_id
        self.catalogue = Catalogue()
        self.commands = 0
        """Commands answered since the start."""
        self._directory = directory
        self._control = control
        self._journals = journals
        self._clock = clock
        self._silent = silent
        self._gone, self._lost_seconds = gone, lost_seconds
        self._started_id = ""
        self._in_charge = False
        self._lock = asyncio.Lock()
        self._folded = asyncio.Event()
        self._saved_offset = -1
        self._snapshot_failed = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set to the error that ends this hub."""

    async def start(self) -> None:
        """Fold the log to its head and take over.

        Raises:
            UnavailableError: no broker answers in time, or a topic is missing.
            FencedError: another hub took over at the same moment.
        """
        await self._control.start()
        self.catalogue = snapshot.load(self._directory)
        if self.catalogue.next_offset > await self._control.next_offset(EVENTS_TOPIC):
            log.warning("the log is shorter than the snapshot, folding it anew")
            self.catalogue = Catalogue()
        await self._catch_up()
        cause = command_id()
        self._started_id = event_id(cause, "HubStarted", self.hub_id)
        event = ev.HubStarted(
            id=self._started_id,
            at=self._clock(),
            source=f"hub/{self.hub_id}",
            hub_epoch=self.catalogue.hub_epoch + 1,
            hub=self.hub_id,
        )
        offset = await self._append(event)
        await self._catch_up()
        self._check_in_charge()
        self._in_charge = True
        log.info("in charge", extra={"hub": self.hub_id, "hub_epoch": event.hub_epoch, "offset": offset})

    async def close(self) -> None:
        """Write the snapshot and let go of the log."""
        self._save_snapshot()
        await self._control.close()

    async def bring(self, offset: int, record: object) -> None:
        """Fold what Faust brings from the events topic.

        Args:
            offset: of the record. Below what was folded: it is skipped. Beyond the next one (a hub before this one
                has committed more than it had folded): what lies between is read first.
            record: an event; anything else was not ours to understand and is skipped.

        Raises:
            UnavailableError: what lies between cannot be read.
        """
        if offset > self.catalogue.next_offset:
            await self._catch_up()
        if offset < self.catalogue.next_offset:
            return
        if isinstance(record, ev.RECORDS):
            self._fold(offset, record)
        self.catalogue.skip_to(offset + 1)
        self._folded.set()

    def _fold(self, offset: int, event: ev.Record) -> None:
        if not self.catalogue.apply(offset, event):
            ignored = self.catalogue.ignored[-1:]
            if ignored and ignored[0]["offset"] == offset:
                log.info("event ignored", extra={"source": event.source} | ignored[0])
        if self._in_charge and self.catalogue.hub_event_id != self._started_id:
            self.fail(self._fenced())

    async def answer(self, command: cmd.Record) -> None:
        """Answer a command and do what follows; returns once all of it is folded.

        The decision sees every event that was in the log before: whoever saw one and sends a command because of it
        must not be told that it has not happened.

        Raises:
            FencedError: another hub is in charge; the command is its to answer.
            UnavailableError: the log cannot be read, or does not take or return the answer.
        """
        async with self._lock:
            await self._patiently(self._catch_up)
            self._check_in_charge()
            for event in decide(self.catalogue, command, self._clock(), self._silent()):
                await self._write(event)
                self.commands += 1
            await self._react()

    async def refresh(self, seconds: float) -> None:
        """Fold what is in the log by now, if that is done in time: who has seen an event finds it in the catalogue.

        Args:
            seconds: after which the catalogue is as good as it gets: the log is away, or a command is at work.
        """
        with contextlib.suppress(TimeoutError, UnavailableError, IndeterminateError):
            async with asyncio.timeout(seconds), self._lock:
                await self._catch_up()

    async def react_for_ever(self) -> None:
        """Write what is due, after each change and each tick; keep the snapshot. Runs until cancelled."""
        saved_at = 0.0
        while True:
            self._folded.clear()
            async with self._lock:
                self._check_in_charge()
                try:
                    await self._react()
                except UnavailableError as error:
                    log.warning("cannot go on at the moment", extra={"reason": error.message})
            if time.monotonic() - saved_at >= SNAPSHOT_SECONDS:
                self._save_snapshot()
                saved_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: it can swallow a cancellation in Python 3.11.
                async with asyncio.timeout(TICK_SECONDS):
                    await self._folded.wait()

    async def diskbox_failed(self, request: DiskboxRequest, error: RephubError) -> None:
        """Say that the provider brought no diskbox; nothing if it announced itself meanwhile.

        Raises:
            FencedError, UnavailableError: as `answer`.
        """
        async with self._lock:
            self._check_in_charge()
            if self.catalogue.diskbox_requests.get(request.name) != request:
                return
            event = make(
                self.catalogue,
                ev.DiskboxFailed,
                self._clock(),
                request.event_id,
                request.name,
                command_id=request.command_id or None,
                diskbox=request.name,
                error=error.to_json(),
            )
            await self._write(event)

    def fail(self, error: BaseException) -> None:
        """End this hub; the first reason counts."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def _fenced(self) -> FencedError:
        return FencedError(
            f"hub {self.catalogue.hub} is in charge, with epoch {self.catalogue.hub_epoch}",
            hint="run one hub for each Kafka",
        )

    def _check_in_charge(self) -> None:
        if self.catalogue.hub_event_id != self._started_id:
            raise self._fenced()

    async def _react(self) -> None:
        for _ in range(REACTION_ROUNDS_MAX):
            gone = self._gone(self._lost_seconds) if self._lost_seconds else {}
            due = pending(self.catalogue, self._clock(), self._silent(), gone, self._lost_seconds)
            if not due:
                return
            for event in due:
                await self._write(await self._prepared(event))
        raise IntegrityError(f"reactions do not end after {REACTION_ROUNDS_MAX} rounds")

    async def _prepared(self, event: ev.Record) -> ev.Record:
        """Do what has to be true before the event says it: the journal exists, or is gone.

        Returns:
            The event, or the failure that takes its place.

        Raises:
            UnavailableError: not at the moment; the event stays due.
        """
        if isinstance(event, ev.StartProtect):
            try:
                await self._journals.create(event.volume)
            except ConflictError as error:
                waiting = self.catalogue.protects[event.volume]
                return make(
                    self.catalogue,
                    ev.ProtectFailed,
                    self._clock(),
                    waiting.event_id,
                    event.volume,
                    command_id=event.command_id,
                    volume=event.volume,
                    error=error.to_json(),
                )
        elif isinstance(event, ev.Unprotected) and event.purged:
            await self._journals.delete(event.volume)
        return event

    async def _write(self, event: ev.Record) -> None:
        """Append an event and wait until it is folded.

        Raises:
            FencedError: another hub took over: the event counts for nothing.
            UnavailableError: the log does not take it or give it back.
        """
        offset = await self._append(event)
        while self.catalogue.next_offset <= offset:
            self._folded.clear()
            try:
                async with asyncio.timeout(FOLD_SECONDS):
                    await self._folded.wait()
            except TimeoutError:
                await self._catch_up()
        self._check_in_charge()
        log.info(
            "event",
            extra={
                "event": type(event).__name__,
                "offset": offset,
                "volume": getattr(event, "volume", ""),
                "command_id": event.command_id or "",
            },
        )

    async def _append(self, event: ev.Record) -> int:
        """Append until acked; an unknown outcome is repeated with the same id, so that it counts once."""
        return await self._patiently(lambda: self._control.append(EVENTS_TOPIC, event))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call to the log, tried again until WRITE_SECONDS_MAX are over."""
        deadline = time.monotonic() + WRITE_SECONDS_MAX
        while True:
            try:
                return await call()
            except (UnavailableError, IndeterminateError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"Kafka does not serve events: {error.message}") from error
                log.warning("the log does not answer yet", extra={"reason": error.message})
            await asyncio.sleep(RETRY_SECONDS)

    async def _catch_up(self) -> None:
        """Fold up to the head, without Faust: a plain consumer is ten times as fast."""
        head = await self._control.next_offset(EVENTS_TOPIC)
        for first in range(self.catalogue.next_offset, head, CATCH_UP_RECORDS):
            upto = min(first + CATCH_UP_RECORDS, head)
            for offset, event in await self._control.read(EVENTS_TOPIC, first, upto):
                if isinstance(event, ev.RECORDS):
                    self._fold(offset, event)
        self.catalogue.skip_to(head)
        self._folded.set()

    def _save_snapshot(self) -> None:
        """Write the snapshot if something changed; a full disk must not stop the control plane."""
        if self.catalogue.next_offset == self._saved_offset:
            return
        offset = self.catalogue.next_offset
        try:
            snapshot.save(self._directory, self.catalogue)
        except StorageError as error:
            if not self._snapshot_failed:
                log.warning("snapshot not written", extra={"reason": error.message})
            self._snapshot_failed = True
            return
        self._saved_offset, self._snapshot_failed = offset, False

    def status(self) -> dict[str, object]:
        """What `/status` says of the catalogue."""
        return {
            "hub_epoch": self.catalogue.hub_epoch,
            "next_offset": self.catalogue.next_offset,
            "commands": self.commands,
            "volumes": len(self.catalogue.live_volumes()),
            "ignored_events": self.catalogue.ignored_events,
            "undecodable_records": self._control.undecodable,
        }
