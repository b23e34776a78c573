"""Settings of every daemon: TOML file, then environment, then what the caller passes; typed and checked.

Lives here: the settings tree, its limits, where values came from, and the paths derived from `state_dir`.
Does not live here: what a running stack uses at the moment (`cli/endpoints.py`).

Order, last wins: defaults < TOML file < environment `REPHUB_SECTION__KEY` < keyword arguments.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from rephub.core.errors import UsageError
from rephub.core.names import check_name

MIB = 1 << 20
GIB = 1 << 30

SUN_PATH_BYTES = 107
"""Longest unix socket path: `sun_path` is 108 bytes with its NUL (unix(7))."""

SOCKET_NAME_BYTES_MAX = 32
"""Longest socket file name that we use; what is left of SUN_PATH_BYTES is for the state directory."""

STATE_DIR_BYTES_MAX = SUN_PATH_BYTES - SOCKET_NAME_BYTES_MAX - len("/s/")

ENV_PREFIX = "REPHUB_"

Port = Annotated[int, Field(ge=0, le=65535)]


def default_state_dir() -> Path:
    """`XDG_STATE_HOME/rephub`, else `~/.local/state/rephub` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "rephub"


def resolve_state_dir(given: Path | None = None) -> Path:
    """The state directory: what was given, else `REPHUB_STATE_DIR`, else the default; absolute."""
    chosen = given or Path(os.environ.get(f"{ENV_PREFIX}STATE_DIR") or default_state_dir())
    return Path(os.path.abspath(chosen.expanduser()))  # noqa: PTH100 - keeps symlinks, unlike resolve()


