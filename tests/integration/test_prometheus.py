"""A real Prometheus with our configuration and rules watches a real stack; promtool judges what the daemons say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from prometheus import INFRA, RULES, program, promtool, used
from qsd import Load, StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

SIZE = 16 << 20


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def targets(stack: Stack) -> dict[str, str]:
    """`/metrics` of each daemon by kind, as `up` wrote it for Prometheus."""
    path = stack.state_dir / "prometheus-targets.json"
    assert path.stat().st_mode & 0o777 == 0o600
    return {
        one["labels"]["kind"]: f"http://{address}/metrics"
        for one in json.loads(path.read_text())
        for address in one["targets"]
    }


@pytest.fixture
def disk(daemons: Callable[..., StorageDaemon]) -> StorageDaemon:
    return daemons()


def write(disk: StorageDaemon, seed: int) -> None:
    load = Load(disk.uri())
    for number in range(64):
        load("write", start=number * 65536, length=65536, seed=seed + number)
    load.close()


class Prometheus:
    """The real one, on loopback, with `for` and intervals of seconds: on a busy machine one scrape that is late says nothing yet."""

    def __init__(self, folder: Path, targets_file: Path) -> None:
        config = yaml.safe_load((INFRA / "prometheus/prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        (folder / "targets").mkdir()
        (folder / "targets/stack.json").symlink_to(targets_file)
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "5s"
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "prometheus.log"
        arguments = [
            program("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self.address}",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            answer = json.loads(get(f"http://{self.address}/api/v1/query?{query}"))
        except OSError:
            assert self.process.poll() is None, self._log.read_text()
            return []
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def firing(self) -> set[tuple[str, str]]:
        """Names of alerts, and their daemon or volume."""
        found = [one["metric"] for one in self.ask('ALERTS{alertstate="firing"}')]
        return {(one["alertname"], one.get("volume") or one.get("daemon", "")) for one in found}

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; firing: {self.firing()}"
            time.sleep(0.2)
        return value

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def prometheus(own_stack_no_restart: Stack, short_dir: Path) -> Iterator[Prometheus]:
    folder = short_dir / "prometheus"
    folder.mkdir()
    found = Prometheus(folder, own_stack_no_restart.state_dir / "prometheus-targets.json")
    yield found
    found.stop()


def test_the_daemons_say_what_rules_and_dashboard_ask_for(stack: Stack, disk: StorageDaemon) -> None:
    """Under load, in names and types that promtool finds nothing wrong with."""
    stack.protect("metrics", disk.qmp, "disk0")
    write(disk, 1)
    samples: dict[str, float] = {}
    urls = targets(stack)
    assert set(urls) == {"hub", "agent", "diskbox", "monitor"}

    def scraped() -> bool:
        samples.clear()
        try:
            texts = [get(url).decode() for url in urls.values()]
        except OSError:  # the monitor comes after the others
            return False
        for text in texts:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.labels.get("volume", "metrics") == "metrics":
                        samples[sample.name] = max(sample.value, samples.get(sample.name, sample.value))
        counted = samples.get("rephub_agent_ack_delay_seconds_count", 0) >= 64
        return bool(counted and not samples["rephub_agent_lag_bytes"] and samples["rephub_monitor_ready"])

    stack.wait_until("the writes are counted", scraped, 60)
    for kind, url in urls.items():
        done = promtool("check", "metrics", stdin=get(url))
        assert (done.returncode, done.stdout) == (0, ""), kind
    assert used() <= set(samples), used() - set(samples)
    assert samples["rephub_agent_captured_writes_total"] >= 64
    assert samples["rephub_agent_captured_bytes_total"] >= 64 * 65536
    assert samples["rephub_agent_in_gap"] == 0
    assert samples["rephub_agent_workers"] == 1
    assert samples["rephub_build_info"] == 1
    assert samples["rephub_samples_published_total"] > 0
    assert abs(samples["rephub_time_seconds"] - time.time()) < 30
    assert abs(samples["rephub_diskbox_latest_timestamp_seconds"] - time.time()) < 60
    stack.run("unprotect", "metrics", "--purge")


def test_prometheus_watches_a_stack(
    own_stack_no_restart: Stack, prometheus: Prometheus, disk: StorageDaemon
) -> None:
    """All is well, then QEMU is killed: the gap fires. Then the agent is killed: that fires, and nothing else is said to be down."""
    stack = own_stack_no_restart
    stack.protect("watched", disk.qmp, "disk0")
    prometheus.until("all answer", lambda: len(prometheus.ask('up{job="rephub"} == 1')) == 4)
    write(disk, 1)
    # That of this machine may be full, and the monitor is slower to start than its rule's `for` is here.
    space = {"RephubDiskSpaceLow", "RephubDiskSpaceOut", "RephubDiskFullSoon"}
    prometheus.until("all is well", lambda: {name for name, _ in prometheus.firing()} <= space)
    (unread,) = prometheus.until(
        "what is recorded", lambda: prometheus.ask("volume:rephub_unread_events:max")
    )
    assert unread["metric"]["volume"] == "watched"

    def skews_of_all() -> list[dict[str, Any]]:
        found = prometheus.ask("abs(daemon:rephub_clock_skew_seconds:last)")
        return found if len(found) == 4 else []

    skews = prometheus.until("a clock of each", skews_of_all)
    assert all(float(skew["value"][1]) < 2 for skew in skews)

    disk.kill()
    prometheus.until("the gap fires", lambda: ("RephubGapOpen", "watched") in prometheus.firing())

    os.kill(json.loads((stack.state_dir / "endpoints.json").read_text())["pids"]["agent"], signal.SIGKILL)
    prometheus.until("the agent's end fires", lambda: ("RephubAgentDown", "agent1") in prometheus.firing())
    names = {name for name, _ in prometheus.firing()}
    assert not names & {"RephubHubDown", "RephubDiskboxDown", "RephubTargetsMissing"}
