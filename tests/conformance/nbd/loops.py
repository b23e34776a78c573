"""Runs an async test under asyncio's loop and under uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.nbd.running import LOOPS


@dataclass
class Here:
    """What a test may use."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    caplog: pytest.LogCaptureFixture
    stack: AsyncExitStack
    """What must be closed also when the test fails: uvloop hangs otherwise."""


def on_both_loops(test: Callable[[Here], Awaitable[None]]) -> Callable[..., None]:
    """Make a test of `async def test(here)`; the loop must have nothing to complain about at the end."""

    @pytest.mark.parametrize("loop", list(LOOPS))
    def wrapper(
        loop: str,
        short_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        complaints: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, details: complaints.append(details))
            async with asyncio.timeout(30):
                async with AsyncExitStack() as stack:
                    await test(Here(short_dir, monkeypatch, caplog, stack))

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())
        assert complaints == []

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


async def until(condition: Callable[[], bool], what: str = "condition", seconds: float = 10) -> None:
    """Give the loop turns until it holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come"
        await asyncio.sleep(0.002)


async def passing(seconds: float) -> None:
    """Let time pass, to see that something does not happen; never used to wait for what does."""
    await asyncio.sleep(seconds)
