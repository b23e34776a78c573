"""The channel between control process and worker."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from rephub.agent.ipc import Channel
from rephub.core.errors import ConflictError, DeadlineError, RephubError, UnavailableError


class Ends:
    """Both ends, open and running."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)  # noqa: FBT003 - the library's signature
        self.heard: list[tuple[str, Any]] = []
        self.ours = Channel(ours, self._serve, lambda notice, fields: self.heard.append((notice, fields)))
        self.theirs = Channel(theirs, self._serve, lambda _notice, _fields: None)
        self.running: list[asyncio.Task[None]] = []

    async def open(self) -> Ends:
        for end in (self.ours, self.theirs):
            await end.open()
            self.running.append(asyncio.create_task(end.run()))
        return self

    async def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        await asyncio.gather(*self.running, return_exceptions=True)

    async def _serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if op == "fail":
            raise ConflictError("no", hint="h", state="s")
        if op == "bug":
            raise ZeroDivisionError
        if op == "hang":
            await asyncio.Event().wait()
        return fields


async def test_calls_errors_and_notices_travel() -> None:
    ends = await Ends().open()
    assert await ends.ours.call("echo", 5, a=1) == {"a": 1}
    with pytest.raises(ConflictError) as caught:
        await ends.ours.call("fail", 5)
    assert caught.value.fields == {"state": "s"}
    with pytest.raises(RephubError, match="ZeroDivisionError"):
        await ends.ours.call("bug", 5)
    with pytest.raises(DeadlineError):
        await ends.ours.call("hang", 0.05)
    ends.theirs.notify("n", x=2)
    assert await ends.ours.call("echo", 5) == {}
    assert ends.heard == [("n", {"x": 2})]
    await ends.close()


async def test_the_end_of_the_peer_ends_calls_under_way() -> None:
    ends = await Ends().open()
    call = asyncio.create_task(ends.ours.call("hang", 5))
    await ends.ours.call("echo", 5)
    ends.theirs.close()
    with pytest.raises(UnavailableError):
        await call
    await asyncio.gather(*ends.running, return_exceptions=True)
    with pytest.raises(UnavailableError):
        await ends.ours.call("echo", 5)
    await ends.close()
