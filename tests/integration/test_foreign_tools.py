"""docs/foreign-tools.md works as it stands, and docs/asyncapi.yaml is what a running stack makes and writes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from qsd import Load, StorageDaemon
from rephub.infra.kafka.topics import _configs
from stack import Stack, bootstrap

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/foreign-tools.md").read_text()
VOLUME = "foreign"
QUIET = ("alerts", "monitorTable1", "monitorTable2")
"""Channels on which nothing need be yet."""


@pytest.fixture(scope="module")
def used(stack: Stack) -> Iterator[Stack]:
    """A stack in which a volume was protected, written, marked and tested."""
    folder = Path(tempfile.mkdtemp(prefix="rh-"))
    qsd = StorageDaemon(folder / "q", [8 << 20])
    stack.protect(VOLUME, qsd.qmp, "disk0")
    load = Load(qsd.uri())
    for number in range(20):
        load("write", start=number * 4096, length=4096, seed=number)
    load("zero", start=1 << 20, length=4096)
    load.close()
    stack.run("checkpoint", "create", f"{VOLUME}-c", "--volume", VOLUME)
    fot = stack.run("fot", "start", VOLUME, "--checkpoint", f"{VOLUME}-c")
    stack.run("fot", "stop", fot["fot"])
    yield stack
    try:
        stack.run("unprotect", VOLUME)
    finally:
        qsd.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(yaml.load((ROOT / "docs/asyncapi.yaml").read_text(), Loader=yaml.CSafeLoader))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(used: Stack, tmp_path: Path) -> Any:
    """Runs a block of the page as its reader would, in the working copy."""
    for name in (".venv", "schemas"):
        (tmp_path / name).symlink_to(ROOT / name)
    (script,) = blocks("python")
    (tmp_path / "decode.py").write_text(script)
    first, *_ = blocks("sh")

    def run(block: str) -> str:
        environment = os.environ | {"STATE": str(used.state_dir), "VOLUME": VOLUME}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{first}\n{block}"], cwd=tmp_path, env=environment, timeout=60,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stdout, done.stderr)
        return done.stdout

    return run


def test_every_command_of_the_page_runs(shell: Any) -> None:
    _, topics, newest, happened, writes, rest = blocks("sh")
    listed = shell(topics)
    for topic in ("rephub.commands", "rephub.events", "rephub.stats", "rephub.alerts", f"journal.{VOLUME}"):
        assert f'topic "{topic}" with 1 partitions' in listed
    lines = [line.split() for line in shell(newest).splitlines()]
    assert len(lines) == 3
    assert int(lines[2][0]) == int(lines[0][0]) + 2
    lines = shell(happened).splitlines()
    assert any("rephub.events.FilterAttached" in line and f'"volume": "{VOLUME}"' in line for line in lines)
    lines = shell(writes).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("rephub.journal.") for line in lines)
    lines = shell(rest).splitlines()
    assert {"rephub.commands.Protect", "rephub.stats.ProcessSample"} <= {line.split()[0] for line in lines}


async def test_topics_are_those_of_the_document(used: Stack, document: dict[str, Any]) -> None:
    used.wait_until("the monitor has made its topics", lambda: _missing(used, document) == set())
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap(used))
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if not name.startswith("__")]
        made = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics(names)}
        configs = await _configs(admin, names)
    finally:
        await admin.close()
    for name, partitions in made.items():
        binding = document["channels"][channel_of(document, name)]["bindings"]["kafka"]
        assert len(partitions) == binding["partitions"], name
        for key, value in binding["topicConfiguration"].items():
            wanted = ",".join(value) if isinstance(value, list) else str(value)
            assert configs[name][key] == wanted, (name, key)


def _missing(stack: Stack, document: dict[str, Any]) -> set[str]:
    done = subprocess.run(["kcat", "-b", bootstrap(stack), "-L"], capture_output=True, text=True, check=True)
    made = set(re.findall(r'topic "([^"]+)"', done.stdout))
    return {one["address"].format(volume=VOLUME) for one in document["channels"].values()} - made


def channel_of(document: dict[str, Any], topic: str) -> str:
    """The only channel that a topic is; a topic that is none fails the test."""
    found = [
        name
        for name, channel in document["channels"].items()
        if re.fullmatch(re.escape(channel["address"]).replace(r"\{volume\}", "[A-Za-z0-9._-]+"), topic)
    ]
    assert len(found) == 1, (topic, found)
    return found[0]


async def test_records_are_those_of_the_document(used: Stack, document: dict[str, Any]) -> None:
    used.wait_until("all topics", lambda: _missing(used, document) == set())
    messages = document["components"]["messages"]
    seen: dict[str, set[str]] = {}
    async for topic, key, value in every_record(bootstrap(used)):
        channel = channel_of(document, topic)
        names = document["channels"][channel]["messages"]
        if "TableChange" in names:
            continue
        listed: dict[str, str] = {}
        for name in names:
            message = messages[f"{channel}.{name}"]
            for mark in (message["x-avro-fingerprint"], *message.get("x-avro-earlier-fingerprints", ())):
                listed[mark] = name
        assert not key, topic
        assert value[:2] == b"\xc3\x01", topic
        assert value[2:10].hex() in listed, (topic, value[:10].hex())
        seen.setdefault(channel, set()).add(listed[value[2:10].hex()])
    assert document["channels"].keys() - QUIET <= seen.keys()
    assert {"Write", "Zero", "Checkpoint"} <= seen["journal"], "what was applied is deleted"
    assert {"Protect", "CreateCheckpoint", "StartFot", "StopFot"} <= seen["commands"]
    assert {"FilterAttached", "CheckpointCreated", "FotStarted", "FotStopped"} <= seen["events"]
    assert {"CaptureSample", "ProjectionSample", "ProcessSample"} <= seen["stats"]


async def every_record(address: str) -> Any:
    """(topic, key, value) of all that is on a cluster now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        topics = [name for name in await consumer.topics() if not name.startswith("__")]
        partitions = [TopicPartition(topic, 0) for topic in topics]
        consumer.assign(partitions)
        firsts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            if firsts[partition] >= ends[partition]:
                continue
            consumer.assign([partition])
            consumer.seek(partition, firsts[partition])
            while await consumer.position(partition) < ends[partition]:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        yield record.topic, record.key, record.value
    finally:
        await consumer.stop()
