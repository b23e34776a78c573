"""A RepAgent that is wrong on purpose: a group's markers enter its queues in different turns of the loop, and for a
checkpoint that spans agents it holds no answers.

`torn_agent.py CONFIG` runs the agent; its workers are `torn_agent.py worker FD`. It is there to show that the test of
group checkpoints can fail.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from rephub.agent import capture, worker
from rephub.agent import main as agent
from rephub.core.config import load_settings

TURN_SECONDS = 0.002
"""Between two markers: a few round trips of the load."""

TORN_MARK_SECONDS = 0.02
"""Within this, at any time, each agent marks."""


async def torn_checkpoint(
    self: worker.Worker, volumes: list[str], fields: dict[str, Any], frozen_until: float | None = None
) -> dict[str, Any]:
    """As the worker's own, but the loop turns between two markers."""
    captured_at = time.time_ns() // 1000
    futures = []
    for volume in volumes:
        futures.append(self._get(volume).mark_checkpoint(captured_at, **fields))
        await asyncio.sleep(TURN_SECONDS)
    offsets = await asyncio.gather(*futures)
    return {
        "offsets": dict(zip(volumes, offsets, strict=True)),
        "captured_at": captured_at,
        "kind": fields["kind"],
    }


async def torn_mark(self: worker.Worker, hold: str, fields: dict[str, Any]) -> dict[str, Any]:
    """As the worker's own, but the agents mark at different times."""
    await asyncio.sleep(random.random() * TORN_MARK_SECONDS)
    self._known_holds().mark(hold, fields)
    return {}


def main() -> int:
    """Run as agent or as worker."""
    if sys.argv[1] == "worker":
        worker.Worker._checkpoint = torn_checkpoint  # type: ignore[method-assign]
        worker.Worker._hold_mark = torn_mark  # type: ignore[method-assign]
        capture.Capture.hold = lambda _self: None  # type: ignore[method-assign]
        os._exit(worker.main(int(sys.argv[2])))
    spawn = asyncio.create_subprocess_exec

    async def spawn_torn(program: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        assert arguments[:2] == ("-m", "rephub.agent.worker"), arguments
        return await spawn(program, __file__, "worker", *arguments[2:], **options)

    asyncio.create_subprocess_exec = spawn_torn  # type: ignore[assignment]
    return agent.run(load_settings(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
