"""A daemon that was told to end does end: libraries below may wait for what does not come any more."""

from __future__ import annotations

import asyncio
import logging
import os

log = logging.getLogger(__name__)


def end_within(seconds: float) -> None:
    """End this process with exit code 1 unless it has ended by then; called in its loop once it is to stop.

    A cancellation does not do: Faust's tasks may swallow it (python/cpython#81839), and `asyncio.run` waits for them.
    """
    asyncio.get_running_loop().call_later(seconds, _give_up)


def _give_up() -> None:
    """End at once, and say what it was that did not end."""
    tasks = [task for task in asyncio.all_tasks() if not task.done()]
    where = [f"{task.get_name()}: {frame}" for task in tasks for frame in task.get_stack(limit=1)]
    log.error("stop takes too long, ending at once", extra={"tasks": " | ".join(where)})
    os._exit(1)
