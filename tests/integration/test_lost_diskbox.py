"""A diskbox that dies for good under write load, and comes back when nobody needs it. All parts are real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsd import Load, StorageDaemon
from rephub.schemas import events as ev
from stack import Stack, events

pytestmark = [
    pytest.mark.long,
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.qemu,
    pytest.mark.timeout(240),
]

MIB = 1 << 20
DISK_BYTES = 16 * MIB
SECONDS = 100.0
"""Longest wait: a new diskbox process and the copies on a machine that is busy with other things."""

CONFIG = """[hub]
diskbox_lost_seconds = 4
[agent]
checkpoint_seconds = 0
"""


@pytest.fixture
def mortal_stack() -> Iterator[Stack]:
    """Parts that die stay dead, and a diskbox is given up after 4 s."""
    state_dir = Path(tempfile.mkdtemp(prefix="rh-"))
    config = state_dir / "site.toml"
    config.write_text(CONFIG)
    stack = Stack(state_dir)
    try:
        stack.run("up", "--detach", "--no-restart", "--config", str(config))
        yield stack
    finally:
        stack.down()
        shutil.rmtree(state_dir)


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    found = StorageDaemon(folder / "vm", [DISK_BYTES] * 4)
    yield found
    found.stop()


def fleet(stack: Stack) -> dict[str, dict[str, Any]]:
    return {box["diskbox"]: box for box in stack.run("fleet", "list")["diskboxes"]}


def protected_on(stack: Stack, diskbox: str, count: int) -> bool:
    found = stack.run("status")["volumes"]
    good = [one for one in found if one["state"] == "protected" and one["consistent"]]
    return len(good) == len(found) == count and {one["diskbox"] for one in found} == {diskbox}


def longest_pause(log: list[Any], volume: str) -> float:
    """Seconds for which the volume was not captured, at most, in one piece, between its attachments."""
    pauses, lost_at = [0.0], None
    for event in log:
        if isinstance(event, ev.CaptureLost) and event.volume == volume:
            lost_at = event.at
        elif isinstance(event, ev.FilterAttached) and event.volume == volume and lost_at is not None:
            pauses.append((event.at - lost_at) / 1e6)
    return max(pauses)


def test_a_dead_diskbox_is_replaced_under_load_and_is_empty_when_it_returns(
    mortal_stack: Stack, daemon: StorageDaemon, folder: Path
) -> None:
    stack = mortal_stack
    for number in range(3):
        daemon.files[number].write_bytes(bytes([number + 1]) * DISK_BYTES)
    stack.protect("v0", daemon.qmp, "disk0", "--group", "g")
    stack.protect("v1", daemon.qmp, "disk1", "--group", "g")
    stack.protect("v2", daemon.qmp, "disk2")
    fot = stack.run("fot", "start", "v2", "--latest")
    load = Load(daemon.uri(0))
    load.send("chains", others=[daemon.uri(1)], chains=4, sector=0, seconds=15)

    pid = stack.run("up", "--detach", "--no-restart")["pids"]["diskbox"]
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    stack.wait_until("all are on diskbox2", lambda: protected_on(stack, "diskbox2", 3), SECONDS)
    answered = load.receive()
    assert "error" not in answered, "a write of the guest failed"
    assert min(answered["answered"]) > 0
    load.close()

    log = events(stack)
    assert [event.diskbox for event in log if isinstance(event, ev.DiskboxLost)] == ["diskbox1"]
    assert longest_pause(log, "v0") < 10, "capture stops for a new attachment, not for a new diskbox"
    assert [event.fot for event in log if isinstance(event, ev.FotFailed)] == [fot["fot"]]
    assert fleet(stack)["diskbox1"]["state"] == "lost"
    first = stack.run("timeline", "v0")["ranges"][0]
    assert (first["kind"], first["reason"]) == ("gap", "diskbox diskbox1 was lost, with all points on it")
    stack.wait_until("all is acked", lambda: stack.status("v0")["lag_bytes"] == 0)
    for number in range(3):
        stack.run("checkpoint", "create", f"rest{number}", "--volume", f"v{number}")
        assert stack.read_view(f"v{number}", "--latest") == daemon.files[number].read_bytes()

    old = stack.state_dir / "diskbox" / "diskbox1" / "volumes"
    assert sorted(path.name for path in old.iterdir()) == ["v0", "v1", "v2"]
    with (folder / "box.log").open("wb") as output:
        back = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        stack.wait_until("diskbox1 is there again", lambda: fleet(stack)["diskbox1"]["answers"], SECONDS)
        stack.wait_until("its copies are gone", lambda: not list(old.iterdir()), SECONDS)
        assert fleet(stack)["diskbox1"]["state"] == "ready"
        assert protected_on(stack, "diskbox2", 3), "its return disturbed nobody"
        stack.protect("v3", daemon.qmp, "disk3")
        assert stack.status("v3")["diskbox"] == "diskbox1"
    finally:
        back.terminate()
        back.wait(30)
