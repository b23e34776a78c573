"""Diskboxes that come by overflow: sixty volumes on one machine, and providers that fail."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qsd import StorageDaemon
from rephub.consumers.hub import liveness
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.control.ids import command_id
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.names import COMMANDS_TOPIC, diskbox_lease_key
from rephub.infra.process import start_time
from rephub.projections.catalogue import Catalogue, Diskbox
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev
from stack import REPHUB, Stack, bootstrap, events

pytestmark = [
    pytest.mark.long,
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.qemu,
    pytest.mark.timeout(400),
]

VOLUMES = 60
DISK_BYTES = 1 << 20
SYNC_SECONDS = 100.0


@pytest.fixture
def grown_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack with settings of its own: the parameter is the text of its TOML file."""
    state_dir = Path(tempfile.mkdtemp(prefix="rh-"))
    config = state_dir / "site.toml"
    config.write_text(request.param.replace("STATE", str(state_dir)))
    stack = Stack(state_dir)
    try:
        stack.run("up", "--detach", "--config", str(config))
        yield stack
    finally:
        stack.down()
        shutil.rmtree(state_dir)


@pytest.fixture
def daemon(request: pytest.FixtureRequest, folder: Path) -> Iterator[StorageDaemon]:
    found = StorageDaemon(folder / "vm", [DISK_BYTES] * request.param)
    yield found
    found.stop()


def protect_all(stack: Stack, qmp: Path, disks: Iterable[int]) -> None:
    """All commands at once, as from as many operators."""

    async def send() -> None:
        control = KafkaControlLog(bootstrap(stack))
        await control.start()
        now = time.time_ns() // 1000
        for number in disks:
            name = f"v{number:02}"
            command = cmd.Protect(
                id=command_id(), at=now, source="cli/test", deadline_at=now + 200_000_000, volume=name, group=name,
                qmp=str(qmp), node=f"disk{number}", ack="async", overload="throttle",
                history_seconds=3600, history_bytes=1 << 30,
            )  # fmt: skip
            await control.append(COMMANDS_TOPIC, command)
        await control.close()

    asyncio.run(send())


def diskboxes(stack: Stack) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in stack.run("status")["parts"] if part["kind"] == "diskbox"}


def all_protected(stack: Stack) -> Callable[[], bool]:
    def look() -> bool:
        found = stack.run("status")["volumes"]
        return len(found) == VOLUMES and all(
            one["state"] == "protected" and one["consistent"] for one in found
        )

    return look


@pytest.mark.parametrize("daemon", [VOLUMES], indirect=True)
@pytest.mark.parametrize("grown_stack", ["[agent]\ncheckpoint_seconds = 0\n"], indirect=True)
def test_sixty_volumes_in_three_diskboxes_created_by_overflow(
    grown_stack: Stack, daemon: StorageDaemon
) -> None:
    stack = grown_stack
    before = stack.run("up", "--detach")["pids"]
    for number in range(VOLUMES):
        daemon.files[number].write_bytes(bytes([number + 1]) * DISK_BYTES)
    protect_all(stack, daemon.qmp, range(VOLUMES))
    stack.wait_until("all are protected", all_protected(stack), SYNC_SECONDS)

    held = Counter(one["diskbox"] for one in stack.run("status")["volumes"])
    assert held == {"diskbox1": 27, "diskbox2": 27, "diskbox3": 6}
    log = events(stack)
    asked = [event.diskbox for event in log if isinstance(event, ev.DiskboxRequested)]
    told = [event.diskbox for event in log if isinstance(event, ev.DiskboxAnnounced)]
    assert asked == ["diskbox2", "diskbox3"]
    assert told == ["diskbox1", "diskbox2", "diskbox3"]
    assert not any(isinstance(event, ev.ProtectFailed | ev.DiskboxFailed) for event in log)
    boxes = diskboxes(stack)
    assert list(boxes) == ["diskbox1", "diskbox2", "diskbox3"]
    assert all(box["alive"] for box in boxes.values())
    assert stack.run("up", "--detach")["pids"] == before, "pids are those of the first of each kind"
    for number in (0, 30, 59):
        assert stack.read_view(f"v{number:02}", "--latest") == bytes([number + 1]) * DISK_BYTES

    os.kill(boxes["diskbox3"]["pid"], signal.SIGKILL)
    stack.wait_until("diskbox3 is back", lambda: diskboxes(stack)["diskbox3"]["restarts"] == 1)
    stack.down()
    assert not any(start_time(box["pid"]) for box in boxes.values())
    stack.run("up", "--detach")
    assert list(diskboxes(stack)) == ["diskbox1", "diskbox2", "diskbox3"]
    assert all(box["alive"] for box in diskboxes(stack).values())
    stack.wait_until("all are protected again", all_protected(stack), SYNC_SECONDS)
    os.kill(stack.run("up", "--detach")["pids"]["supervisor"], signal.SIGKILL)
    stack.run("up", "--detach")
    assert [box["alive"] for box in diskboxes(stack).values()] == [True, True, True]


