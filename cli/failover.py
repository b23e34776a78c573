"""`rephub failover`, `move`, `commit`, `rollback`: run a VM from a point, at once; make that permanent, or undo it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rephub.cli import plans as plans_of
from rephub.cli.client import ControlClient, connect, error_of
from rephub.cli.output import Cli, verb
from rephub.cli.points import (
    Point,
    absolute,
    check_target,
    parse_point,
    point_options,
    timeout_option,
)
from rephub.cli.snippets import in_a_vm, snippets
from rephub.consumers.asking import plan_document
from rephub.core.errors import ConflictError, UsageError
from rephub.core.units import format_bytes, format_duration, parse_duration
from rephub.projections.points import resolved
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

LATEST = Point("latest", "")


def _opening_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `failover` and `move` have in common."""
    for option in (
        timeout_option(120),
        click.option(
            "--rollback-after", metavar="TIME", help="Undo it by itself if it is not committed by then."
        ),
        click.option(
            "--qmp", metavar="SOCKET", help="Give it to the VM behind this monitor, and let that run."
        ),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Say what would be lost, change nothing."),
    ):
        function = option(function)
    return function


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="All volumes of this group, all or none.")
@point_options
@_opening_options
async def failover(
    cli: Cli,
    volume: str | None,
    group: str | None,
    offset: int | None,
    time_: str | None,
    checkpoint: str | None,
    latest: bool,
    dry_run: bool,
    yes: bool,
    qmp: str | None,
    rollback_after: str | None,
    seconds: float,
) -> None:
    """Run from VOLUME, or all of a group, as it was at a point: capture ends, a VM may write at once."""
    job = _Failover(cli, volume, group, qmp, rollback_after, planned=False)
    await job.do(parse_point(offset, time_, checkpoint, latest), seconds, dry_run=dry_run, yes=yes)


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="All volumes of this group, all or none.")
@_opening_options
async def move(
    cli: Cli,
    volume: str | None,
    group: str | None,
    dry_run: bool,
    yes: bool,
    qmp: str | None,
    rollback_after: str | None,
    seconds: float,
) -> None:
    """A planned fail-over: stops the VM of VOLUME, or of a group, drains its last writes first, and loses nothing."""
    job = _Failover(cli, volume, group, qmp, rollback_after, planned=True)
    await job.do(LATEST, seconds, dry_run=dry_run, yes=yes)


