"""Starting and stopping a fail-over test from the command line: what `fot start`, `fot stop` and `fot bisect` share."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from rephub.cli.client import ControlClient, error_of
from rephub.cli.output import Cli
from rephub.cli.points import Point, check_target, resolved
from rephub.cli.snippets import snippets
from rephub.core.errors import ConflictError, NotFoundError, RephubError
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def new_name() -> str:
    """Of a test that is to be opened."""
    return f"fot-{uuid.uuid4().hex[:12]}"


@contextlib.asynccontextmanager
async def opened_test(
    cli: Cli, client: ControlClient, volume: str, point: Point, *, read_only: bool
) -> AsyncIterator[dict[str, Any]]:
    """A test of one volume; it is stopped whatever happens, also if this is cancelled while it opens.

    Raises:
        RephubError: it did not start.
    """
    name = new_name()
    try:
        (view,) = await open_test(cli, client, volume, None, point, read_only=read_only, name=name)
        yield view
    finally:
        try:
            await asyncio.shield(end_test(cli, client, name))
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
    target = check_target(volume, group)
    name = name or new_name()
    seen: dict[str, Any] = {}

    def started(event: ev.Record) -> dict[str, Any] | None:
        if getattr(event, "fot", None) != name:
            return None
        if isinstance(event, ev.FotFailed):
            raise error_of(event)
        if isinstance(event, ev.FotStarted):
            seen["views"] = [
                _view(name, item) | snippets(item.uri, read_only=read_only) for item in event.views
            ]
        if isinstance(event, ev.FotAttachFailed):
            seen["error"] = error_of(event)
        if isinstance(event, ev.FotStopped):
            # After FotAttachFailed; or somebody else stopped it before the VM had it.
            raise seen.get("error") or ConflictError(
                f"{name} was stopped: {event.reason}", hint="start another"
            )
        return seen if isinstance(event, ev.FotAttached if qmp else ev.FotStarted) else None

    command = client.new(
        cmd.StartFot,
        fot=name,
        volume=volume,
        group=group,
        point_kind=point.kind,
        point_value=point.value,
        read_only=read_only,
        qmp=qmp,
    )
    cli.progress(f"{name}: opening {target}")
    answer = await client.ask(command, started, f"fail-over test {name} of {target}")
    views: list[dict[str, Any]] = answer.fields["views"]
    return views


async def end_test(cli: Cli, client: ControlClient, fot_id: str) -> bool:
    """Stop a test, wait until it is over; whether it was so before. Raises RephubError."""

    def stopped(event: ev.Record) -> dict[str, Any] | None:
        if isinstance(event, ev.FotDetached) and event.fot == fot_id and event.warning:
            cli.progress(f"warning: {event.warning}")
        if isinstance(event, (ev.FotStopped, ev.FotFailed)) and event.fot == fot_id:
            return {"fot": fot_id}
        return None

    command = client.new(cmd.StopFot, fot=fot_id)
    what = f"stop of fail-over test {fot_id}"
    answer = await client.ask(command, stopped, what)
    if answer.already and not answer.fields["ended"]:
        await client.follow(stopped, what, client.left_seconds)
    return answer.already


def _view(name: str, item: ev.ViewItem) -> dict[str, Any]:
    found = {"offset": item.offset, "captured_at": item.captured_at, "checkpoint": item.checkpoint}
    return {
        "fot": name,
        "volume": item.volume,
        "offset": item.offset,
        "uri": item.uri,
        "resolved": resolved(found),
    }
