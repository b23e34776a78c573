"""Starting and stopping a fail-over test from the command line: what `fot start`, `fot stop` and `fot bisect` share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from rephub.cli.client import ControlClient
from rephub.cli.output import Cli
from rephub.cli.points import Point, check_target
from rephub.cli.snippets import snippets
from rephub.consumers.asking import end_test, new_test_name, start_test
from rephub.core.errors import NotFoundError, RephubError


@contextlib.asynccontextmanager
async def opened_test(
    cli: Cli, client: ControlClient, volume: str, point: Point, *, read_only: bool
) -> AsyncIterator[dict[str, Any]]:
    """A test of one volume; it is stopped whatever happens, also if this is cancelled while it opens.

    Raises:
        RephubError: it did not start.
    """
    name = new_test_name()
    try:
        (view,) = await open_test(cli, client, volume, None, point, read_only=read_only, name=name)
        yield view
    finally:
        try:
            await asyncio.shield(stop_test(cli, client, name))
        except NotFoundError:
            pass  # it never was
        except RephubError as exc:
            # What went before is not to be hidden.
            cli.progress(f"warning: {name} may still be open: {exc.message}")


async def open_test(
    cli: Cli,
    client: ControlClient,
    volume: str | None,
    group: str | None,
    point: Point,
    *,
    read_only: bool = False,
    qmp: str | None = None,
    name: str = "",
) -> list[dict[str, Any]]:
    """Start a test; its views, as `fot start` answers them.

    Raises:
        RephubError: it did not start.
    """
    name = name or new_test_name()
    cli.progress(f"{name}: opening {check_target(volume, group)}")
    views = await start_test(client, volume, group, point, read_only=read_only, qmp=qmp, name=name)
    return [view | snippets(view["uri"], read_only=read_only) for view in views]


async def stop_test(cli: Cli, client: ControlClient, fot_id: str) -> bool:
    """Stop a test, wait until it is over; whether it was so before. Raises RephubError."""
    return await end_test(client, fot_id, lambda warning: cli.progress(f"warning: {warning}"))
