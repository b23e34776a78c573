"""The events that a diskbox writes: made with ids that follow from their cause, sent until they are there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, TypeVar

from rephub.core.control.ids import event_id
from rephub.core.control.port import ControlLog
from rephub.core.errors import IndeterminateError, UnavailableError
from rephub.core.names import EVENTS_TOPIC
from rephub.schemas import events as ev

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Between two tries to write an event while Kafka is away; an id written twice counts once."""

_E = TypeVar("_E", bound=ev.Record)


def now() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


class Facts:
    """Writes events of one diskbox.

    Args:
        control: the log, started.
        diskbox: its id.
    """

    def __init__(self, control: ControlLog, diskbox: str) -> None:
        self._control = control
        self._source = f"diskbox/{diskbox}"

    async def tell(
        self, kind: type[_E], cause_id: str, subject: str, command_id: str = "", **fields: Any
    ) -> None:
        """Write one event; returns when it is in the log.

        Args:
            kind: its type.
            cause_id: id of what it answers.
            subject: what it is about; with cause and type it makes the event's id.
            command_id: of the command at the root, if any.
            **fields: the type's own fields.
        """
        event = kind(
            id=event_id(cause_id, kind.__name__, subject),
            at=now(),
            source=self._source,
            command_id=command_id or None,
            cause_id=cause_id,
            hub_epoch=0,
            **fields,
        )
        while True:
            try:
                await self._control.append(EVENTS_TOPIC, event)
            except (UnavailableError, IndeterminateError) as exc:
                log.warning("event=%s subject=%s not_written=%s", kind.__name__, subject, exc.message)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                log.info("event=%s subject=%s", kind.__name__, subject)
                return
