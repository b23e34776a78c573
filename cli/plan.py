"""Which parts a stack on this machine has, and how each is run: settings in, stages for the supervisor out.

Kafka: a given bootstrap address > KAFKA_HOME > Docker Compose if asked for > the jars of `make setup`.
Redis: a given URL > Docker Compose if asked for > a process of our own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import tomli_w

from rephub.cli.endpoints import Endpoints
from rephub.cli.part_spec import PartSpec, Stage
from rephub.core.config import ENV_PREFIX, Settings, check_state_dir_length, load_with_origins, socket_path
from rephub.core.errors import UsageError
from rephub.infra import redis as own_redis
from rephub.infra.compose import ComposeServices
from rephub.infra.diskbox_list import grown_diskboxes
from rephub.infra.files import check_free_space, private_dir, write_atomic
from rephub.infra.kafka import reach
from rephub.infra.kafka.broker import Broker
from rephub.infra.kafka.topics import create_topics
from rephub.infra.ports import kept_ports
from rephub.infra.redis import RedisServer, ask_redis

DAEMONS = ("hub", "agent", "diskbox")
"""A stack is ready with these; the monitor follows, nothing waits for it."""

STATUS_SECONDS_MAX = 2.0

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}
"""glibc must not give each 64-KiB buffer back to the kernel: measured 1.6 to 2 times less CPU per journal batch."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the caller of `up` said."""

    state_dir: Path
    config: Path | None = None
    bootstrap: str | None = None
    redis: str | None = None
    compose: bool = False
    restart: bool = True
    monitor: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """A stack that can be started."""

    settings: Settings
    stages: list[Stage]
    endpoints: Callable[[dict[str, int | None]], Endpoints]
    """Made from the pids once all runs."""
    stop_outside: Callable[[], Awaitable[None]]
    """Ends what no process of ours is: containers."""
    grown: Callable[[], list[PartSpec]]
    """The monitor, and diskboxes that were added to the first one; those listed at the start are in the stages already."""
    scraped: Callable[[], list[dict[str, Any]]]
    """Where `/metrics` of all daemons is, as Prometheus' `file_sd_configs` read it."""


def make_plan(options: UpOptions) -> Plan:
    """Decide what runs; makes the state directory, chooses ports, starts nothing.

    Raises:
        UsageError: bad option or setting, or the path of the state directory is too long.
        UnavailableError: Java, jars or redis-server are missing.
        StorageError: the state directory cannot be used.
    """
    check_state_dir_length(options.state_dir)
    overrides = {
        "kafka": {"bootstrap": options.bootstrap} if options.bootstrap else None,
        "redis": {"url": options.redis} if options.redis else None,
    }
    settings, origins = load_with_origins(options.config, state_dir=options.state_dir, **overrides)
    given = {origin.key for origin in origins if origin.origin != "default"}
    if "kafka.bootstrap" in given:
        reach.parse_bootstrap(settings.kafka.bootstrap)
    state_dir = private_dir(settings.state_dir)
    check_free_space(state_dir)
    private_dir(state_dir / "logs")

    services = _services(options, settings, given)
    compose, bootstrap, url = services.compose, services.bootstrap, services.redis_url
    settings = _with_addresses(settings, bootstrap, url)
    config = state_dir / "config.toml"
    write_atomic(config, _as_toml(settings))

    async def look_at_given() -> None:
        if "kafka.bootstrap" in given:
            await reach.ask(bootstrap)
        if "redis.url" in given:
            await asyncio.to_thread(ask_redis, url)

    async def look() -> None:
        if compose:
            await asyncio.to_thread(compose.start)
        await reach.ask(bootstrap)
        await asyncio.to_thread(ask_redis, url)
        await create_topics(bootstrap)

    async def stop_outside() -> None:
        if compose:
            await asyncio.to_thread(compose.stop)

    def endpoints(pids: dict[str, int | None]) -> Endpoints:
        urls = {kind: daemon_url(settings, kind) for kind in DAEMONS}
        found = {kind: pid for kind, pid in pids.items() if kind != "monitor"}
        found |= compose.pids() if compose else {}
        return Endpoints(bootstrap, url, urls["hub"], state_dir, found, urls, str(config))

    grown = _Grown(settings)
    monitor = [_daemon_part(settings, "monitor", config)] if options.monitor else []

    def later() -> list[PartSpec]:
        return [*monitor, *grown.parts()]

    def scraped() -> list[dict[str, Any]]:
        kinds = [*DAEMONS, "monitor"] if options.monitor else DAEMONS
        return [
            *(_scraped(settings, kind) for kind in kinds),
            *(_scraped(one, "diskbox") for one in grown.settings()),
        ]

    stages = [
        Stage([], look_at_given),  # a wrong address is said before anything of ours starts
        Stage(services.parts, look),
        Stage([*(_daemon_part(settings, kind, config) for kind in DAEMONS), *grown.parts()], _done),
    ]
    return Plan(settings, stages, endpoints, stop_outside, later, scraped)


