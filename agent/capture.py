"""What QEMU's mirror sends, and when it is answered: the NBD side of one attachment.

Lives here: requests → queue events, and the four ways an answer leaves: at once, once the regions are marked, once
Kafka has acked, later because of throttling. Does not live here: marking (`marks.py`), publishing (`publisher.py`).

Promise 4: an answer leaves only if the write is acked, or all its regions are marked.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from rephub.agent import extents, overload
from rephub.agent.dirty import DirtyRegions
from rephub.agent.marks import Marks
from rephub.agent.queue import EVENT_DATA_BYTES_MAX, FLAG_FUA, EventQueue, Queued
from rephub.agent.touched import Touched
from rephub.core.errors import RephubError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import Connection, ExportInfo, Request

REQUEST_BYTES_MAX = 4 << 20
"""Longest request we offer to take; QEMU splits longer ones. 16 in flight (its limit) are then 64 MiB, a quarter of
the default buffer."""

HOLD_SECONDS_MAX = 5.0
"""Longest time that an answer may wait for Redis or Kafka; then capture is lost, which frees the guest."""


class AckPolicy(StrEnum):
    """When a write is answered."""

    ASYNC = "async"
    JOURNAL = "journal"


def export_info(name: str, size_bytes: int) -> ExportInfo:
    """The capture export. Block size 1: with 512, an unaligned write makes QEMU read from us first."""
    return ExportInfo(name=name, size_bytes=size_bytes, min_block=1, max_block=REQUEST_BYTES_MAX)


class Capture:
    """Takes the requests of one attachment.

    Args:
        queue: where events go.
        dirty: regions of the volume.
        marks: makes marks durable.
        policy: when writes are answered.
        overload_policy: what happens when the buffer fills.
        buffer_bytes: its limit.
        delay_max_ms: limit of a throttled answer's delay.
        wake: tells the publisher that there is something, and that somebody waits for its ack.
        offer: the same, and nobody waits.
        lost: called when capture cannot go on.
        ended: called when QEMU closed the connection; what was captured is still to be published.
    """

    def __init__(
        self,
        queue: EventQueue,
        dirty: DirtyRegions,
        marks: Marks,
        *,
        policy: AckPolicy,
        overload_policy: overload.Policy,
        buffer_bytes: int,
        delay_max_ms: int,
        wake: Callable[[], None],
        offer: Callable[[], None],
        lost: Callable[[RephubError], None],
        ended: Callable[[RephubError], None],
    ) -> None:
        self._queue = queue
        self._dirty = dirty
        self._marks = marks
        self._policy = policy
        self._overload = overload_policy
        self._buffer_bytes = buffer_bytes
        self._delay_max_ms = delay_max_ms
        self._wake = wake
        self._offer = offer
        self._lost = lost
        self._ended = ended
        self.touched = Touched()
        self._connection: Connection | None = None
        self._held: deque[tuple[float, Queued]] = deque()
        """Events whose answer waits for marks or ack, with the time they came."""
        self._delayed: deque[tuple[float, int]] = deque()
        """Throttled answers: due time, cookie; due times ascend."""
        self.throttled_writes, self.throttled_seconds = 0, 0.0
        """Answers that were late for it, and by how much in all."""
        self._timer: asyncio.TimerHandle | None = None
        self._holding = False
        self._held_back: list[int] = []
        """Answers that are due, but for a checkpoint that spans agents."""
        self.throttling = True
        """False while a draining QMP command runs: it waits for our answers."""

    def on_requests(self, connection: Connection, requests: list[Request]) -> None:
        """All complete requests of one wake-up."""
        self._connection = connection
        now = time.time_ns() // 1000
        done: list[int] = []
        for request in requests:
            command = request.command
            if command == nbd.CMD_WRITE:
                self._settle(request.cookie, self._write(now, request), request, done)
            elif command in (nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM):
                self._settle(request.cookie, self._zero(now, request), request, done)
            elif command == nbd.CMD_FLUSH:
                self._flush(request.cookie, done)
            else:
                # The export has nothing to read: EIO makes a QEMU that tries end its job, not its guest.
                connection.reply(request.cookie, errno.EIO)
        if self._policy is AckPolicy.JOURNAL or self._marks.away:
            self._wake()
        else:
            self._offer()
        if overload.is_full(self._queue.unacked_bytes, self._buffer_bytes):
            self._lost(
                UnavailableError(
                    f"the guest outran the journal: {self._queue.unacked_bytes} bytes are not acked",
                    hint="the volume is resynced when Kafka keeps up; see --overload and agent.buffer_bytes",
                    outran=True,
                )
            )
            return
        self._answer(done)

    def on_close(self, _connection: Connection, exc: Exception | None) -> None:
        """QEMU let go, or we did."""
        self._ended(UnavailableError(f"QEMU closed the capture connection{f': {exc}' if exc else ''}"))

    def acked(self, events: list[Queued]) -> None:
        """These events are in the journal: answer whoever still waits."""
        now = time.monotonic()
        done = []
        for event in events:
            if event.length:
                self._dirty.acked(event.start, event.length, now)
            if event.cookie is not None:
                done.append(event.cookie)
                event.cookie = None
        if done:
            self._answer(done)

    def marked(self, events: list[Queued]) -> None:
        """All regions of these events are marked."""
        done = []
        for event in events:
            if event.cookie is not None:
                done.append(event.cookie)
                event.cookie = None
        if done:
            self._answer(done)

    def check_held(self) -> None:
        """Call now and then: ends capture when an answer has waited too long."""
        while self._held and self._held[0][1].cookie is None:
            self._held.popleft()
        if self._held and time.monotonic() - self._held[0][0] > HOLD_SECONDS_MAX:
            self._lost(
                UnavailableError(
                    f"a write waited {HOLD_SECONDS_MAX:g} s for {'Kafka' if not self._marks.away else 'Redis and Kafka'}",
                    hint="the volume is resynced when the service is back",
                )
            )

    def release(self, *, throttling: bool) -> None:
        """Switch throttling; switching it off sends all throttled answers now."""
        self.throttling = throttling
        if not throttling:
            self._flush_delayed(everything=True)

    def hold(self) -> None:
        """From now on nothing is answered, until `let_go`; see `group_hold.py`, which limits it."""
        self._holding = True

    def let_go(self) -> None:
        """Answer what was held, as it would have been answered."""
        self._holding = False
        held, self._held_back = self._held_back, []
        self._answer(held)
        if self._delayed and self._timer is None:
            self._arm()

    def abort(self) -> None:
        """Drop QEMU's connection: its job ends with an error and the guest goes on."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._connection:
            self._connection.abort()

    def _write(self, now: int, request: Request) -> Queued:
        data = request.data
        assert data is not None
        flags = FLAG_FUA if request.flags & nbd.CMD_FLAG_FUA else 0
        if request.length <= EVENT_DATA_BYTES_MAX:
            return self._queue.write(now, request.start, data, flags)
        view = memoryview(data)
        for start, length in extents.split(request.start, request.length, EVENT_DATA_BYTES_MAX):
            first = start - request.start
            event = self._queue.write(now, start, view[first : first + length], flags)
        return event

    def _zero(self, now: int, request: Request) -> Queued:
        unmap = request.command == nbd.CMD_TRIM or not request.flags & nbd.CMD_FLAG_NO_HOLE
        flags = FLAG_FUA if request.flags & nbd.CMD_FLAG_FUA else 0
        return self._queue.zero(now, request.start, request.length, unmap=unmap, flags=flags)

    def _settle(self, cookie: int, last: Queued, request: Request, done: list[int]) -> None:
        """Decide when the request is answered, `last` being its last event."""
        self.touched.add(request.start, request.length)
        fresh = self._touch(last, request)
        if self._policy is AckPolicy.ASYNC and not fresh:
            done.append(cookie)
            return
        last.cookie = cookie
        self._held.append((time.monotonic(), last))
        if fresh:
            # With the `journal` policy the mark is still wanted (it covers a write that Kafka never sees), but
            # nobody waits for it.
            self._marks.want(fresh, last if self._policy is AckPolicy.ASYNC else None)

    def _touch(self, last: Queued, request: Request) -> list[int]:
        if last.start == request.start:
            return self._dirty.touch(request.start, request.length)
        fresh = []
        for start, length in extents.split(request.start, request.length, EVENT_DATA_BYTES_MAX):
            fresh += self._dirty.touch(start, length)
        return fresh

    def _flush(self, cookie: int, done: list[int]) -> None:
        """All writes before are in our queue; under `journal` they are answered with their acks anyway."""
        done.append(cookie)

    def _answer(self, cookies: list[int]) -> None:
        connection = self._connection
        if connection is None or not cookies:
            return
        if self._holding:
            self._held_back += cookies
            return
        delay = 0.0
        if self.throttling:
            delay = overload.answer_delay_seconds(
                self._overload, self._queue.unacked_bytes, self._buffer_bytes, self._delay_max_ms
            )
        if not delay and not self._delayed:
            for cookie in cookies:
                connection.reply(cookie)
            return
        now = time.monotonic()
        due = now + delay
        if self._delayed:
            due = max(due, self._delayed[-1][0])
        self.throttled_writes += len(cookies)
        self.throttled_seconds += (due - now) * len(cookies)
        self._delayed.extend((due, cookie) for cookie in cookies)
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._delayed[0][0] - time.monotonic()), self._flush_delayed)

    def _flush_delayed(self, *, everything: bool = False) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._holding:
            return
        now = time.monotonic()
        while self._delayed and (everything or self._delayed[0][0] <= now):
            _due, cookie = self._delayed.popleft()
            if self._connection:
                self._connection.reply(cookie)
        if self._delayed:
            self._arm()
