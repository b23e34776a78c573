"""Recovery volumes move to another diskbox under write load, while both diskboxes and the hub are killed. All parts are real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control_world import replay
from qsd import Load, StorageDaemon
from rephub.consumers.hub import snapshot
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
DISK_BYTES = 32 * MIB
LOADED = MIB
"""The load writes below this."""
SECONDS = 100.0


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    found = StorageDaemon(folder / "vm", [DISK_BYTES] * 3)
    yield found
    found.stop()


def fleet(stack: Stack) -> dict[str, dict[str, Any]]:
    return {box["diskbox"]: box for box in stack.run("fleet", "list")["diskboxes"]}


def part(stack: Stack, name: str) -> dict[str, Any]:
    (found,) = [one for one in stack.run("status")["parts"] if name in (one["name"], one["kind"])]
    return dict(found)


def kill(stack: Stack, name: str) -> None:
    os.kill(part(stack, name)["pid"], signal.SIGKILL)


def told(stack: Stack, kind: type) -> list[Any]:
    return [event for event in events(stack) if isinstance(event, kind)]


def test_drain_and_move_back_under_load_with_kills(own_stack: Stack, daemon: StorageDaemon) -> None:
    stack = own_stack
    names = ["v0", "v1", "v2"]
    for number in range(3):
        daemon.files[number].write_bytes(os.urandom(DISK_BYTES))
    stack.protect("v0", daemon.qmp, "disk0", "--group", "g")
    stack.protect("v1", daemon.qmp, "disk1", "--group", "g")
    stack.protect("v2", daemon.qmp, "disk2")
    early = [path.read_bytes() for path in daemon.files]
    for name in names:
        stack.run("checkpoint", "create", f"early-{name}", "--volume", name)
    load = Load(daemon.uri(0))
    load.send("chains", others=[daemon.uri(1)], chains=4, sector=0, seconds=12)
    attached = len(told(stack, ev.FilterAttached))

    stack.run("fleet", "drain", "diskbox1")
    stack.wait_until("a move has begun", lambda: told(stack, ev.MoveRequested), SECONDS)
    kill(stack, "diskbox1")
    stack.wait_until("the old one serves again", lambda: told(stack, ev.MoveServed), SECONDS)
    kill(stack, "diskbox2")
    kill(stack, "hub")
    stack.wait_until("all are on diskbox2", lambda: {
        stack.status(name)["diskbox"] for name in names
    } == {"diskbox2"}, SECONDS)  # fmt: skip
    answered = load.receive()
    load.close()
    assert "error" not in answered, "a write of the guest failed"
    stack.wait_until("diskbox1 is empty", lambda: not fleet(stack)["diskbox1"]["volumes"], SECONDS)
    assert fleet(stack)["diskbox1"]["state"] == "draining"
    old = stack.state_dir / "diskbox" / "diskbox1" / "volumes"
    stack.wait_until("the old copies are gone", lambda: not list(old.iterdir()), SECONDS)

    stack.run("fleet", "drain", "diskbox1", "--off")
    moved = stack.run("fleet", "move", "--volume", "v2", "--to", "diskbox1")
    assert (moved["volumes"], moved["diskbox"]) == (["v2"], "diskbox1")
    assert stack.run("fleet", "move", "--volume", "v2", "--to", "diskbox1")["already"]
    assert len(told(stack, ev.FilterAttached)) == attached, "capture noticed nothing"
    assert not told(stack, ev.CaptureLost)
    stack.wait_until("all is acked", lambda: all(stack.status(name)["lag_bytes"] == 0 for name in names))
    for number, name in enumerate(names):
        view = stack.read_view(name, "--checkpoint", f"early-{name}")
        assert view == early[number], "a point of before the move"
        stack.run("checkpoint", "create", f"rest-{name}", "--volume", name)
        assert stack.read_view(name, "--latest") == daemon.files[number].read_bytes()
    assert stack.status("v2")["diskbox"] == "diskbox1"

    kill(stack, "redis")
    stack.wait_until("Redis is back", lambda: part(stack, "redis")["alive"], SECONDS)
    stack.wait_until("the snapshot is that of the log", lambda: is_replay(stack), SECONDS)


def is_replay(stack: Stack) -> bool:
    """Whether the hub's snapshot is the replay of the log from offset 0, byte for byte, once it has come that far."""
    log = events(stack)
    found = snapshot.load(stack.state_dir / "hub")
    if found.next_offset != len(log):
        return False
    assert found.to_json() == replay(log).to_json()
    return True