class _Grown:
    """The parts of the diskboxes that a stack has grown by, each made once: its port is its own while it runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts: dict[str, PartSpec] = {}
        self._made: dict[str, Settings] = {}

    def parts(self) -> list[PartSpec]:
        """One for each that is listed. Raises StorageError, UnavailableError: no port."""
        for name in grown_diskboxes(self._settings.state_dir):
            if name not in self._parts and name != self._settings.diskbox.id:
                self._parts[name] = self._make(name)
        return list(self._parts.values())

    def settings(self) -> list[Settings]:
        """What each that was made runs with."""
        return list(self._made.values())

    def _make(self, name: str) -> PartSpec:
        state_dir = self._settings.state_dir
        port = kept_ports(state_dir / "ports.json", [name])[name]
        diskbox = self._settings.diskbox.model_copy(update={"id": name, "port": port})
        settings = self._made[name] = self._settings.model_copy(update={"diskbox": diskbox})
        config = state_dir / f"config-{name}.toml"
        write_atomic(config, _as_toml(settings))
        return _daemon_part(settings, "diskbox", config)


@dataclass(frozen=True, slots=True)
class _Services:
    """Kafka and Redis, by whatever means."""

    bootstrap: str
    redis_url: str
    parts: list[PartSpec]
    compose: ComposeServices | None


def _services(options: UpOptions, settings: Settings, given: set[str]) -> _Services:
    bootstrap = settings.kafka.bootstrap if "kafka.bootstrap" in given else ""
    url = settings.redis.url if "redis.url" in given else ""
    parts: list[PartSpec] = []
    compose = None
    if options.compose:
        wanted = [] if bootstrap or os.environ.get("KAFKA_HOME") else ["kafka"]
        wanted += [] if url else ["redis"]
        if not wanted:
            raise UsageError("--compose has nothing to start: Kafka and Redis are both given")
        compose = ComposeServices(settings.state_dir, wanted)
        bootstrap = compose.bootstrap if "kafka" in wanted else bootstrap
        url = compose.redis_url if "redis" in wanted else url
    if not bootstrap:
        broker = Broker(settings.state_dir / "broker")
        broker.choose_ports()
        bootstrap = broker.bootstrap
        parts.append(_broker_part(broker))
    if not url:
        own_redis.check_installed()
        server = RedisServer(settings.state_dir / "redis", socket_path(settings, "redis.sock"))
        url = server.url
        parts.append(_redis_part(server))
    return _Services(bootstrap, url, parts, compose)


def daemon_url(settings: Settings, kind: str) -> str:
    """Base URL of a daemon's status server."""
    section = getattr(settings, kind)
    host = f"[{section.host}]" if ":" in section.host else section.host
    return f"http://{host}:{section.port}"


def _scraped(settings: Settings, kind: str) -> dict[str, Any]:
    address = daemon_url(settings, kind).removeprefix("http://")
    return {"targets": [address], "labels": {"kind": kind, "daemon": getattr(settings, kind).id}}


def daemon_argv(kind: str, config: Path) -> list[str]:
    """The command line of a daemon: the Python process itself, so that its pid is the daemon's."""
    return [sys.executable, "-m", "rephub.cli.main", kind, "--config", str(config)]


def daemon_env() -> dict[str, str]:
    """Our environment without settings: the settings file holds them already, merged."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    debug = {name: value for name, value in os.environ.items() if name == "REPHUB_DEBUG"}
    return MALLOC | kept | debug


async def is_ready(url: str) -> bool:
    """Whether the daemon behind a base URL calls itself ready."""
    timeout = aiohttp.ClientTimeout(total=STATUS_SECONDS_MAX)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/status") as answer:
            return (await answer.json()).get("ready") is True
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False


async def _done() -> None:
    """Nothing is left to do."""


def _with_addresses(settings: Settings, bootstrap: str, url: str) -> Settings:
    """The settings with real addresses: services as found, a fixed port for each daemon."""
    wanted = [kind for kind in (*DAEMONS, "monitor") if getattr(settings, kind).port == 0]
    ports = kept_ports(settings.state_dir / "ports.json", wanted)
    update = {kind: getattr(settings, kind).model_copy(update={"port": port}) for kind, port in ports.items()}
    update["kafka"] = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    update["redis"] = settings.redis.model_copy(update={"url": url})
    return settings.model_copy(update=update)


def _as_toml(settings: Settings) -> str:
    return (
        "# Written by `rephub up` at each start; changes here are lost. See `rephub up --config`.\n"
        + tomli_w.dumps(settings.model_dump(mode="json"))
    )


def _broker_part(broker: Broker) -> PartSpec:
    async def ready() -> bool:
        return await asyncio.to_thread(reach.answers, broker.bootstrap)

    return PartSpec(
        "broker", "broker", broker.argv, broker.output, ready, None, broker.directory, broker.prepare
    )


def _redis_part(server: RedisServer) -> PartSpec:
    async def ready() -> bool:
        return await asyncio.to_thread(own_redis.answers, server.socket_path)

    return PartSpec(
        "redis", "redis", server.argv, server.output, ready, None, server.directory, server.prepare
    )


def _daemon_part(settings: Settings, kind: str, config: Path) -> PartSpec:
    name = getattr(settings, kind).id
    url = daemon_url(settings, kind)
    log = settings.state_dir / "logs" / f"{name}.log"
    return PartSpec(name, kind, lambda: daemon_argv(kind, config), log, lambda: is_ready(url), daemon_env())
