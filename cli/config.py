"""`rephub config show`: the settings, and where each of them comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rephub.cli.output import Cli, verb, verb_group

config = verb_group("config", "Show the settings and where they come from.")


@verb(group=config)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Settings file (TOML).")
def show(cli: Cli, origin: bool, file: Path | None) -> None:
    """Show every setting as the daemons see it.

    Without --config, the file of the stack under the state directory is read, if there is one.
    """
    from rephub.core.config import load_with_origins  # noqa: PLC0415 - keep --help fast
    from rephub.infra.redis import without_password  # noqa: PLC0415

    of_stack = cli.state_dir / "config.toml"
    chosen = file or cli.config or (of_stack if of_stack.exists() else None)
    explicit: dict[str, Any] = {"state_dir": cli.state_dir} if cli.state_dir_given else {}
    _, origins = load_with_origins(chosen, **explicit)
    entries = [
        (one.key, without_password(str(one.value)) if one.key == "redis.url" else one.value, one.origin)
        for one in origins
    ]
    if origin:
        document: dict[str, Any] = {key: {"value": value, "origin": where} for key, value, where in entries}
        text = "\n".join(f"{key} = {value!r}  # {where}" for key, value, where in entries)
    else:
        document = {key: value for key, value, _ in entries}
        text = "\n".join(f"{key} = {value!r}" for key, value, _ in entries)
    cli.emit({"settings": document}, text)
