"""The CLI's side of the control plane: sends one command, waits for the event that answers it.

The deadline travels with the command: the hub refuses it afterwards, so that nothing happens long after the
operator gave up. Ctrl-C only stops the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rephub.cli.endpoints import Endpoints, read_endpoints
from rephub.cli.fetch import fetch
from rephub.cli.output import Cli
from rephub.core.control.ids import command_id
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import DeadlineError, IndeterminateError, RephubError, UnavailableError, from_json
from rephub.core.names import COMMANDS_TOPIC, EVENTS_TOPIC
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

HUB_SECONDS_MAX = 15.0
"""How long a hub that does not answer is waited for: a restart fits in."""

HUB_POLL_SECONDS = 0.2

HEAD_SECONDS = 1.0
"""One try of the hub's status page."""

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
    """One conversation with the hub; use `connect`.

    Args:
        endpoints: where hub and Kafka are.
        seconds: for the whole conversation.
    """

    def __init__(self, endpoints: Endpoints, seconds: float) -> None:
        self.endpoints = endpoints
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._log = KafkaControlLog(endpoints.bootstrap)
        self._next_offset = 0

    @property
    def left_seconds(self) -> float:
        """Until the deadline, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    async def start(self) -> None:
        """Make sure that a hub is there, connect to Kafka.

        Raises:
            UnavailableError: hub or Kafka do not answer in time; nothing was sent.
        """
        await self._wait_for_hub()
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
            source=f"cli/{socket.gethostname()}",
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
                    f"Kafka at {self.endpoints.bootstrap} does not take the command", hint="rephub status"
                ) from None
            else:
                return

    async def _wait_for_hub(self) -> None:
        give_up = time.monotonic() + min(self.seconds, HUB_SECONDS_MAX)
        while True:
            document = await fetch(f"{self.endpoints.web}/status", HEAD_SECONDS)
            if document is not None and document.get("ready"):
                return
            if time.monotonic() > give_up:
                state = "is not ready" if document else "does not answer"
                raise UnavailableError(
                    f"the hub at {self.endpoints.web or '(unknown address)'} {state}",
                    hint="`rephub status` says which part is down; `rephub up` starts them",
                )
            await asyncio.sleep(HUB_POLL_SECONDS)


@contextlib.asynccontextmanager
async def connect(cli: Cli, seconds: float) -> AsyncIterator[ControlClient]:
    """A started client, closed at the end. Raises what `ControlClient.start` raises."""
    client = ControlClient(read_endpoints(cli.state_dir), seconds)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def error_of(event: ev.Record) -> RephubError:
    """The error that an event of failure carries."""
    return from_json(event.error)  # type: ignore[union-attr]  # callers know the type