class _Failover:
    """One target, planned and then opened."""

    def __init__(
        self,
        cli: Cli,
        volume: str | None,
        group: str | None,
        qmp: str | None,
        rollback_after: str | None,
        *,
        planned: bool,
    ) -> None:
        self.cli = cli
        self.volume, self.group, self.planned = volume, group, planned
        self.target = check_target(volume, group)
        self.qmp = absolute(qmp) if qmp else None
        self.rollback_seconds = _whole_seconds(rollback_after) if rollback_after is not None else None

    async def do(self, point: Point, seconds: float, *, dry_run: bool, yes: bool) -> None:
        """Plan, ask, open, answer."""
        verb_name = "move" if self.planned else "fail over"
        async with connect(self.cli, seconds) as client:
            if dry_run or not yes:
                plans = await self._plan(client, point)
                if dry_run:
                    document = self._document(plans) | {"dry_run": True}
                    self.cli.emit(document, plans_of.table(plans, planned=True))
                    return
                point = plans_of.confirm(
                    self.cli, f"{verb_name} {self.target}?", f"plan for {self.target}", plans,
                    self._document(plans), point if not self.planned else LATEST,
                )  # fmt: skip
            document = await self._open(client, point)
        opened = document.get("volumes", [document])
        self.cli.emit(document, "\n".join(_sentence(document["failover"], view) for view in opened))

    def _command(self, client: ControlClient, point: Point, *, dry_run: bool) -> cmd.Failover:
        return client.new(
            cmd.Failover,
            volume=self.volume,
            group=self.group,
            point_kind=point.kind if not self.planned else LATEST.kind,
            point_value=point.value if not self.planned else LATEST.value,
            dry_run=dry_run,
            planned=self.planned,
            qmp=self.qmp,
            rollback_seconds=self.rollback_seconds,
        )

    async def _plan(self, client: ControlClient, point: Point) -> list[dict[str, Any]]:
        command = self._command(client, point, dry_run=True)

        def planned(event: ev.Record) -> dict[str, Any] | None:
            if getattr(event, "failover", None) != f"fo-{command.id}":
                return None
            if isinstance(event, ev.FailoverFailed):
                raise error_of(event)
            if isinstance(event, ev.FailoverPlanned):
                return {"plans": [plan_document(plan) for plan in event.plans]}
            return None

        answer = await client.ask(command, planned, f"plan of fail-over of {self.target}")
        if answer.already:
            raise ConflictError(
                f"{self.target} is failed over already",
                hint="rephub status; rephub commit, or rephub rollback",
            )
        plans: list[dict[str, Any]] = answer.fields["plans"]
        return plans

    async def _open(self, client: ControlClient, point: Point) -> dict[str, Any]:
        command = self._command(client, point, dry_run=False)
        seen: dict[str, Any] = {"failover": f"fo-{command.id}"}

        def opened(event: ev.Record) -> dict[str, Any] | None:
            if getattr(event, "failover", None) != seen["failover"]:
                return None
            match event:
                case ev.FailoverFailed():
                    raise error_of(event)
                case ev.FailoverRolledBack():
                    raise ConflictError(
                        f"the fail-over was rolled back: {event.reason}",
                        hint="rephub failover begins another",
                    )
                case ev.FailoverDrained():
                    self.cli.progress(f"{self.target}: the VM is stopped, its last writes are in the journal")
                case ev.FailoverStarted():
                    self.cli.progress(f"{self.target}: capture ends")
                case ev.FailoverOpened():
                    seen["views"] = [_plain(view) for view in event.views]
                    seen["plans"] = [_plain(plan) for plan in event.plans]
                case ev.FailoverAttachFailed():
                    # The views are open all the same.
                    seen["warning"] = error_of(event).message
                case _:
                    pass
            ends = (ev.FailoverAttached, ev.FailoverAttachFailed) if self.qmp else ev.FailoverOpened
            return seen if isinstance(event, ends) else None

        answer = await client.ask(command, opened, f"fail-over of {self.target}")
        found = answer.fields
        document = self._document(_opened(found)) | {"failover": found["failover"]}
        if "warning" in found:
            self.cli.progress(f"the VM did not get it: {found['warning']}")
            document |= {"warning": found["warning"]}
        return document | ({"already": True} if answer.already else {})

    def _document(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return items[0] if self.volume is not None else {"group": self.group, "volumes": items}


def _whole_seconds(text: str) -> int:
    seconds = int(parse_duration(text))
    if seconds < 1:
        raise UsageError(f"--rollback-after {text} is no time", hint="for example --rollback-after 1h")
    return seconds


def _plain(item: ev.ViewItem | ev.PlanItem) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def _opened(found: dict[str, Any]) -> list[dict[str, Any]]:
    """By volume: where it is served, and what the fence has cut off."""
    lost = {plan["volume"]: plan for plan in found["plans"]}
    return [
        {
            "volume": view["volume"],
            "offset": view["offset"],
            "uri": view["uri"],
            "resolved": resolved(view),
            **snippets(view["uri"]),
            **{name: lost[view["volume"]][name] for name in ("lost_events", "lost_bytes", "lost_seconds")},
        }
        for view in found["views"]
    ]


def _sentence(failover_id: str, view: dict[str, Any]) -> str:
    lost = (
        f"{view['lost_events']} events ({format_bytes(view['lost_bytes'])}, "
        f"{format_duration(view['lost_seconds'])}) after it are lost"
        if view["lost_events"]
        else "nothing is lost"
    )
    served = f"{failover_id}: {view['volume']} at offset {view['offset']}: {view['uri']}; {lost}"
    return f"{served}\n{in_a_vm(view)}"


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="The group that was failed over.")
@click.option("--close", is_flag=True, help="Stop serving it then: a VM starts from the file itself.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@timeout_option(3600)
async def commit(
    cli: Cli, volume: str | None, group: str | None, close: bool, yes: bool, seconds: float
) -> None:
    """Make the fail-over of VOLUME permanent: what its VM writes goes into the recovery volume; no way back."""
    target = check_target(volume, group)
    cli.confirm(f"commit {target}? There is no rollback after it", yes=yes)
    async with connect(cli, seconds) as client:
        command = client.new(cmd.Commit, volume=volume, group=group, close=close)
        seen: dict[str, str] = {}

        def committed(event: ev.Record) -> dict[str, Any] | None:
            if event.command_id == command.id and isinstance(
                event, ev.CommitRequested | ev.FailoverCloseRequested
            ):
                seen["failover"] = event.failover
            if isinstance(event, ev.FailoverFolded) and event.failover == seen.get("failover"):
                cli.progress(f"{target}: the journal is in the recovery volume")
            ends = ev.FailoverClosed if close else ev.FailoverCommitted
            if isinstance(event, ends) and event.failover == seen.get("failover"):
                state = "closed" if close else "committed"
                plans = [_plain(plan) for plan in event.plans]
                return {"failover": event.failover, "state": state, "plans": plans}
            return None

        answer = await client.ask(command, committed, f"commit of {target}")
    fields = answer.fields
    document = {
        "failover": fields["failover"],
        "state": fields["state"],
        "volumes": [
            {"volume": plan["volume"], "offset": plan["offset"], "path": plan["path"]}
            for plan in fields["plans"]
        ],
    } | ({"volume": volume} if volume else {"group": group})
    paths = ", ".join(f"{item['volume']}: {item['path']}" for item in document["volumes"])
    cli.emit(
        document | ({"already": True} if answer.already else {}),
        f"{document['failover']}: {fields['state']}; {paths}",
    )


@verb()
@click.argument("volume", required=False)
@click.option("--group", metavar="G", help="The group that was failed over.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@timeout_option(120)
async def rollback(cli: Cli, volume: str | None, group: str | None, yes: bool, seconds: float) -> None:
    """Undo the fail-over of VOLUME: what its VM wrote is discarded, and it is replicated as before."""
    target = check_target(volume, group)
    cli.confirm(f"roll back {target}? What was written since the fail-over is discarded", yes=yes)
    async with connect(cli, seconds) as client:
        command = client.new(cmd.Rollback, volume=volume, group=group)
        seen: dict[str, str] = {}

        def undone(event: ev.Record) -> dict[str, Any] | None:
            if event.command_id == command.id and isinstance(event, ev.RollbackRequested):
                seen["failover"] = event.failover
            if isinstance(event, ev.FailoverRolledBack) and event.failover == seen.get("failover"):
                return {"failover": event.failover, "state": "rolled_back"}
            return None

        answer = await client.ask(command, undone, f"rollback of {target}")
    document = {name: answer.fields[name] for name in ("failover", "state")}
    document |= {"volume": volume} if volume else {"group": group}
    cli.emit(
        document | ({"already": True} if answer.already else {}),
        f"{document['failover']}: {document['state']}",
    )
