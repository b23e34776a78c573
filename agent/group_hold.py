"""Holding the answers of a group's volumes in a worker, for a checkpoint that spans several agents.

While it holds, no write that any of these volumes gets is answered. All agents hold, then all put their markers into
their queues, then all let go. Correct because: a write whose answer the guest saw before all markers were in was in its
queue before the hold began there, so before its marker; a write that depends on one that came later is not sent before
the release. An answer that left in between (the limit is over, QEMU was dropped, it must drain) makes the attempt void.

The guest never waits longer than the limit: a timer in this loop, not the caller, ends the hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from rephub.agent.attachment import Attachment
from rephub.agent.worker_limits import CHECKPOINT_SECONDS_MAX
from rephub.core.errors import ConflictError, UnavailableError

REST_SECONDS = 0.1
"""From the end of a hold to the next of the same volume: whoever asks again and again holds a guest half of the time."""

HOLDS_MAX = 64
"""Remembered at once; those that ended go when their maker asks, or after `KEPT_SECONDS`."""

KEPT_SECONDS = 30.0


class GroupHold:
    """One hold.

    Args:
        attachments: by volume; all are consistent.
        limit_seconds: the hold ends by itself after this.
    """

    def __init__(self, attachments: dict[str, Attachment], limit_seconds: float) -> None:
        self.began_at = time.monotonic()
        self.ended_at: float | None = None
        self._attachments = attachments
        self._limit_seconds = limit_seconds
        self._void = ""
        self._captured_at = 0
        self._marks: dict[str, asyncio.Future[int]] = {}
        self._timer = asyncio.get_running_loop().call_later(limit_seconds, self._expire)
        for attachment in attachments.values():
            attachment.capture.hold()

    def covers(self, volume: str) -> bool:
        """Whether the volume is one of its."""
        return volume in self._attachments

    def mark(self, fields: dict[str, Any]) -> None:
        """Put the markers into all queues, in this loop turn.

        Raises:
            UnavailableError: an answer may have left since the hold began.
        """
        self._check()
        self._captured_at = time.time_ns() // 1000
        for volume, attachment in self._attachments.items():
            self._marks[volume] = attachment.mark_checkpoint(self._captured_at, **fields)

    async def release(self) -> dict[str, Any]:
        """Let the answers go, at once, then wait for the acks of the markers.

        Returns:
            {"offsets": by volume, "captured_at", "hold_ms"}

        Raises:
            UnavailableError: an answer had left before, or an ack did not come.
        """
        try:
            self._check()
        finally:
            self.end("it was released")
        if len(self._marks) != len(self._attachments):
            raise UnavailableError("the group was released before it was marked")
        try:
            async with asyncio.timeout(CHECKPOINT_SECONDS_MAX):
                offsets = await asyncio.gather(*self._marks.values())
        except TimeoutError:
            raise UnavailableError(
                f"markers were not acked within {CHECKPOINT_SECONDS_MAX:g} s",
                hint="look at Kafka, then ask again",
            ) from None
        return {
            "offsets": dict(zip(self._marks, offsets, strict=True)),
            "captured_at": self._captured_at,
            "hold_ms": self.held_ms,
        }

    def end(self, why: str) -> None:
        """Let the answers go; from now on the hold is void unless it was released in order."""
        if self.ended_at is not None:
            return
        self.ended_at, self._void = time.monotonic(), why
        self._timer.cancel()
        for attachment in self._attachments.values():
            attachment.capture.let_go()

    @property
    def held_ms(self) -> float:
        """How long answers were held."""
        return round(((self.ended_at or time.monotonic()) - self.began_at) * 1000, 3)

    def _expire(self) -> None:
        self.end(f"the limit of {self._limit_seconds * 1000:.0f} ms was over")

    def _check(self) -> None:
        if self.ended_at is not None:
            raise UnavailableError(
                f"answers were let go before all had their markers: {self._void}", hint="ask again"
            )
        for attachment in self._attachments.values():
            # A capture that is lost has dropped QEMU's connection, which answers what was held.
            attachment.check_open()


class Holds:
    """The holds of a worker.

    Args:
        find: the attachment of a volume; raises UnavailableError.
        limit_seconds: the longest that any may take.
    """

    def __init__(self, find: Callable[[str], Attachment], limit_seconds: float) -> None:
        self._find = find
        self._limit_seconds = limit_seconds
        self._holds: dict[str, GroupHold] = {}

    def hold(self, hold: str, volumes: list[str], limit_ms: float) -> None:
        """Begin, in this loop turn.

        Raises:
            ConflictError: a volume is held, was a moment ago, or its QEMU is about to drain.
            UnavailableError: capture of one is off.
        """
        self._forget()
        attachments = {volume: self._find(volume) for volume in volumes}
        for volume, attachment in attachments.items():
            attachment.check_open()
            if not attachment.capture.throttling:
                raise ConflictError(f"the QEMU of volume {volume} is being changed", hint="ask again")
            for other in self._holds.values():
                ended_at = other.ended_at
                if other.covers(volume) and (ended_at is None or time.monotonic() < ended_at + REST_SECONDS):
                    raise ConflictError(
                        f"volume {volume} is, or was just now, held for another checkpoint", hint="ask again"
                    )
        if len(self._holds) >= HOLDS_MAX:
            raise ConflictError("too many checkpoints are under way", hint="ask again")
        self._holds[hold] = GroupHold(attachments, min(limit_ms / 1000, self._limit_seconds))

    def mark(self, hold: str, fields: dict[str, Any]) -> None:
        """See `GroupHold.mark`. Raises UnavailableError."""
        self._get(hold).mark(fields)

    async def release(self, hold: str) -> dict[str, Any]:
        """See `GroupHold.release`. Raises UnavailableError."""
        return await self._get(hold).release()

    def drop(self, hold: str) -> None:
        """Let go because the attempt is void; of one that is unknown nothing is held."""
        if found := self._holds.get(hold):
            found.end("it was given up")

    def drain(self, volumes: list[str]) -> None:
        """QEMU is about to wait for the answers of these volumes."""
        for hold in self._holds.values():
            if any(hold.covers(volume) for volume in volumes):
                hold.end("a command that drains QEMU came between")

    def _get(self, hold: str) -> GroupHold:
        if hold not in self._holds:
            raise UnavailableError("this hold is unknown: the worker is another one", hint="ask again")
        return self._holds[hold]

    def _forget(self) -> None:
        old = time.monotonic() - KEPT_SECONDS
        self._holds = {
            name: hold for name, hold in self._holds.items() if hold.ended_at is None or hold.ended_at > old
        }
