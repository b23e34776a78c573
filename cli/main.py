"""The command `rephub`: finds the verb, turns every failure into one line (or document) and an exit code.

Verbs are registered in VERBS and imported when they are called, so that `rephub --help` stays fast and a verb does
not pay for the libraries of another.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rephub.cli.output import Common, common_options, show_error
from rephub.core.errors import RephubError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

VERBS: dict[str, tuple[str, str]] = {
    # verb: ("module:attribute", one line of help)
    "up": ("rephub.cli.up:up", "Start broker, Redis, hub, agent, diskbox and monitor here."),
    "down": ("rephub.cli.down:down", "Stop what `up` started; data stay."),
    "agent": ("rephub.cli.daemons:agent", "Run one RepAgent in the foreground."),
    "hub": ("rephub.cli.daemons:hub", "Run the hub in the foreground."),
    "diskbox": ("rephub.cli.daemons:diskbox", "Run one diskbox in the foreground."),
    "monitor": ("rephub.cli.daemons:monitor", "Run the monitor in the foreground."),
    "protect": ("rephub.cli.protect:protect", "Protect a disk of a running QEMU."),
    "unprotect": ("rephub.cli.unprotect:unprotect", "End the protection of a volume."),
    "resync": ("rephub.cli.resync:resync", "Attach a volume anew and copy what differs."),
    "verify": (
        "rephub.cli.verify:verify",
        "Compare a recovery volume with its disk, and repair what differs.",
    ),
    "pause": ("rephub.cli.pause:pause", "Let go of a volume, to resize or back up its disk."),
    "resume": ("rephub.cli.pause:resume", "Capture a paused volume again, and copy what was written."),
    "wait": ("rephub.cli.wait:wait", "Wait until a volume is in a state."),
    "status": ("rephub.cli.status:status", "Say how well every volume is protected."),
    "top": ("rephub.cli.top:top", "Watch all volumes, live."),
    "events": ("rephub.cli.events:events", "Say what happened, and go on with it."),
    "alerts": ("rephub.cli.alerts:alerts", "List the alerts that are open."),
    "sync": ("rephub.cli.sync:sync", "Pause syncs, limit their rate, choose which goes first."),
    "history": ("rephub.cli.history:history", "Change how far back points are kept."),
    "timeline": ("rephub.cli.timeline:timeline", "List the points in time that can be opened."),
    "plot": ("rephub.cli.plot:plot", "Draw the timeline of a volume."),
    "checkpoint": ("rephub.cli.checkpoint:checkpoint", "Mark a point in time by name."),
    "fot": ("rephub.cli.fot:fot", "Open a volume as it was, writable, protection undisturbed."),
    "failover": ("rephub.cli.failover:failover", "Run a VM from a point, at once."),
    "move": ("rephub.cli.failover:move", "A planned fail-over that loses nothing."),
    "commit": ("rephub.cli.failover:commit", "Make a fail-over permanent."),
    "rollback": ("rephub.cli.failover:rollback", "Undo a fail-over."),
    "failback": ("rephub.cli.failback:failback", "Go back after a fail-over."),
    "promote": ("rephub.cli.promote:promote", "Make a point in time permanent."),
    "fleet": ("rephub.cli.fleet:fleet", "Look after the diskboxes."),
    "doctor": ("rephub.cli.doctor:doctor", "Check this machine and the services."),
    "config": ("rephub.cli.config:config", "Show the settings and where they come from."),
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All verbs, in the order a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one verb; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{VERBS[cmd_name][0]} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of verbs in --help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rephub", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (TOML).")
@common_options
@click.pass_context
def rephub(ctx: click.Context, json_: bool, state_dir: Path | None, config: Path | None) -> None:
    """Continuous data protection for QEMU/KVM disks, with Kafka as the journal."""
    ctx.obj = Common(json_, state_dir, config)


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says.

    Returns:
        The exit code.
    """
    as_json = "--json" in _before_dashes(arguments)
    try:
        result = rephub.main(args=list(arguments), prog_name="rephub", standalone_mode=False)
    except RephubError as exc:
        error = exc
    except click.exceptions.NoArgsIsHelpError as exc:
        if not as_json:
            print(exc.format_message(), file=sys.stderr)
            return UsageError.exit_code
        error = UsageError("which verb?")
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx else "rephub"
        error = UsageError(exc.format_message(), hint=f"see {path} --help")
    except click.ClickException as exc:
        error = UsageError(exc.format_message())
    except (click.Abort, KeyboardInterrupt):
        if as_json:
            show_error(RephubError("interrupted", hint="what was asked may still happen"), as_json=True)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as exc:  # noqa: BLE001 - the last line of defence: one line for the operator, never a bare stack
        if os.environ.get("REPHUB_DEBUG"):
            traceback.print_exc()
        error = RephubError(
            f"unexpected {type(exc).__name__}: {exc}",
            hint="set REPHUB_DEBUG=1 for a traceback, and report it",
        )
    else:
        return _exit_code(result)
    show_error(error, as_json=as_json)
    return error.exit_code


def main() -> None:
    """Entry point of the `rephub` command."""
    sys.exit(run(sys.argv[1:]))


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _exit_code(result: Any) -> int:
    """A verb may return its exit code; click returns that of --help the same way."""
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


if __name__ == "__main__":
    main()
