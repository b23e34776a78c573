"""`rephub up`: a whole stack on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rephub.cli.output import Cli, verb
from rephub.core import logs


@verb()
@click.option("--detach", is_flag=True, help="Return when all is ready; the stack goes on.")
@click.option("--no-restart", is_flag=True, help="Leave parts that die dead.")
@click.option("--no-monitor", is_flag=True, help="Start no monitor: no alerts.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (TOML).")
@click.option("--bootstrap", help="Use this Kafka (host:port[,host:port…]) and start none.")
@click.option("--redis", help="Use this Redis (URL) and start none.")
@click.option("--compose", is_flag=True, help="Run Kafka and Redis with Docker Compose.")
def up(
    cli: Cli,
    detach: bool,
    no_restart: bool,
    no_monitor: bool,
    config: Path | None,
    bootstrap: str | None,
    redis: str | None,
    compose: bool,
) -> None:
    """Start broker, Redis, hub, agent, diskbox and monitor on this machine.

    One JSON line on stdout says when all are ready and where they are. Without --detach the command stays until
    Ctrl-C, which stops all. Data stay under the state directory; the next `up` goes on with them.
    """
    from rephub.cli.detached import start_detached  # noqa: PLC0415 - `up --help` need not load Kafka's client
    from rephub.cli.plan import UpOptions  # noqa: PLC0415
    from rephub.cli.stack import run_stack  # noqa: PLC0415
    from rephub.core.config import check_state_dir_length  # noqa: PLC0415

    check_state_dir_length(cli.state_dir)

    options = UpOptions(
        cli.state_dir,
        config or cli.config,
        bootstrap,
        redis,
        compose,
        restart=not no_restart,
        monitor=not no_monitor,
    )

    def on_ready(document: dict[str, Any]) -> None:
        print(json.dumps(document), flush=True)
        if not detach and not document["already"]:
            cli.progress("ready; Ctrl-C stops it")

    if detach:
        on_ready(start_detached(options, cli.progress))
        return
    logs.configure()
    run_stack(options, cli.progress, on_ready)