class Section(BaseModel):
    """A table of the TOML file; an unknown key is an error, because it is most often a typing error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_command(argv: tuple[str, ...]) -> tuple[str, ...]:
    if argv and not argv[0]:
        raise ValueError("the program has no name")
    return argv


class KafkaSettings(Section):
    """Where the journals and the control log are."""

    bootstrap: str = Field("127.0.0.1:9092", min_length=1, description="host:port[,host:port…]")


class RedisSettings(Section):
    """Where dirty marks, acks and leases are."""

    url: str = Field("redis://127.0.0.1:6379/0", pattern=r"^(redis|rediss|unix)://")


class DaemonSection(Section):
    """What all daemons have."""

    id: str
    host: str = Field("127.0.0.1", min_length=1, description="address of the status server")
    port: Port = Field(0, description="port of the status server; 0: any free one")

    @field_validator("id")
    @classmethod
    def _checked_id(cls, value: str) -> str:
        try:
            return check_name(value, "daemon")
        except UsageError as exc:
            raise ValueError(f"{exc.message}: {exc.hint}") from exc  # pydantic adds the key, we the origin


class AgentSettings(DaemonSection):
    """A RepAgent."""

    id: str = "agent1"
    workers: int = Field(1, ge=1, le=64, description="data path processes")
    buffer_bytes: ByteSize = Field(ByteSize(256 * MIB), ge=4 * MIB, description="queued writes, per volume")
    delay_max_ms: int = Field(50, ge=0, le=10_000, description="throttle: longest added delay of a write")
    watchdog_seconds: float = Field(5.0, gt=0, le=300, description="a worker silent for so long is killed")
    checkpoint_seconds: float = Field(5.0, ge=0, le=3600, description="automatic group checkpoints; 0: none")
    freeze_seconds: float = Field(10.0, gt=0, le=60, description="--quiesce: guests are thawed by then")
    rotate_seconds: float = Field(
        30.0, gt=0, le=86_400, description="dirty bitmap in QEMU: one record's span"
    )
    batch_bytes: ByteSize = Field(ByteSize(MIB), ge=4096, le=2 * MIB, description="journal batch")
    linger_ms: int = Field(
        25, ge=0, le=1000, description="a batch that no write waits for gathers so long, or up to three times"
    )
    compression: Literal["none", "zstd"] = Field("none", description="of journal batches")
    sampling: bool = Field(
        default=True, description="some written blocks are looked into, to notice encryption of a volume"
    )
    hold_max_ms: int = Field(50, ge=1, le=1000, description="group over several agents: answers held at most")
    peer_host: str = Field("", description="address for agents of other hosts; empty: a unix socket")
    peer_port: Port = Field(0, description="port beside it; 0: any free one")
    syncs_max: int = Field(4, ge=1, le=1000, description="syncs that run at a time")
    discover_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="VMs of protected volumes are looked at for new disks; 0: on QEMU's events only",
    )


class DiskboxSettings(DaemonSection):
    """A diskbox."""

    id: str = "diskbox1"
    capacity: int = Field(27, ge=1, le=1000, description="recovery volumes")
    scratch_bytes: ByteSize = Field(ByteSize(10 * GIB), ge=MIB, description="scratch of one fail-over test")
    hydrate_bytes_per_second: ByteSize = Field(
        ByteSize(64 * MIB), ge=0, description="how fast a test's part of the journal is copied; 0: no limit"
    )
    pins_at_limit: Literal["save", "end"] = Field(
        "save",
        description="a test that holds more history than asked: what is overwritten is saved for it, or it ends",
    )
    fold_bytes_per_second: ByteSize = Field(
        ByteSize(0), ge=0, description="how fast a fail-over goes into its recovery volume; 0: no limit"
    )
    move_host: str = Field(
        "", description="address on which moves to other hosts are served (nbd://); empty: a unix socket"
    )


class HubSettings(DaemonSection):
    """The hub."""

    id: str = "hub1"
    diskbox_lost_seconds: float = Field(
        300.0, ge=0, le=86400, description="a diskbox silent for so long is lost; 0: never by itself"
    )
    names: tuple[str, ...] = Field(
        (),
        description="further host names that the page is opened by; addresses and this host's own always are",
    )


class MonitorSettings(DaemonSection):
    """The monitor: when it raises alerts, and whom it tells."""

    id: str = "monitor1"
    rpo_target_seconds: float = Field(5.0, gt=0, le=86_400, description="alert: newest safe point is older")
    lag_target_seconds: float = Field(30.0, gt=0, le=86_400, description="alert: diskbox is further behind")
    silent_seconds: float = Field(5.0, ge=2, le=3600, description="alert: a daemon says nothing for so long")
    clock_skew_seconds: float = Field(
        2.0, gt=0, le=86_400, description="alert: a daemon's clock is off by more"
    )
    disk_used_max: float = Field(0.9, gt=0, lt=1, description="alert: a daemon's disk is fuller, part of 1")
    webhooks: tuple[str, ...] = Field((), max_length=16, description="URLs that get each alert as JSON")
    webhook_seconds_max: float = Field(10.0, gt=0, le=300, description="time limit of one request")
    webhook_retry_seconds_max: float = Field(
        600.0, ge=0, le=86400, description="an alert that a webhook did not take is tried again for so long"
    )
    command: tuple[str, ...] = Field((), description="program and arguments, run for each alert; empty: none")
    command_seconds_max: float = Field(30.0, gt=0, le=3600, description="the command is killed after so long")

    @field_validator("webhooks")
    @classmethod
    def _are_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                # The URL itself may be a secret.
                raise ValueError("a webhook is http://… or https://…")
        return value

    @field_validator("command")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _check_command(value)


class ProviderSettings(Section):
    """Who brings a new diskbox when all are full."""

    command: tuple[str, ...] = Field(
        (), description="program and arguments; empty: the supervisor of `rephub up`"
    )
    command_seconds: float = Field(30.0, gt=0, le=3600, description="the command is killed after so long")
    announce_seconds: float = Field(30.0, gt=0, le=3600, description="how long the new diskbox is waited for")

    @field_validator("command")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _check_command(value)


class SamplesSettings(Section):
    """What daemons publish of themselves."""

    period_seconds: float = Field(1.0, ge=0, le=60, description="between samples; 0: none, and no alerts")


class LogSettings(Section):
    """What is logged."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Settings(BaseSettings):
    """The whole tree. Build it with `load_settings`, which names the wrong key in a UsageError."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    state_dir: Path = Field(default_factory=default_state_dir)
    kafka: KafkaSettings = KafkaSettings.model_construct()
    redis: RedisSettings = RedisSettings.model_construct()
    agent: AgentSettings = AgentSettings.model_construct()
    diskbox: DiskboxSettings = DiskboxSettings.model_construct()
    hub: HubSettings = HubSettings.model_construct()
    monitor: MonitorSettings = MonitorSettings.model_construct()
    provider: ProviderSettings = ProviderSettings.model_construct()
    samples: SamplesSettings = SamplesSettings.model_construct()
    log: LogSettings = LogSettings.model_construct()

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return resolve_state_dir(value)

    @property
    def agent_dir(self) -> Path:
        """Files of this agent."""
        return self.state_dir / "agent" / self.agent.id

    @property
    def diskbox_dir(self) -> Path:
        """Files of this diskbox: recovery volumes, positions, indexes, scratch."""
        return self.state_dir / "diskbox" / self.diskbox.id

    @property
    def monitor_dir(self) -> Path:
        """Files of the monitor: what Faust keeps beside Kafka."""
        return self.state_dir / "monitor"

    @property
    def hub_dir(self) -> Path:
        """Files of the hub: snapshots."""
        return self.state_dir / "hub"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment; `load_settings` adds the file, which has no fixed place."""
        return (init_settings, env_settings)


