"""Work that a reconcile round starts and does not wait for: each piece once, again only if it could not be done yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rephub.core.errors import IndeterminateError, UnavailableError

log = logging.getLogger(__name__)

Key = tuple[str, ...]


class Jobs:
    """Runs jobs by key.

    Args:
        on_bug: called with an exception that no job should let through; the daemon ends.
        on_done: called after each job that ended; a round may find more to do.
    """

    def __init__(self, on_bug: Callable[[BaseException], None], on_done: Callable[[], None]) -> None:
        self._on_bug = on_bug
        self._on_done = on_done
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._done: set[Key] = set()

    def once(self, key: Key, job: Callable[[], Awaitable[None]]) -> None:
        """Start a job unless it runs or was done; one that ends with UnavailableError may start again."""
        if key not in self._running and key not in self._done:
            task = asyncio.create_task(self._run(key, job), name=" ".join(key))
            self._running[key] = task

    def is_running(self, *key: str) -> bool:
        """Whether a job with the key is under way."""
        return key in self._running

    def forget(self, *key: str) -> None:
        """Let the job be done again."""
        self._done.discard(key)

    async def _run(self, key: Key, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except (UnavailableError, IndeterminateError) as exc:
            log.warning("job=%s later=%s", "/".join(key), exc.message)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 - handed on
            self._on_bug(exc)
        else:
            self._done.add(key)
        finally:
            del self._running[key]
        self._on_done()

    async def cancel(self) -> None:
        """End all jobs."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
