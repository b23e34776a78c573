"""Real services for tests: started once per test session, on free addresses, ended by pid.

Fixtures: `kafka` (bootstrap address), `redis_url`, `qemu` (which tools there are), and `short_dir` (a directory whose
path leaves room for unix sockets). A test that uses one carries the marker of the same name: `@pytest.mark.kafka`.

`REQUIRE=kafka,redis,qemu` (or `all`) makes a missing service a failure; otherwise its tests are skipped.
`REPHUB_TEST_KAFKA=host:port` and `REPHUB_TEST_REDIS=url` use services that run already.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rephub.core.errors import UnavailableError
from rephub.infra.kafka.broker import Broker, find_runtime
from rephub.infra.redis import RedisServer

NAMES = ("kafka", "redis", "qemu")
QEMU_TOOLS = ("qemu-storage-daemon", "qemu-img", "qemu-io", "qemu-nbd", "nbdinfo", "nbdcopy", "fio")


@dataclass(frozen=True)
class Service:
    """Whether a service can be had here."""

    name: str
    version: str
    missing: str = ""


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _kafka() -> Service:
    if address := os.environ.get("REPHUB_TEST_KAFKA"):
        return Service("kafka", f"at {address}")
    try:
        runtime = find_runtime()
    except UnavailableError as exc:
        return Service("kafka", "", exc.message)
    jar = next(runtime.libs.glob("kafka-server-common-*.jar")).stem
    return Service("kafka", f"{jar.rpartition('-')[2]} on {_first_line(runtime.java, '-version')}")


def _redis() -> Service:
    if url := os.environ.get("REPHUB_TEST_REDIS"):
        return Service("redis", f"at {url}")
    if not shutil.which("redis-server"):
        return Service("redis", "", "redis-server is not installed")
    found = re.search(r"v=(\S+)", _first_line("redis-server", "--version"))
    return Service("redis", found.group(1) if found else "?")


def _qemu() -> Service:
    if missing := [tool for tool in QEMU_TOOLS if not shutil.which(tool)]:
        return Service("qemu", "", f"not installed: {', '.join(missing)}")
    return Service("qemu", _first_line("qemu-img", "--version").removeprefix("qemu-img version "))


def probe() -> dict[str, Service]:
    """What can be had on this machine."""
    return {service.name: service for service in (_kafka(), _redis(), _qemu())}


def required() -> set[str]:
    """Services that must be there.

    Raises:
        pytest.UsageError: REQUIRE names something unknown.
    """
    names = {name.strip() for name in os.environ.get("REQUIRE", "").split(",") if name.strip()}
    if unknown := names - {*NAMES, "all"}:
        raise pytest.UsageError(
            f"REQUIRE names unknown services {sorted(unknown)}; known: {', '.join(NAMES)}, all"
        )
    return set(NAMES) if "all" in names else names


def missing_required(services: dict[str, Service]) -> str:
    """Which services REQUIRE names and are missing, as one line; empty if none."""
    return "; ".join(
        f"{name}: {services[name].missing}" for name in sorted(required()) if services[name].missing
    )


def cannot(reason: str) -> None:
    """End a test that needs what this machine forbids: a skip, or with REQUIRE a failure."""
    if required():
        pytest.fail(reason)
    pytest.skip(reason)


def needs(services: dict[str, Service], item: pytest.Item) -> str:
    """Why a test cannot run here; empty if it can."""
    return "; ".join(
        services[name].missing for name in NAMES if item.get_closest_marker(name) and services[name].missing
    )


@pytest.fixture(scope="session")
def kafka(short_session_dir: Path) -> Iterator[str]:
    """Bootstrap address of a real broker that lives as long as the session: use topic names of your own."""
    if address := os.environ.get("REPHUB_TEST_KAFKA"):
        yield address
        return
    broker = Broker(short_session_dir / "broker")
    broker.start()
    yield broker.bootstrap
    broker.stop()


@pytest.fixture(scope="session")
def redis_url(short_session_dir: Path) -> Iterator[str]:
    """URL of a real Redis that lives as long as the session: use key names of your own."""
    if url := os.environ.get("REPHUB_TEST_REDIS"):
        yield url
        return
    server = RedisServer(short_session_dir / "redis", short_session_dir / "s" / "redis.sock")
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def short_session_dir() -> Iterator[Path]:
    """A directory of the session with a short path."""
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory of the test with a short path: unix sockets fit below it."""
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def new_broker(short_dir: Path) -> Iterator[Callable[[], Broker]]:
    """Makes brokers of the test's own, for tests that stop or break one; not started yet."""
    made: list[Broker] = []

    def make() -> Broker:
        made.append(Broker(short_dir / f"broker{len(made)}"))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()
