"""`top`, `events`, `alerts`, `plot` and `status --watch` on a real stack under load.

With REPHUB_SCREENSHOTS=1 the picture of `top` in docs is made.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import queue
import re
import select
import shutil
import signal
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from browser import SCREENSHOTS
from qsd import Load, StorageDaemon
from rephub.cli.main import run
from rephub.cli.top_frame import Look, Traces, frame
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.fetch import fetch_or_raise
from rephub.core.names import ALERTS_TOPIC, EVENTS_TOPIC
from rephub.infra.kafka.topics import create_topics
from rephub.schemas import alerts as al
from rephub.schemas import events as ev
from stack import REPHUB, Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

VOLUMES = ("watched-web", "watched-db", "watched-mail")
SHOT_SECONDS = 45.0
"""Of load before the picture for the docs is taken."""


@pytest.fixture(scope="module")
def busy(stack: Stack) -> Iterator[Stack]:
    """Three volumes that are written to all the time."""
    folder = Path(tempfile.mkdtemp(prefix="rh-"))
    qsd = StorageDaemon(folder / "q", [16 << 20] * len(VOLUMES))
    for number, name in enumerate(VOLUMES):
        stack.protect(name, qsd.qmp, f"disk{number}", "--group", "watched")
    stop = threading.Event()

    def write(number: int) -> None:
        load = Load(qsd.uri(number))
        at = 0
        while not stop.is_set():
            for _ in range(2 + 6 * (int(time.monotonic() / (4 + number)) % 3)):
                at += 1
                load("write", start=(at % 1000) * 16_384, length=4096 << number, seed=at)
            stop.wait(0.05)
        load.close()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(len(VOLUMES))]
    for writer in writers:
        writer.start()
    yield stack
    stop.set()
    for writer in writers:
        writer.join()
    try:
        for name in VOLUMES:
            stack.run("unprotect", name)
    finally:
        qsd.stop()
        shutil.rmtree(folder)


class Verb:
    """The command itself, as a process whose lines are read as they come; killed at the end of a `with`."""

    def __init__(self, stack: Stack, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [REPHUB, "--state-dir", str(stack.state_dir), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def line(self, part: str, seconds: float = 40) -> str:
        """The next line that has the part in it; the test fails if none comes."""
        deadline = time.monotonic() + seconds
        seen = []
        while not seen or part not in seen[-1]:
            try:
                seen.append(self._lines.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError((part, seen)) from None
        return seen[-1]

    def rest(self) -> list[str]:
        """What is printed until its end, which comes by itself."""
        assert self.process.wait(40) == 0
        self._reader.join()
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def interrupt(self) -> int:
        """As Ctrl-C does; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def test_events_of_a_volume_from_the_beginning(busy: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state-dir", str(busy.state_dir), "events", "--volume", VOLUMES[0]]) == 0
    text = capsys.readouterr().out
    assert f"{VOLUMES[0]}: writes are captured in epoch 1" in text
    assert f"{VOLUMES[1]}: writes are captured" not in text
    busy.fails("events", "--volume", "never-seen", code=4)
    busy.fails("events", "--from-offset", "1000000", code=2)


def test_events_are_followed_until_ctrl_c(busy: Stack) -> None:
    with Verb(
        busy, "events", "--follow", "--json", "--alerts", "--volume", VOLUMES[0], "--since", "1h"
    ) as verb:
        verb.line("FilterAttached")
        fot = busy.run("fot", "start", VOLUMES[0], "--latest")
        busy.run("fot", "stop", fot["fot"])
        started, stopped = json.loads(verb.line("FotStarted")), json.loads(verb.line("FotStopped"))
        assert verb.interrupt() == 130
    assert started["record"]["fot"] == stopped["record"]["fot"] == fot["fot"]
    assert stopped["volumes"] == [VOLUMES[0]], "though the event does not name it"
    assert started["text"] == f"test {fot['fot']} is open: {VOLUMES[0]} at offset {fot['offset']}"


def test_status_is_watched_through_a_pipe(busy: Stack) -> None:
    for options in ((), ("--json",)):
        with Verb(busy, "status", "--watch", *options, VOLUMES[0]) as verb:
            for _ in range(2):
                line = verb.line(VOLUMES[0])
                assert not options or json.loads(line)["volumes"][0]["state"] == "protected"
            assert verb.interrupt() == 130
    busy.fails("status", "--watch", "never-seen", code=4)


def test_one_frame_for_scripts(
    busy: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy.wait_until("samples", lambda: _measured(busy))
    document = busy.run("top", "--once")
    assert {one["volume"] for one in document["volumes"]} >= {*VOLUMES}
    assert {one["name"].partition("/")[0] for one in document["parts"]} >= {"hub", "agent", "diskbox"}
    for width in (40, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(["--state-dir", str(busy.state_dir), "top", "--once"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert all(any(line.startswith(name) for line in lines) for name in VOLUMES)


def _measured(stack: Stack) -> bool:
    series = stack.run("top", "--once")["series"]
    return all(series.get(name, {}).get("at") for name in VOLUMES)


def test_top_at_a_terminal(busy: Stack) -> None:
    """Draws, sorts at a key, ends at q, and leaves the terminal as it was."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 110))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [REPHUB, "--state-dir", str(busy.state_dir), "top"], stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    try:
        _until(ours, VOLUMES[2])
        os.write(ours, b"w")
        _until(ours, "by writes")
        os.write(ours, b"R")
        _until(ours, "by writes, reversed")
        os.write(ours, b"q")
        _until(ours, "\x1b[?1049l")
        assert process.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def _until(terminal: int, part: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    text = ""
    while part not in text:
        assert time.monotonic() < deadline, (part, text[-2000:])
        if select.select([terminal], [], [], 0.2)[0]:
            text += os.read(terminal, 65_536).decode(errors="replace")


def test_top_without_a_hub(tmp_path: Path) -> None:
    document = {
        "bootstrap": "127.0.0.1:9",
        "redis": "",
        "web": "http://127.0.0.1:9",
        "state_dir": str(tmp_path),
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(document | {"pids": {}, "urls": {}, "config": ""}))
    Stack(tmp_path).fails("top", "--once", code=6)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_timeline_is_drawn(busy: Stack, tmp_path: Path, form: str) -> None:
    busy.wait_until("samples", lambda: _measured(busy))
    path = tmp_path / f"timeline.{form}"
    document = busy.run("plot", VOLUMES[0], "--out", str(path), "--since", "10m")
    assert document["samples"] > 0
    assert document["ranges"] > 0
    if form == "svg":
        assert ET.fromstring(path.read_text()).tag.endswith("svg")
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(busy: Stack, tmp_path: Path) -> None:
    busy.fails("plot", "never-seen", code=4)
    busy.fails("plot", VOLUMES[0], "--out", str(tmp_path / "no/such/folder.png"), code=12)


async def test_alerts_from_their_topic(kafka: str, tmp_path: Path) -> None:
    """Raised, raised again, cleared; by a broker alone."""
    await create_topics(kafka)
    fields = {
        "source": "monitor/m", "rule": "gap_open", "subject_kind": "volume", "subject": "v1", "stats_offset": 1, "hint": "look [red]",
        "value": 9.0, "threshold": 5.0, "unit": "s", "since": 1, "severity": "critical", "text": "v1 is in a gap",
    }  # fmt: skip
    first = al.AlertRaised(id="1", at=1_000_000, alert="a", **fields)
    second = al.AlertRaised(
        id="3", at=3_000_000, alert="b", **(fields | {"subject": "v2", "severity": "warning"})
    )
    over = al.AlertCleared(
        id="2", at=2_000_000, source="monitor/m", alert="a", rule="gap_open", subject_kind="volume", subject="v1",
        stats_offset=2, raised_at=1_000_000, text="v1 is well",
    )  # fmt: skip
    document = {"bootstrap": kafka, "redis": "", "web": "", "state_dir": str(tmp_path)}
    (tmp_path / "endpoints.json").write_text(json.dumps(document | {"pids": {}, "urls": {}, "config": ""}))
    stack = Stack(tmp_path)

    async def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        return await asyncio.to_thread(stack.call, *arguments)

    log = KafkaControlLog(kafka, topics=(ALERTS_TOPIC,))
    try:
        assert await call("alerts", "--check") == (0, {"alerts": []})
        await log.append(ALERTS_TOPIC, first)
        await log.append(ALERTS_TOPIC, first)
        code, found = await call("alerts", "--check")
        assert code == 3
        (one,) = found["alerts"]
        assert (one["alert"], one["raised_at"], one["cleared_at"]) == ("a", "1970-01-01T00:00:01Z", None)
        await log.append(ALERTS_TOPIC, over)
        await log.append(ALERTS_TOPIC, second)
        code, found = await call("alerts", "--check")
        assert code == 0
        assert [item["alert"] for item in found["alerts"]] == ["b"]
        _, found = await call("alerts", "--all")
        assert [(item["alert"], item["cleared_at"]) for item in found["alerts"]] == [
            ("b", None),
            ("a", "1970-01-01T00:00:02Z"),
        ]
        lost = ev.CaptureLost(
            id="9", at=1_500_000, source="agent/a", hub_epoch=0, volume="v1", epoch=1, reason="r"
        )
        await log.append(EVENTS_TOPIC, lost)
        with Verb(stack, "events", "--alerts", "--volume", "v1") as verb:
            lines = await asyncio.to_thread(verb.rest)
        assert [line.strip().split(maxsplit=2)[2] for line in lines] == [
            "alert, critical: v1 is in a gap",
            "alert, critical: v1 is in a gap",
            "v1: writes do not reach the journal any more: r",
            "alert over: v1 is well",
        ]
    finally:
        await log.close()


@pytest.mark.timeout(300)
def test_picture_of_top_under_load(busy: Stack, tmp_path: Path) -> None:
    fot = busy.run("fot", "start", VOLUMES[0], "--latest")
    folder = tmp_path
    if os.environ.get("REPHUB_SCREENSHOTS"):
        folder = SCREENSHOTS
        time.sleep(SHOT_SECONDS)
    web = json.loads((busy.state_dir / "endpoints.json").read_text())["web"]
    document = asyncio.run(fetch_or_raise(f"{web}/api/live?seconds=60", 10))
    busy.run("fot", "stop", fot["fot"])
    document["volumes"] = [one for one in document["volumes"] if one["volume"] in VOLUMES]
    traces = Traces()
    traces.take(document["series"])
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=140, height=24, file=nowhere, highlight=False)
        console.print(frame(document, traces, Look(), 140, 24))
        text = console.export_svg(title="rephub top", unique_id="rephub-top")
    assert all(name in text for name in VOLUMES)
    # Without the fonts that a browser would fetch from elsewhere.
    (folder / "top.svg").write_text(re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL))
