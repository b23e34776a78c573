"""What every verb shares: its options, how it answers, how it fails.

A verb is a function with click's arguments and options, decorated by `verb`; its first parameter is a `Cli`:

    @verb()
    @click.argument("volume")
    @click.option("--purge", is_flag=True, help="Delete the journal too.")
    async def unprotect(cli: Cli, volume: str, purge: bool) -> None:
        "End the protection of VOLUME."
        …
        cli.emit({"volume": volume, "state": "unprotected"}, f"{volume}: no longer protected")

The decorator adds `--json` and `--state-dir` and runs a coroutine in a loop of its own. A verb fails by raising a
RephubError; `cli/main.py` renders it and exits with the class's code. A verb may return an exit code itself
(`status --check`). Verbs of a second level: `fot = verb_group("fot", "Fail-over tests.")`, `@verb(group=fot)`.
Register the module in `cli/main.py`.

Invariant: data on stdout, everything else on stderr; with `--json` stdout holds exactly one JSON document per answer.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rephub.core.config import Settings, load_settings, resolve_state_dir
from rephub.core.errors import ConfirmationRequired, RephubError

PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or pipe: wide enough to cut nothing."""


@dataclass(frozen=True, slots=True)
class Common:
    """Options given before the verb."""

    json: bool = False
    state_dir: Path | None = None
    config: Path | None = None


class Cli:
    """How one verb talks to whoever called it.

    Args:
        json: answer with JSON documents.
        state_dir: what the command line says; None: environment or default. `self.state_dir` is absolute and
            may not exist; `self.state_dir_given` tells whether the command line named it.
        config: settings file, or None.
    """

    def __init__(self, *, json: bool, state_dir: Path | None = None, config: Path | None = None) -> None:
        self.json = json
        self.state_dir = resolve_state_dir(state_dir)
        self.state_dir_given = state_dir is not None
        self.config = config

    def settings(self, **overrides: Any) -> Settings:
        """Settings of this call: `--config`, environment, `--state-dir`. Raises UsageError."""
        return load_settings(self.config, state_dir=self.state_dir, **overrides)

    def emit(self, document: Mapping[str, Any], text: Any = None) -> None:
        """Answer.

        Args:
            document: what `--json` prints, on one line.
            text: what people read: a string or something that rich renders (a Table); None: `key: value` lines.
        """
        if self.json:
            line = json.dumps(document)
            print(line, flush=True)
        elif text is None:
            print("\n".join(f"{key}: {_plain(value)}" for key, value in document.items()), flush=True)
        elif isinstance(text, str):
            print(text, flush=True)
        else:
            _print_rich(text)

    def progress(self, message: str) -> None:
        """Tell a waiting person what happens; one line on stderr."""
        print(message, file=sys.stderr, flush=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Go on only if the operator said yes, by `--yes` or at the terminal.

        Raises:
            ConfirmationRequired: no `--yes` and no terminal to ask, or the answer was no.
        """
        if yes:
            return
        if self.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfirmationRequired(f"not confirmed: {question}")
        if not click.confirm(question, default=False, err=True):
            raise ConfirmationRequired(f"declined: {question}", hint="nothing was changed")


def verb(
    name: str | None = None, *, group: click.Group | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command of a function whose first parameter is a `Cli`. See the module's example.

    Args:
        name: of the verb; None: the function's, with `_` as `-`, a `_` at its end dropped.
        group: the first-level verb that it belongs to.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def callback(*, json_: bool, state_dir: Path | None, **arguments: Any) -> Any:
            common = click.get_current_context().find_object(Common) or Common()
            cli = Cli(
                json=json_ or common.json,
                state_dir=state_dir or common.state_dir,
                config=common.config,
            )
            if inspect.iscoroutinefunction(function):
                return asyncio.run(function(cli, **arguments))
            return function(cli, **arguments)

        title = name or function.__name__.rstrip("_").replace("_", "-")
        command = click.command(title)(common_options(callback))
        if group is not None:
            group.add_command(command)
        return command

    return decorate


def verb_group(name: str, text: str) -> click.Group:
    """A first-level verb that has verbs of its own."""
    return click.Group(name, help=text)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json` and `--state-dir`, as every verb and `rephub` itself take them."""
    with_dir = click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        help="Where the stack keeps its files [REPHUB_STATE_DIR].",
    )(function)
    return click.option("--json", "json_", is_flag=True, help="Answer with one JSON document.")(with_dir)


def error_document(exc: RephubError) -> dict[str, Any]:
    """What `--json` prints for an error."""
    return {"error": exc.to_dict()}


def show_error(exc: RephubError, *, as_json: bool) -> None:
    """Render an error: a JSON document on stdout, or two lines on stderr."""
    if as_json:
        print(json.dumps(error_document(exc)), flush=True)
        return
    print(f"error: {one_line(exc.message)}", file=sys.stderr)
    if exc.hint:
        print(f"hint: {one_line(exc.hint)}", file=sys.stderr)
    sys.stderr.flush()


def one_line(text: str) -> str:
    """The text without line ends or control characters: it may carry foreign output."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) or value is None else str(value)


def _print_rich(renderable: Any) -> None:
    from rich.console import Console  # noqa: PLC0415 - 40 ms that most verbs need not pay

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(renderable)
    sys.stdout.flush()
