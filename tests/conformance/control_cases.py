"""What every control log adapter must do. A subclass gives `log` and `topic`; see `test_control.py`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from rephub.core.codec import ControlRecord
from rephub.core.control.follow import follow
from rephub.core.control.port import ControlLog, Entry
from rephub.core.errors import IntegrityError
from rephub.schemas import commands, events

WAIT_SECONDS = 20


def event(n: int) -> events.HubStarted:
    return events.HubStarted(id=f"event-{n}", at=n, source="hub/hub1", hub_epoch=n, hub="hub1")


def command() -> commands.StopFot:
    return commands.StopFot(id="c", at=1, source="cli/h", deadline_at=2, fot="f")


class ControlCases:
    async def fill(self, log: ControlLog, topic: str, count: int) -> list[ControlRecord]:
        records: list[ControlRecord] = [event(n) for n in range(count)]
        for record in records:
            await log.append(topic, record)
        return records

    async def test_append_and_read(self, log: ControlLog, topic: str) -> None:
        assert await log.next_offset(topic) == 0
        assert [await log.append(topic, record) for record in (event(1), command(), event(2))] == [0, 1, 2]
        assert await log.next_offset(topic) == 3
        assert await log.read(topic, 0, 3) == [(0, event(1)), (1, command()), (2, event(2))]
        assert await log.read(topic, 1, 2) == [(1, command())]
        assert await log.read(topic, 2, 2) == []
        assert await log.read(topic, 3, 3) == []

    async def test_appends_at_once_keep_their_order(self, log: ControlLog, topic: str) -> None:
        offsets = await asyncio.gather(*(log.append(topic, event(n)) for n in range(20)))
        assert offsets == list(range(20))
        assert [record.at for _, record in await log.read(topic, 0, 20)] == list(range(20))

    @pytest.mark.parametrize(("first", "following"), [(0, 3), (2, 9), (7, 9), (-1, 1)])
    async def test_read_outside_the_log(
        self, log: ControlLog, topic: str, first: int, following: int
    ) -> None:
        await self.fill(log, topic, 2)
        with pytest.raises(IntegrityError):
            await log.read(topic, first, following)

    async def test_undecodable_records_are_skipped_and_counted(self, log: Any, topic: str) -> None:
        await log.append(topic, event(0))
        for value in (b"", b"garbage", b"\xc3\x01" + bytes(8) + b"from the future"):
            await log.append_raw(topic, value)
        await log.append(topic, event(4))
        assert await log.read(topic, 0, 5) == [(0, event(0)), (4, event(4))]
        assert log.undecodable == 3
        async with asyncio.timeout(WAIT_SECONDS), aclosing(log.tail(topic, 1)) as tail:
            assert await anext(tail) == [(4, event(4))]
        assert log.undecodable == 6

    async def test_tail_waits_for_what_comes(self, log: ControlLog, topic: str) -> None:
        await self.fill(log, topic, 3)
        found: list[Entry] = []
        async with asyncio.timeout(WAIT_SECONDS), aclosing(log.tail(topic, 2)) as tail:
            async for entries in tail:
                found += entries
                if len(found) < 3:
                    await log.append(topic, event(len(found) + 2))
                else:
                    break
        assert found == [(n, event(n)) for n in (2, 3, 4)]

    async def test_tail_beyond_the_head(self, log: ControlLog, topic: str) -> None:
        async with asyncio.timeout(WAIT_SECONDS), aclosing(log.tail(topic, 1)) as tail:
            with pytest.raises(IntegrityError):
                await anext(tail)

    async def test_follow_acts_after_the_past_is_folded(self, log: ControlLog, topic: str) -> None:
        await self.fill(log, topic, 5)
        folded: list[int] = []
        acted_at: list[int] = []
        enough = asyncio.Event()

        async def after_batch() -> None:
            acted_at.append(len(folded))
            if len(folded) < 8:
                await log.append(topic, event(5 + len(acted_at)))
            else:
                enough.set()

        following = asyncio.create_task(follow(log, topic, 1, lambda at, _: folded.append(at), after_batch))
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.wait(
                {following, asyncio.ensure_future(enough.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert folded[:4] == [1, 2, 3, 4]
        assert acted_at[0] == 4
        assert folded == list(range(1, len(folded) + 1))

    async def test_follow_acts_once_on_nothing(self, log: ControlLog, topic: str) -> None:
        acted = asyncio.Event()

        async def after_batch() -> None:
            acted.set()

        following = asyncio.create_task(follow(log, topic, 0, lambda *_: None, after_batch))
        async with asyncio.timeout(WAIT_SECONDS):
            await acted.wait()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
