"""Samples, live feed and alerts of a whole stack under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from qsd import Load, StorageDaemon
from rephub.cli.endpoints import read_endpoints
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.names import ALERTS_TOPIC, STATS_TOPIC
from rephub.schemas import alerts, stats
from stack import Stack, bootstrap

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = 64 * MIB
"""Of the disk that the fixture `daemons` makes."""


def records(stack: Stack, topic: str) -> list[Any]:
    async def read() -> list[Any]:
        log = KafkaControlLog(bootstrap(stack), topics=(topic,))
        try:
            entries = await log.read(topic, await log.offset_at(topic, 0), await log.next_offset(topic))
            return [record for _, record in entries]
        finally:
            await log.close()

    return asyncio.run(read())


def live(stack: Stack, seconds: int = 60) -> dict[str, Any]:
    url = f"{read_endpoints(stack.state_dir).web}/api/live?seconds={seconds}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return dict(json.loads(answer.read()))


def said(stack: Stack, rule: str) -> list[type]:
    return [type(one) for one in records(stack, ALERTS_TOPIC) if one.rule == rule]


def part(stack: Stack, kind: str) -> dict[str, Any] | None:
    found = [one for one in stack.run("status")["parts"] if one["kind"] == kind and one["alive"]]
    return found[0] if found else None


class Writer:
    """Writes until it is told to stop."""

    def __init__(self, uri: str) -> None:
        self._load, self._stop = Load(uri), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        seed = 0
        while not self._stop.wait(0.2):
            self._load("write", start=(seed % 32) * MIB, length=MIB, seed=seed)
            seed += 1

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._load.close()


def test_samples_of_all_and_the_live_feed(own_stack: Stack, daemons: Callable[..., StorageDaemon]) -> None:
    stack, daemon = own_stack, daemons()
    stack.protect("v", daemon.qmp, "disk0", "--group", "g")
    writer = Writer(daemon.uri())
    try:
        document = stack.wait_until(
            "writes are seen",
            lambda: (
                (found := live(stack))["series"].get("v")
                and len(found["series"]["v"]["at"]) > 5
                and max(found["series"]["v"]["written_bytes_per_second"]) > MIB
                and found
            ),
            60,
        )
        (volume,) = document["volumes"]
        assert (volume["volume"], volume["group"], volume["state"]) == ("v", "g", "protected")
        assert {one["kind"] for one in document["parts"]} >= {"hub", "agent", "diskbox"}
        assert all(one["rss_bytes"] > MIB and one["disk_total_bytes"] > MIB for one in document["parts"])
        assert all(0 <= one["cpu_share"] < 4 for one in document["parts"])
        columns = document["series"]["v"]
        assert {len(column) for column in columns.values()} == {len(columns["at"])}
        fot = stack.run("fot", "start", "v", "--latest")
        shown = stack.wait_until(
            "the view is seen", lambda: (one := live(stack)) and one["views"] and one["fots"] and one, 30
        )
        assert shown["fots"][0]["uri"] == fot["uri"]
        assert shown["views"][0]["view"] == fot["fot"]
        streamed = stream(stack, events=3)
        assert all(set(one) == set(document) for one in streamed)
        assert streamed[-1]["at"] - streamed[0]["at"] > 1_500_000
        assert all(len(one["series"]["v"]["at"]) <= 1 for one in streamed)
    finally:
        writer.end()
    found = Counter(type(one).__name__ for one in records(stack, STATS_TOPIC))
    assert set(found) == {one.__name__ for one in stats.RECORDS}
    sent = [one for one in records(stack, STATS_TOPIC) if isinstance(one, stats.CaptureSample)]
    assert sum(one.written_bytes for one in sent) >= MIB
    assert sum(sum(one.ack_delays) for one in sent) > 0


def stream(stack: Stack, events: int) -> list[dict[str, Any]]:
    """So many events of `/api/stream`."""
    found = []
    with urllib.request.urlopen(f"{read_endpoints(stack.state_dir).web}/api/stream", timeout=10) as answer:
        for line in answer:
            if line.startswith(b"data: ") and line.strip() != b"data:":
                found.append(json.loads(line.removeprefix(b"data: ")))
            if len(found) == events:
                break
    return found


def test_a_monitor_that_is_killed_under_load_loses_no_alert_and_raises_none_twice(
    own_stack: Stack, daemons: Callable[..., StorageDaemon]
) -> None:
    stack, daemon = own_stack, daemons()
    stack.protect("v", daemon.qmp, "disk0")
    stack.wait_until("the monitor runs", lambda: part(stack, "monitor"), 60)
    writer = Writer(daemon.uri())
    diskbox = stack.run("up", "--detach")["pids"]["diskbox"]
    try:
        for round_ in (1, 2):
            os.kill(diskbox, signal.SIGSTOP)
            kill_monitor(stack)
            wait_said(stack, alerts.AlertRaised, round_)
            kill_monitor(stack)
            os.kill(diskbox, signal.SIGCONT)
            wait_said(stack, alerts.AlertCleared, round_)
    finally:
        os.kill(diskbox, signal.SIGCONT)
        writer.end()
    assert said(stack, "diskbox_silent") == [alerts.AlertRaised, alerts.AlertCleared] * 2
    open_now = [one["rule"] for one in live(stack)["alerts"]]
    assert "diskbox_silent" not in open_now
    for rule in {one.rule for one in records(stack, ALERTS_TOPIC)}:
        kinds = said(stack, rule)
        assert kinds[::2] == [alerts.AlertRaised] * len(kinds[::2]), rule
        assert kinds[1::2] == [alerts.AlertCleared] * len(kinds[1::2]), rule


def wait_said(stack: Stack, kind: type, times: int) -> None:
    stack.wait_until(kind.__name__, lambda: said(stack, "diskbox_silent").count(kind) == times, 150)


def kill_monitor(stack: Stack) -> None:
    """SIGKILL, and wait for the next one."""
    pid = stack.wait_until("the monitor runs", lambda: (found := part(stack, "monitor")) and found["pid"], 90)
    os.kill(pid, signal.SIGKILL)
    stack.wait_until(
        "it is started again", lambda: (found := part(stack, "monitor")) and found["pid"] != pid, 60
    )
