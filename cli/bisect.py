"""`rephub fot bisect`: find the last good point of a volume by testing some of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Any

import click

from rephub.cli.client import ControlClient, connect
from rephub.cli.fot_client import opened_test
from rephub.cli.output import Cli, verb
from rephub.cli.points import Point, parse_point
from rephub.cli.timeline import timeline_of
from rephub.core.errors import ConflictError, PointNotAvailableError, UsageError
from rephub.core.names import check_name
from rephub.core.nbd.uri import parse_uri
from rephub.projections.bisect import Search, Verdict

SEARCH_SECONDS = 86_400.0
"""For the whole search."""
SKIP = 125
"""The exit code that says "cannot be tested", as for `git bisect run`."""
ABORT = 128
"""Exit codes from here on, and signals, end the search."""
KILL_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a command that takes too long."""


@verb()
@click.argument("volume")
@click.option(
    "--good", required=True, metavar="POINT", help="offset:N, checkpoint:NAME or time:T that is good."
)
@click.option("--bad", required=True, metavar="POINT", help="A later one that is bad; also `latest`.")
@click.option("--read-only", is_flag=True, help="COMMAND may not write to what it tests.")
@click.option(
    "--probe-timeout",
    type=click.FloatRange(min=0.1),
    default=600,
    show_default=True,
    metavar="S",
    help="Seconds that COMMAND may take.",
)
@click.argument("command", nargs=-1, required=True)
async def bisect(
    cli: Cli,
    volume: str,
    good: str,
    bad: str,
    read_only: bool,
    probe_timeout: float,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on VOLUME as it was at some points between a good and a bad one, and say where it turned bad.

    COMMAND finds the point's NBD URI in REPHUB_FOT_URI; it exits with 0 if the point is good, 125 if that cannot be said.
    """
    check_name(volume, "volume")
    stop = asyncio.Event()
    # Not by cancelling: libraries below may swallow that (bpo-37658), and the search would go on.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    run = _Run(cli, volume, command, stop, read_only=read_only, seconds=probe_timeout)
    ends = {"good": _point(good), "bad": _point(bad)}
    async with (
        connect(cli, SEARCH_SECONDS) as client,
        # Held open: the history window must not pass what is searched.
        opened_test(cli, client, volume, ends["good"], read_only=True) as held,
    ):
        # Once it is held: what is listed stays.
        document = await timeline_of(cli, volume)
        last = await run.probe(client, ends["bad"])
        if last["offset"] <= held["offset"]:
            raise UsageError(
                f"the bad point {last['offset']} is not after the good one {held['offset']}",
                hint="--good is the older one",
            )
        _expect(last, "bad")
        _expect(await run.probe(client, Point("offset", str(held["offset"]))), "good")
        search = _search(document, held["offset"], last["offset"])
        while (offset := search.next()) is not None:
            search.tell(offset, await run.verdict(client, offset))
    seen = {probe["offset"]: probe for probe in run.probes}
    document = {
        "volume": volume,
        "last_good": seen[search.good]["resolved"],
        "first_bad": seen[search.bad]["resolved"],
        "untested": search.between,
        "probes": [{key: probe[key] for key in ("offset", "verdict", "seconds")} for probe in run.probes],
    }
    more = f"; {len(search.between)} between could not be tested" if search.between else ""
    cli.emit(document, f"last good: offset {search.good}, first bad: offset {search.bad}{more}")


def _search(document: dict[str, Any], good: int, bad: int) -> Search:
    """The search over a timeline's points."""
    ranges = [
        (item["first_offset"], item["last_offset"])
        for item in document["ranges"]
        if item["kind"] == "restorable"
    ]
    return Search(good, bad, [item["offset"] for item in document["checkpoints"]], ranges)


def _point(text: str) -> Point:
    """The point of `offset:N`, `N`, `checkpoint:NAME`, `time:T` or `latest`. Raises UsageError."""
    kind, _, value = text.partition(":")
    if text == "latest":
        return Point("latest", "")
    if text.isdecimal():
        kind, value = "offset", text
    if kind == "offset" and value.isdecimal():
        return parse_point(int(value), None, None, latest=False)
    if kind == "time" and value:
        return parse_point(None, value, None, latest=False)
    if kind == "checkpoint" and value:
        return parse_point(None, None, value, latest=False)
    raise UsageError(f"bad point {text!r}", hint="offset:N, checkpoint:NAME, time:T or latest")


def _expect(probe: dict[str, Any], verdict: Verdict) -> None:
    if probe["verdict"] != verdict:
        raise ConflictError(
            f"the point that was called {verdict}, offset {probe['offset']}, is {probe['verdict']}",
            hint="try the command by hand: rephub fot start, and give it the URI",
            offset=probe["offset"],
        )


class _Run:
    """Tests single points.

    Args:
        cli: for progress.
        volume: name.
        command: program and arguments.
        stop: set by Ctrl-C.
        read_only: what it gets.
        seconds: that it may take.
    """

    def __init__(
        self,
        cli: Cli,
        volume: str,
        command: tuple[str, ...],
        stop: asyncio.Event,
        *,
        read_only: bool,
        seconds: float,
    ) -> None:
        self.probes: list[dict[str, Any]] = []
        self._cli, self._volume, self._command = cli, volume, command
        self._read_only, self._seconds = read_only, seconds
        self._stop = stop

    async def probe(self, client: ControlClient, point: Point) -> dict[str, Any]:
        """Open a test at the point, run the command, stop it.

        Raises:
            RephubError: the test does not start, or the command says that the search is to end.
            click.Abort: Ctrl-C.
        """
        self._check_stop()
        began = time.monotonic()
        async with opened_test(self._cli, client, self._volume, point, read_only=self._read_only) as view:
            code = await self._execute(view)
        verdict: Verdict = "good" if code == 0 else "skip" if code == SKIP else "bad"
        probe = {
            "offset": view["offset"],
            "resolved": view["resolved"],
            "verdict": verdict,
            "seconds": round(time.monotonic() - began, 3),
        }
        self.probes.append(probe)
        self._cli.progress(f"offset {view['offset']}: {verdict} ({probe['seconds']:.1f} s)")
        return probe

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise click.Abort

    async def verdict(self, client: ControlClient, offset: int) -> Verdict:
        """Of one point; one that cannot be opened any more is skipped. Raises: as `probe`."""
        try:
            found = await self.probe(client, Point("offset", str(offset)))
        except PointNotAvailableError as exc:
            self._cli.progress(f"offset {offset}: skipped, {exc.message}")
            return "skip"
        verdict: Verdict = found["verdict"]
        return verdict

    async def _execute(self, view: dict[str, Any]) -> int:
        at, resolved = parse_uri(view["uri"]), view["resolved"]
        environment = os.environ | {
            "REPHUB_FOT_URI": view["uri"],
            "REPHUB_FOT_SOCKET": str(at.path or ""),
            "REPHUB_FOT_EXPORT": at.export,
            "REPHUB_OFFSET": str(view["offset"]),
            "REPHUB_CAPTURED_AT": resolved["captured_at"] or "",
            "REPHUB_CHECKPOINT": resolved["checkpoint"] or "",
        }
        try:
            # Its output is for people: stdout is the answer's alone.
            process = await asyncio.create_subprocess_exec(
                *self._command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=2
            )
        except OSError as exc:
            raise UsageError(
                f"cannot run {self._command[0]}: {exc.strerror}", hint="name a program after --"
            ) from exc
        waits = [asyncio.create_task(process.wait()), asyncio.create_task(self._stop.wait())]
        try:
            await asyncio.wait(waits, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            self._check_stop()
            code = process.returncode
        finally:
            for wait in waits:
                wait.cancel()
            await _end(process)
        if code is None:
            raise ConflictError(
                f"{self._command[0]} did not end within {self._seconds:g} s",
                hint="--probe-timeout gives it more",
            )
        if code < 0 or code >= ABORT:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise ConflictError(
                f"{self._command[0]} {how}: the search ends", hint="1 to 127 mean that a point is bad"
            )
        return code


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that it runs no more."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                end()
                async with asyncio.timeout(KILL_SECONDS):
                    await process.wait()
