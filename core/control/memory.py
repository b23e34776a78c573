"""The control log in memory, for tests and simulation; records pass through the codec as in Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from rephub.core.codec import ControlRecord, decode_control, encode_control
from rephub.core.control.port import Entry
from rephub.core.errors import IntegrityError, UnavailableError


class MemoryControlLog:
    """A `ControlLog`; every topic is there from the start. Share one object among its users."""

    def __init__(self) -> None:
        self.undecodable = 0
        self.unavailable = False
        """Set to make every call but `tail` fail as without a broker; `tail` waits."""
        self._topics: dict[str, list[bytes]] = {}
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        """Nothing to connect."""
        self._check_available()

    async def append(self, topic: str, record: ControlRecord) -> int:
        """See `ControlLog.append`."""
        return await self.append_raw(topic, encode_control(record))

    async def append_raw(self, topic: str, value: bytes) -> int:
        """Append bytes as they are, as a newer version would."""
        self._check_available()
        values = self._topics.setdefault(topic, [])
        values.append(value)
        async with self._changed:
            self._changed.notify_all()
        return len(values) - 1

    async def set_unavailable(self, unavailable: bool) -> None:
        """Begin or end an outage."""
        self.unavailable = unavailable
        async with self._changed:
            self._changed.notify_all()

    async def next_offset(self, topic: str) -> int:
        """See `ControlLog.next_offset`."""
        self._check_available()
        return len(self._topics.get(topic, []))

    async def read(self, topic: str, first_offset: int, next_offset: int) -> list[Entry]:
        """See `ControlLog.read`."""
        self._check_available()
        values = self._topics.get(topic, [])
        if first_offset < next_offset and (first_offset < 0 or next_offset > len(values)):
            raise IntegrityError(
                f"{topic} ends at {len(values)}, records {first_offset}..{next_offset - 1} are not there",
                first_offset=0,
                next_offset=len(values),
            )
        return self._decode(values[first_offset:next_offset], first_offset)

    async def tail(self, topic: str, first_offset: int) -> AsyncIterator[list[Entry]]:
        """See `ControlLog.tail`."""
        values = self._topics.setdefault(topic, [])
        if not 0 <= first_offset <= len(values):
            raise IntegrityError(f"offset {first_offset} is not in {topic}", next_offset=len(values))
        at = first_offset
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(values) > at and not self.unavailable)  # noqa: B023
            entries = self._decode(values[at:], at)
            at = len(values)
            if entries:
                yield entries

    async def close(self) -> None:
        """Keep everything: other users may share the object."""

    def _decode(self, values: list[bytes], first_offset: int) -> list[Entry]:
        entries: list[Entry] = []
        for offset, value in enumerate(values, first_offset):
            try:
                entries.append((offset, decode_control(value)))
            except IntegrityError:
                self.undecodable += 1
        return entries

    def _check_available(self) -> None:
        if self.unavailable:
            raise UnavailableError("the control log does not answer")
