"""The coordinator of a checkpoint whose volumes are captured by several agents.

An attempt: connect to all, ask all whether they could, have all hold, have all mark, have all let go. Whatever fails makes
the attempt void: its markers stay in the journals and mean nothing, because the catalogue never hears of them
(`points.listed_in`). A void attempt is made again a few times, with a pause in which the guests run freely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from rephub.agent.hold_side import STEP_SECONDS, HoldSide
from rephub.agent.ipc import Channel, Document
from rephub.agent.peers import connected
from rephub.agent.worker_limits import CHECKPOINT_SECONDS_MAX
from rephub.core.errors import RephubError, UnavailableError

ATTEMPTS_MAX = 5
PAUSE_SECONDS = 0.25
"""Between attempts: the guests are held for a fifth of the time at most."""

ANSWER_SECONDS = {"release": CHECKPOINT_SECONDS_MAX + 2 * STEP_SECONDS}
"""Beyond `STEP_SECONDS`: letting go waits for Kafka, with the answers gone."""

log = logging.getLogger(__name__)


class Crossing:
    """One checkpoint.

    Args:
        agent: this one's name.
        side: this one's part.
        members: volumes by agent.
        addresses: of the agents, as announced.
        limit_ms: of a hold.
    """

    def __init__(
        self,
        agent: str,
        side: HoldSide,
        members: Mapping[str, list[str]],
        addresses: Mapping[str, str],
        limit_ms: float,
    ) -> None:
        self._agent, self._side = agent, side
        self._members, self._addresses = members, addresses
        self._limit_ms = limit_ms

    async def mark(self, fields: dict[str, Any]) -> Document:
        """Make the checkpoint.

        Args:
            fields: of the markers.

        Returns:
            {"offsets": by volume, "captured_at", "kind", "hold_ms": the longest of all, "attempts"}

        Raises:
            RephubError: why the last attempt was void.
        """
        async with contextlib.AsyncExitStack() as stack:
            channels = {
                agent: await stack.enter_async_context(connected(agent, self._addresses.get(agent, "")))
                for agent in self._members
                if agent != self._agent
            }
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    answers = await self._attempt(channels, fields)
                except UnavailableError as exc:
                    log.warning("checkpoint void", extra={"attempt": attempt, "why": exc.message} | fields)
                    if attempt == ATTEMPTS_MAX:
                        raise
                    await asyncio.sleep(PAUSE_SECONDS)
                else:
                    return _joined(answers, fields["kind"]) | {"attempts": attempt}
        raise AssertionError("unreachable")

    async def _attempt(self, channels: Mapping[str, Channel], fields: dict[str, Any]) -> dict[str, Document]:
        hold = uuid.uuid4().hex

        async def step(agent: str, op: str, **rest: Any) -> Document:
            try:
                if agent == self._agent:
                    return await self._side.serve(op, rest)
                return await channels[agent].call(op, ANSWER_SECONDS.get(op, STEP_SECONDS), **rest)
            except RephubError as exc:
                raise UnavailableError(
                    f"the checkpoint is void: agent {agent}: {exc.message}",
                    hint=exc.hint or "ask again; agent.hold_max_ms limits how long answers are held",
                ) from exc

        members = self._members
        await _all(step(agent, "check", volumes=volumes) for agent, volumes in members.items())
        try:
            await _all(
                step(agent, "hold", hold=hold, volumes=volumes, limit_ms=self._limit_ms)
                for agent, volumes in members.items()
            )
            await _all(step(agent, "mark", hold=hold, fields=fields) for agent in members)
            answers = await _all(step(agent, "release", hold=hold) for agent in members)
        except BaseException:
            # Each agent lets go by itself in any case; this only makes it sooner.
            await asyncio.gather(
                *(step(agent, "drop", hold=hold) for agent in members), return_exceptions=True
            )
            raise
        return dict(zip(members, answers, strict=True))


async def _all(steps: Iterable[Coroutine[Any, Any, Document]]) -> list[Document]:
    """All answers; the first error if there is one, but only when all have ended."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def _joined(answers: Mapping[str, Document], kind: str) -> Document:
    offsets = {volume: at for answer in answers.values() for volume, at in answer["offsets"].items()}
    return {
        "offsets": dict(sorted(offsets.items())),
        "captured_at": max(answer["captured_at"] for answer in answers.values()),
        "kind": kind,
        "hold_ms": max(answer["hold_ms"] for answer in answers.values()),
    }
