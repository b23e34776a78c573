"""One conversation over the control plane: sends a command, waits for the event that answers it.

The deadline travels with the command: the hub refuses it afterwards, so that nothing happens long after whoever asked
gave up. A cancelled wait takes nothing back. Whether a hub is there at all is for the caller to see first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rephub.core.control.ids import command_id
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import DeadlineError, IndeterminateError, RephubError, UnavailableError, from_json
from rephub.core.names import COMMANDS_TOPIC, EVENTS_TOPIC
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

CommandT = TypeVar("CommandT", bound=cmd.Record)
Done = Callable[[ev.Record], dict[str, Any] | None]
"""Looks at an event: the answer if it is the one that was waited for; raises the error that it carries."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a command."""

    fields: dict[str, Any]
    already: bool = False
    """It was so before."""


class ControlClient:
    """One conversation with the hub.

    Args:
        bootstrap: of Kafka, `host:port[,host:port…]`.
        source: who asks, as commands carry it: `cli/HOST`.
        seconds: for the whole conversation.
    """

    def __init__(self, bootstrap: str, source: str, seconds: float) -> None:
        self.seconds = seconds
        self._bootstrap = bootstrap
        self._source = source
        self._deadline = time.monotonic() + seconds
        self._log = KafkaControlLog(bootstrap)
        self._next_offset = 0

    @property
    def left_seconds(self) -> float:
        """Until the deadline, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    async def start(self) -> None:
        """Connect to Kafka. Raises UnavailableError: it does not answer in time; nothing was sent."""
        await self._log.start()

    async def close(self) -> None:
        """Let go."""
        await self._log.close()

    def new(self, kind: type[CommandT], **fields: Any) -> CommandT:
        """A command with a fresh id and this conversation's deadline."""
        now = time.time_ns() // 1000
        return kind(
            id=command_id(),
            at=now,
            source=self._source,
            deadline_at=now + int(self.left_seconds * 1e6),
            **fields,
        )

    async def ask(self, command: cmd.Record, done: Done, what: str) -> Answer:
        """Send a command and wait for its end.

        Args:
            command: made by `new`.
            done: sees every event since then, in order.
            what: for the error of the deadline: "protect of volume x".

        Raises:
            DeadlineError: no answer in time; names the last thing that was heard.
            RephubError: what the answering event carries.
        """
        self._next_offset = await self._log.next_offset(EVENTS_TOPIC)
        await self._send(command)

        def answered(event: ev.Record) -> Answer | None:
            if event.command_id == command.id and isinstance(event, ev.CommandRejected):
                raise from_json(event.error)
            if event.command_id == command.id and isinstance(event, ev.CommandFulfilled):
                return Answer(json.loads(event.answer), already=True)
            fields = done(event)
            return Answer(fields) if fields is not None else None

        return await self._until(answered, command.id, what, self.left_seconds)

    async def tell(self, command: cmd.Record) -> None:
        """Send a command whose answer nobody waits for. Raises UnavailableError: Kafka does not take it."""
        await self._send(command)

    async def follow(self, done: Done, what: str, seconds: float) -> dict[str, Any]:
        """Go on after `ask`, with the events that came since.

        Raises:
            DeadlineError: not within `seconds` or this conversation's deadline.
        """

        def answered(event: ev.Record) -> Answer | None:
            fields = done(event)
            return Answer(fields) if fields is not None else None

        answer = await self._until(answered, "", what, min(seconds, self.left_seconds))
        return answer.fields

    async def _until(
        self, answered: Callable[[ev.Record], Answer | None], command: str, what: str, seconds: float
    ) -> Answer:
        last = "nothing"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for offset, event in self._events():
                    self._next_offset = offset + 1
                    answer = answered(event)
                    if answer is not None:
                        return answer
                    if command and event.command_id == command:
                        last = type(event).__name__
        raise DeadlineError(
            f"{what}: no end after {self.seconds:g} s, the last event was {last}",
            last_event=last,
            command_id=command,
        )

    async def _events(self) -> AsyncIterator[tuple[int, ev.Record]]:
        async for entries in self._log.tail(EVENTS_TOPIC, self._next_offset):
            for offset, event in entries:
                if isinstance(event, ev.RECORDS):
                    yield offset, event

    async def _send(self, command: cmd.Record) -> None:
        """Append the command; an unknown outcome is repeated with the same id, on which the hub acts once."""
        while True:
            try:
                async with asyncio.timeout(self.left_seconds):
                    await self._log.append(COMMANDS_TOPIC, command)
            except IndeterminateError:
                continue
            except TimeoutError:
                raise UnavailableError(
                    f"Kafka at {self._bootstrap} does not take the command", hint="rephub status"
                ) from None
            else:
                return


def error_of(event: ev.Record) -> RephubError:
    """The error that an event of failure carries."""
    return from_json(event.error)  # type: ignore[union-attr]  # callers know the type
