"""Alert sinks with real HTTP servers and real programs: what hangs, fails or is away holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from rephub.consumers.monitor import sinks as module
from rephub.consumers.monitor.sinks import CommandSink, LogSink, Sinks, WebhookSink, document, sinks_of
from rephub.core.config import MonitorSettings, load_settings
from rephub.core.errors import DeadlineError, RephubError, UnavailableError, UsageError
from rephub.schemas.alerts import AlertCleared, AlertRaised


def raised(number: int = 1, **fields: Any) -> AlertRaised:
    values: dict[str, Any] = {
        "id": f"id-{number}", "at": 1_700_000_000_000_000, "source": "monitor/monitor1", "alert": f"alert-{number}",
        "rule": "rpo", "subject_kind": "volume", "subject": "vm1", "stats_offset": 7, "severity": "critical",
        "since": 1_699_999_999_000_000, "text": "the recovery point of vm1 is 40 s old", "hint": "look at Kafka",
        "value": 40.0, "threshold": 30.0, "unit": "s",
    }  # fmt: skip
    return AlertRaised(**values | fields)


def cleared(number: int = 1) -> AlertCleared:
    return AlertCleared(
        id=f"cleared-{number}", at=1_700_000_001_000_000, source="monitor/monitor1", alert=f"alert-{number}",
        rule="rpo", subject_kind="volume", subject="vm1", stats_offset=9, raised_at=1_700_000_000_000_000, text="over",
    )  # fmt: skip


class Receiver:
    """A webhook's server: keeps what it got, answers with the statuses in turn, then with 200."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.got: list[tuple[dict[str, str], Any]] = []
        self._statuses, self._headers = list(statuses), headers
        self.hung = asyncio.Event()
        """Set once a request hangs; status 0 hangs."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append((dict(request.headers), await request.json()))
        status = self._statuses.pop(0) if self._statuses else 200
        if status == 0:
            self.hung.set()
            await asyncio.sleep(3600)
        return web.Response(status=status, headers=self._headers)

    def ids(self) -> list[str]:
        return [headers["Idempotency-Key"] for headers, _ in self.got]


@contextlib.asynccontextmanager
async def serve(receiver: Receiver) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/hook", receiver.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=secret"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(sinks: Sinks) -> AsyncIterator[None]:
    task = asyncio.create_task(sinks.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS_MAX", 0.05)


def nobody() -> str:
    """A URL where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/hook"


async def test_a_webhook_gets_the_record_and_its_kind() -> None:
    receiver = Receiver()
    async with serve(receiver) as url:
        sink = WebhookSink(url, 5, 5)
        await sink.send(raised())
        await sink.send(cleared())
    assert "secret" not in sink.name
    (headers, first), (_, second) = receiver.got
    assert headers["Content-Type"].startswith("application/json")
    assert receiver.ids() == ["id-1", "cleared-1"]
    assert (first["kind"], first["severity"], first["value"], first["last_good_offset"]) == (
        "raised",
        "critical",
        40.0,
        None,
    )
    assert (second["kind"], second["alert"], second["raised_at"]) == (
        "cleared",
        "alert-1",
        1_700_000_000_000_000,
    )


async def test_a_server_that_fails_twice_is_asked_again_with_the_same_id() -> None:
    receiver = Receiver(500, 429)
    async with serve(receiver) as url:
        await WebhookSink(url, 5, 5).send(raised())
    assert receiver.ids() == ["id-1"] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 302])
async def test_a_refusal_is_final_and_a_redirection_is_one(status: int) -> None:
    receiver = Receiver(status, headers={"Location": "/hook"})
    async with serve(receiver) as url:
        with pytest.raises(RephubError, match=f"HTTP status {status}") as caught:
            await WebhookSink(url, 5, 5).send(raised())
    assert len(receiver.got) == 1
    assert "secret" not in caught.value.message


