"""Events that the agent writes: made here, delivered in order, kept while Kafka's control log is away.

Nothing of the data path waits for a delivery. Repeats are harmless: an event's id follows from its cause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from rephub.core.control.ids import event_id
from rephub.core.control.port import ControlLog
from rephub.core.errors import RephubError
from rephub.core.names import EVENTS_TOPIC
from rephub.schemas import events as ev

QUEUE_MAX = 10_000
"""Events that wait. Without Kafka nothing attaches, so that a volume adds one or two at most; more is a mistake."""

RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 5.0

log = logging.getLogger(__name__)


class Announcer:
    """Writes this agent's events.

    Args:
        control: the control log, started.
        agent: name of the agent.
    """

    def __init__(self, control: ControlLog, agent: str) -> None:
        self._control = control
        self._source = f"agent/{agent}"
        self._queue: deque[ev.Record] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def emit(
        self,
        event_type: type[ev.Record],
        subject: str,
        *,
        cause_id: str,
        command_id: str = "",
        **fields: Any,
    ) -> None:
        """Queue an event.

        Args:
            event_type: its class.
            subject: what it is about; with the type and the cause it makes the id.
            cause_id: id of what it answers: an event, an attachment, this start of the agent.
            command_id: the command at the root, if any.
            **fields: the rest of the event.
        """
        if len(self._queue) >= QUEUE_MAX:
            log.error(
                "event dropped: too many wait", extra={"event": event_type.__name__, "subject": subject}
            )
            return
        self._queue.append(
            event_type(
                id=event_id(cause_id, event_type.__name__, subject),
                at=time.time_ns() // 1000,
                source=self._source,
                command_id=command_id or None,
                cause_id=cause_id,
                hub_epoch=0,
                **fields,
            )
        )
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        delay = RETRY_SECONDS
        while True:
            if not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            event = self._queue[0]
            try:
                await self._control.append(EVENTS_TOPIC, event)
            except RephubError as exc:
                log.warning(
                    "event waits",
                    extra={"event": type(event).__name__, "error": exc.message, "queued": len(self._queue)},
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_SECONDS_MAX)
                continue
            delay = RETRY_SECONDS
            self._queue.popleft()
            log.info("event", extra={"event": type(event).__name__, "id": event.id})

    async def flush(self, seconds: float) -> bool:
        """Wait until all is delivered; False if it is not in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
