"""One stack for the tests that do no harm to it, and one of its own for each that does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Rig
from qsd import StorageDaemon
from stack import Stack


def _stack(*options: str) -> Iterator[Stack]:
    state_dir = Path(tempfile.mkdtemp(prefix="rh-"))
    stack = Stack(state_dir)
    try:
        stack.run("up", "--detach", *options)
        yield stack
    finally:
        stack.down()
        shutil.rmtree(state_dir)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Shared: a test uses volumes of its own names and kills nothing."""
    yield from _stack()


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """For tests that kill parts."""
    yield from _stack()


@pytest.fixture
def own_stack_no_restart() -> Iterator[Stack]:
    """Parts that die stay dead."""
    yield from _stack("--no-restart")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths end at 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="rh-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def rig(
    request: pytest.FixtureRequest, short_dir: Path, kafka: str, redis_url: str
) -> AsyncIterator[Rig]:
    """An agent in this process, with the module's RIG as its settings, if there is one."""
    found = Rig(short_dir, kafka, redis_url, **getattr(request.module, "RIG", {}))
    try:
        await found.start()
        yield found
    finally:
        await found.close()


@pytest.fixture
def daemons(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Callable[..., StorageDaemon]]:
    """Make a storage daemon with one disk, of the module's SIZE unless said; called again, on the same disk."""
    started: list[StorageDaemon] = []

    def start(driver: str = "raw", size: int | None = None) -> StorageDaemon:
        started.append(StorageDaemon(short_dir / "q", [size or request.module.SIZE], driver=driver))
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()