HOOK = """#!/bin/sh
echo "$1" >> STATE/runs
case $(cat STATE/mode) in
fail) echo "no quota left" >&2; exit 3;;
hang) echo "asking the cloud" >&2; sleep 600;;
nothing) exit 0;;
good) REPHUB diskbox --state-dir STATE > STATE/box.log 2>&1 & echo $! > STATE/box.pid;;
esac
"""

HOOKED = """[diskbox]
capacity = 1
[provider]
command = ["STATE/hook", "{diskbox}"]
command_seconds = 3
announce_seconds = 15
"""


def knows(stack: Stack) -> dict[str, Any]:
    """What a protect that failed must leave as it was."""
    web = json.loads((stack.state_dir / "endpoints.json").read_text())["web"]
    with urllib.request.urlopen(f"{web}/api/catalogue", timeout=5) as answer:
        catalogue = json.loads(answer.read())
    return {name: catalogue[name] for name in ("volumes", "diskboxes", "diskbox_requests", "protects")}


@pytest.mark.parametrize("daemon", [2], indirect=True)
@pytest.mark.parametrize("grown_stack", [HOOKED], indirect=True)
def test_a_provider_command_that_fails_hangs_or_brings_nothing_and_one_that_works(
    grown_stack: Stack, daemon: StorageDaemon
) -> None:
    stack, state = grown_stack, grown_stack.state_dir
    hook, runs = state / "hook", state / "runs"
    hook.write_text(HOOK.replace("STATE", str(state)).replace("REPHUB", str(REPHUB)))
    hook.chmod(0o700)
    stack.protect("v0", daemon.qmp, "disk0")
    before = knows(stack)
    second = ("protect", "v1", "--qmp", str(daemon.qmp), "--node", "disk1")

    (state / "mode").write_text("fail")
    error = stack.fails(*second, code=1)
    assert error["message"].endswith("/hook failed with exit code 3: no quota left")
    (state / "mode").write_text("hang")
    error = stack.fails(*second, code=7)
    assert "did not end within 3 s and was killed: asking the cloud" in error["message"]
    (state / "mode").write_text("nothing")
    error = stack.fails(*second, code=7)
    assert "diskbox diskbox2 did not announce itself within 15 s" in error["message"]
    hook.rename(state / "away")
    error = stack.fails(*second, code=6)
    assert "cannot start" in error["message"]
    (state / "away").rename(hook)
    # The log has it before the hub has read it back.
    stack.wait_until("nothing is left of all that failed", lambda: knows(stack) == before, 10)
    assert stack.status("v0")["state"] == "protected"

    # The hub is killed while the command hangs: the next hub asks again, and the same protect goes on.
    (state / "mode").write_text("hang")
    count = len(runs.read_text().split())
    protect_all(stack, daemon.qmp, [1])
    stack.wait_until("the command runs", lambda: len(runs.read_text().split()) > count)
    (state / "mode").write_text("good")
    os.kill(json.loads((state / "endpoints.json").read_text())["pids"]["hub"], signal.SIGKILL)
    try:
        stack.wait_until("the diskbox was started", (state / "box.pid").exists, 60)
        stack.wait_until("v01 is placed", lambda: stack.call("status", "v01")[0] == 0, 60)
        stack.run("wait", "v01", "--state", "protected", "--timeout", "60")
        assert stack.status("v01")["diskbox"] == "diskbox2"
        assert set(runs.read_text().split()) == {"diskbox2"}
        asked = [event for event in events(stack) if isinstance(event, ev.DiskboxRequested)]
        assert len(asked) == 5, "four that failed, and one that was served by two hubs"
    finally:
        if (state / "box.pid").exists():
            pid = int((state / "box.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            stack.wait_until("the site's diskbox has ended", lambda: start_time(pid) is None)


async def test_a_lease_speaks_for_a_diskbox_whose_page_is_out_of_reach(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "LOOK_SECONDS", 0.05)
    leases = RedisBitmapStore(redis_url)
    await leases.renew_lease(diskbox_lease_key("d1"), "{}", 60)
    catalogue = Catalogue()
    for name in ("d1", "d2"):
        catalogue.diskboxes[name] = Diskbox(name, "elsewhere", 1, "http://127.0.0.1:9", 27)
    found = liveness.Liveness(redis_url)
    watching = asyncio.create_task(found.watch(catalogue))
    try:
        async with asyncio.timeout(20):
            while found.silent() != {"d2"}:
                await asyncio.sleep(0.01)
            await leases.drop(diskbox_lease_key("d1"))
            while found.silent() != {"d1", "d2"}:
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await leases.close()
