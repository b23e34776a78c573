"""`rephub agent`, `hub`, `diskbox`, `monitor`: one daemon in the foreground, for real sites and for the supervisor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rephub.cli.output import Cli, verb
from rephub.core import logs
from rephub.core.config import check_state_dir_length, load_settings

_config = click.option("--config", type=click.Path(path_type=Path), help="Settings file (TOML).")


@verb()
@_config
def agent(cli: Cli, config: Path | None) -> int:
    """Run one RepAgent: it captures the writes of the QEMUs on its host. SIGTERM detaches and ends it."""
    return _run("rephub.agent.main", cli, config)


@verb()
@_config
def hub(cli: Cli, config: Path | None) -> int:
    """Run the hub: it takes commands and decides. SIGTERM ends it."""
    return _run("rephub.consumers.hub.main", cli, config)


@verb()
@_config
def diskbox(cli: Cli, config: Path | None) -> int:
    """Run one diskbox: it owns recovery volumes and their views. SIGTERM ends it."""
    return _run("rephub.consumers.diskbox.main", cli, config)


@verb()
@_config
def monitor(cli: Cli, config: Path | None) -> int:
    """Run the monitor: it watches the samples of all daemons and raises alerts. SIGTERM ends it."""
    return _run("rephub.consumers.monitor.main", cli, config)


def _run(module: str, cli: Cli, config: Path | None) -> int:
    """Load the settings, send the log to stderr, hand over to the daemon.

    The state directory is the settings file's unless the command line names another one.
    """
    explicit: dict[str, Any] = {"state_dir": cli.state_dir} if cli.state_dir_given else {}
    settings = load_settings(config or cli.config, **explicit)
    check_state_dir_length(settings.state_dir)
    logs.configure(settings.log.level)
    run: Callable[..., int] = importlib.import_module(module).run
    return run(settings)