@dataclass(frozen=True, slots=True)
class Origin:
    """One value and where it came from: `default`, `file PATH`, `environment NAME` or `argument`."""

    key: str
    value: Any
    origin: str


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """The settings of this process.

    Args:
        config: TOML file, or None for none.
        **overrides: what the command line says: `state_dir=…`, `kafka={"bootstrap": …}`.

    Raises:
        UsageError: file missing or not TOML, unknown key, value out of range; names the key and its origin.
    """
    return load_with_origins(config, **overrides)[0]


def load_with_origins(config: Path | None = None, **overrides: Any) -> tuple[Settings, list[Origin]]:
    """`load_settings`, with every value's origin, sorted by key."""
    document = _read_toml(config) if config else {}
    overrides = {key: value for key, value in overrides.items() if value is not None}

    class _WithFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *args: Any, **sources: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            first = super().settings_customise_sources(settings_cls, *args, **sources)
            return (*first, TomlConfigSettingsSource(settings_cls, config)) if config else first

    try:
        merged = _WithFile(**overrides)
    except ValidationError as exc:
        raise UsageError(
            _say(exc, document, overrides, config), hint="see docs/operations.md, Settings"
        ) from exc
    except SettingsError as exc:  # a list or a table in the environment that is no JSON
        raise UsageError(f"bad setting: {exc}", hint='a list is JSON there: ["program", "argument"]') from exc
    settings = Settings.model_construct(**{name: getattr(merged, name) for name in Settings.model_fields})
    origins = [
        Origin(key, value, _origin(key, document, overrides, config))
        for key, value in sorted(_leaves(settings.model_dump(mode="json")).items())
    ]
    return settings, origins


def socket_path(settings: Settings, name: str) -> Path:
    """Path of a unix socket of this stack; the directory exists with mode 0700 afterwards.

    Args:
        settings: say where the state directory is.
        name: file name, at most SOCKET_NAME_BYTES_MAX bytes.

    Raises:
        UsageError: the path would not fit into `sun_path`.
    """
    check_state_dir_length(settings.state_dir)
    if len(name.encode()) > SOCKET_NAME_BYTES_MAX:
        raise UsageError(f"socket name {name!r} is longer than {SOCKET_NAME_BYTES_MAX} bytes")
    directory = settings.state_dir / "s"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / name


def check_state_dir_length(state_dir: Path) -> None:
    """Refuse a state directory under which a unix socket could not be bound.

    Raises:
        UsageError: longer than STATE_DIR_BYTES_MAX.
    """
    size = len(os.fsencode(state_dir))
    if size > STATE_DIR_BYTES_MAX:
        raise UsageError(
            f"state directory path is {size} bytes long, at most {STATE_DIR_BYTES_MAX} fit a unix socket below it: "
            f"{state_dir}",
            hint="give a shorter --state-dir",
        )


def _read_toml(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise UsageError(
            f"cannot read settings file {config}: {exc.strerror}", hint="check --config"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(
            f"settings file {config} is not TOML: {exc}", hint="check the line it names"
        ) from exc


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _holds(tree: dict[str, Any], key: str) -> bool:
    at: Any = tree
    for name in key.split("."):
        if not isinstance(at, dict) or name not in at:
            return False
        at = at[name]
    return True


def _environment_name(key: str) -> str | None:
    """The variable that sets the key, whatever its case; None if there is none."""
    wanted = ENV_PREFIX + key.replace(".", "__").upper()
    return next((name for name, value in os.environ.items() if value and name.upper() == wanted), None)


def _origin(key: str, document: dict[str, Any], overrides: dict[str, Any], config: Path | None) -> str:
    if _holds(overrides, key):
        return "argument"
    if name := _environment_name(key):
        return f"environment {name}"
    return f"file {config}" if _holds(document, key) else "default"


def _say(
    exc: ValidationError, document: dict[str, Any], overrides: dict[str, Any], config: Path | None
) -> str:
    """One line about the first wrong value."""
    first = exc.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"bad setting {key} ({_origin(key, document, overrides, config)}): {first['msg']}"