async def test_a_server_that_hangs_is_given_up_at_the_limit() -> None:
    receiver = Receiver(0, 0, 0, 0, 0, 0, 0, 0)
    async with serve(receiver) as url:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"no answer within 0\.1 s"):
            await WebhookSink(url, 0.1, 0.3).send(raised())
    assert 0.2 < time.monotonic() - began < 3
    assert 2 <= len(receiver.got) <= 4


async def test_a_server_that_is_away_is_tried_until_it_comes() -> None:
    url = nobody()
    with pytest.raises(UnavailableError, match="did not take it: Client"):
        await WebhookSink(url, 1, 0.1).send(raised())
    sending = asyncio.create_task(WebhookSink(url, 1, 20).send(raised()))
    await asyncio.sleep(0.1)
    assert not sending.done()
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/hook", receiver.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2].removesuffix("/hook"))).start()
    await asyncio.wait_for(sending, 10)
    await runner.cleanup()
    assert receiver.ids() == ["id-1"]


async def test_one_that_hangs_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Its queue is bounded: the oldest go, and are counted."""
    stuck, quick = Receiver(*[0] * 100), Receiver()
    async with serve(stuck) as stuck_url, serve(quick) as quick_url:
        hanging = WebhookSink(stuck_url, 60, 60)
        sinks = Sinks([hanging, WebhookSink(quick_url, 5, 5), WebhookSink(nobody(), 1, 0)], queued_max=10)
        async with running(sinks):
            sinks.offer(raised(0))
            await asyncio.wait_for(stuck.hung.wait(), 5)
            for number in range(1, 31):
                sinks.offer(raised(number))
                await asyncio.sleep(0.01)
            deadline = time.monotonic() + 10
            while len(quick.got) < 31 or sinks.stats()[2]["failed"] < 31:
                assert time.monotonic() < deadline, sinks.stats()
                await asyncio.sleep(0.01)
            first, second, third = sinks.stats()
            assert not await sinks.drained(0.05)
    assert quick.ids() == [f"id-{number}" for number in range(31)]
    assert len(stuck.got) == 1
    assert (first["queued"], first["dropped"], first["sent"]) == (10, 20, 0)
    assert (second["queued"], second["dropped"], second["sent"]) == (0, 0, 31)
    assert third["failed"] == 31
    assert len([one for one in caplog.records if one.message == "alert dropped"]) == 20
    assert "secret" not in caplog.text


async def test_what_was_offered_before_the_start_is_sent() -> None:
    receiver = Receiver()
    async with serve(receiver) as url:
        sinks = Sinks([WebhookSink(url, 5, 5)])
        sinks.offer(raised(1))
        assert not await sinks.drained(0)
        async with running(sinks):
            sinks.offer(cleared(1))
            assert await sinks.drained(5)
    assert receiver.ids() == ["id-1", "cleared-1"]


async def test_a_mistake_in_a_sink_is_a_failure_and_no_end(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong:
        name = "wrong"

        async def send(self, _alert: Any) -> None:
            raise KeyError("x")

    sinks = Sinks([Wrong()])
    async with running(sinks):
        sinks.offer(raised(1))
        sinks.offer(raised(2))
        assert await sinks.drained(5)
    assert sinks.stats() == [{"name": "wrong", "queued": 0, "sent": 0, "failed": 2, "dropped": 0}]
    assert "internal error: KeyError" in caplog.records[0].__dict__["reason"]


def script(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [sys.executable, str(path)]


async def test_a_command_gets_document_and_environment(tmp_path: Path) -> None:
    argv = script(
        tmp_path / "hook.py",
        "import json, os, sys\n"
        "json.dump({'stdin': json.load(sys.stdin), 'arguments': sys.argv[2:],\n"
        "  'env': {k: v for k, v in os.environ.items() if k.startswith('REPHUB_ALERT_')}}, open(sys.argv[1], 'w'))\n",
    )
    told = tmp_path / "told"
    hostile = raised(text='$(touch x); "vm\0 1"\n', subject="vm1")
    await CommandSink([*argv, str(told), "a b"], 20).send(hostile)
    found = json.loads(told.read_text())
    assert found["stdin"] == document(hostile)
    assert found["arguments"] == ["a b"]
    environment = found["env"]
    assert environment["REPHUB_ALERT_KIND"] == "raised"
    assert environment["REPHUB_ALERT_SUBJECT"] == "vm1"
    assert environment["REPHUB_ALERT_VALUE"] == "40.0"
    assert environment["REPHUB_ALERT_LAST_GOOD_OFFSET"] == ""
    assert environment["REPHUB_ALERT_TEXT"] == '$(touch x); "vm 1"\n'
    assert len(environment) == len(document(hostile))


async def test_a_command_that_hangs_is_killed_with_its_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    argv = ["sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"]
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="was killed"):
        await CommandSink(argv, 1.0).send(raised())
    assert time.monotonic() - began < 10
    await gone(int(pid_file.read_text()))


async def test_a_stop_kills_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    sinks = Sinks(
        [CommandSink(["sh", "-c", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 600"], 60)]
    )
    async with running(sinks):
        sinks.offer(raised())
        deadline = time.monotonic() + 10
        while not pid_file.exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    await gone(int(pid_file.read_text()))


async def gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        assert time.monotonic() < deadline, f"{pid} still runs"
        await asyncio.sleep(0.01)


async def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(RephubError, match="exit code 3"):
        await CommandSink(["sh", "-c", "exit 3"], 10).send(raised())  # reads nothing of its stdin
    with pytest.raises(UnavailableError, match="cannot start /nonexistent/x: No such file"):
        await CommandSink(["/nonexistent/x"], 10).send(raised())


async def test_the_log_has_one_line_by_severity(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rephub")
    for alert in (raised(), raised(2, severity="warning"), raised(3, severity="info"), cleared()):
        await LogSink().send(alert)
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("ERROR", "alert raised"),
        ("WARNING", "alert raised"),
        ("INFO", "alert raised"),
        ("INFO", "alert cleared"),
    ]
    first = vars(caplog.records[0])
    assert (first["rule"], first["volume"], first["alert"]) == ("rpo", "vm1", "alert-1")


@pytest.fixture
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("REPHUB_"):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_environment")
def test_settings_name_the_sinks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [one["name"] for one in sinks_of(MonitorSettings()).stats()] == ["log"]
    file = tmp_path / "settings.toml"
    file.write_text(
        '[monitor]\nwebhooks = ["https://user:secret@example.invalid/hook"]\ncommand = ["/bin/tell", "me"]\n'
    )
    names = [one["name"] for one in sinks_of(load_settings(file).monitor).stats()]
    assert names == ["log", "webhook 1 example.invalid", "command /bin/tell"]
    monkeypatch.setenv("REPHUB_MONITOR__WEBHOOKS", '["http://127.0.0.1:1/a", "http://[::1]:2/b"]')
    assert load_settings(file).monitor.webhooks == ("http://127.0.0.1:1/a", "http://[::1]:2/b")
    monkeypatch.setenv("REPHUB_MONITOR__WEBHOOKS", '["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"]')
    names = [one["name"] for one in sinks_of(load_settings(file).monitor).stats()]
    assert len(set(names)) == 4, "they are labels of a metric"


@pytest.mark.usefixtures("_no_environment")
@pytest.mark.parametrize(
    "line",
    [
        'webhooks = ["ftp://example.invalid/secret"]',
        'webhooks = ["http://"]',
        'webhooks = ["http://[::1/secret"]',
        'command = [""]',
        "webhook_seconds_max = 0",
        "rpo_target_seconds = -1",
    ],
)
def test_wrong_settings_are_refused_without_a_secret(tmp_path: Path, line: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[monitor]\n{line}\n")
    with pytest.raises(UsageError, match=r"bad setting monitor\.") as caught:
        load_settings(file)
    assert "secret" not in caught.value.message
