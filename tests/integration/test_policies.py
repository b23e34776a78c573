"""What an operator changes while a volume is protected: pace of syncs, checkpoints; by the verbs, on a whole stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def volume(stack: Stack, short_session_dir: Path) -> Iterator[str]:
    qemu = StorageDaemon(short_session_dir / "policies", [4 * MIB])
    stack.protect("pol1", qemu.qmp, "disk0")
    yield "pol1"
    stack.call("unprotect", "pol1", "--purge")
    qemu.stop()


def test_tags_and_deletion_of_checkpoints(stack: Stack, volume: str) -> None:
    both = ("--tag", "release=4.2", "--tag", "by=anna")
    made = stack.run("checkpoint", "create", "pol-1", "--volume", volume, *both)
    assert made["tags"] == {"by": "anna", "release": "4.2"}
    stack.run("checkpoint", "create", "pol-2", "--volume", volume, "--tag", "by=anna")

    def listed(*options: str) -> list[str]:
        found = stack.run("checkpoint", "list", *options)["checkpoints"]
        return [entry["checkpoint"] for entry in found if entry["checkpoint"].startswith("pol-")]

    assert listed() == listed("--tag", "by=anna") == ["pol-1", "pol-2"]
    assert listed(*both) == ["pol-1"]
    assert listed("--tag", "by=bert") == []
    stack.fails("checkpoint", "create", "pol-3", "--volume", volume, "--tag", "nothing", code=2)

    assert stack.run("checkpoint", "delete", "pol-1") == {"checkpoint": "pol-1"}
    assert stack.run("checkpoint", "delete", "pol-1") == {"checkpoint": "pol-1", "already": True}
    stack.fails("checkpoint", "delete", "pol-never", code=4)
    assert listed() == ["pol-2"]
    stack.fails("fot", "start", volume, "--checkpoint", "pol-1", code=4)
    named = [mark["checkpoint"] for mark in stack.run("timeline", volume)["checkpoints"]]
    assert "pol-2" in named
    assert "pol-1" not in named
    fot = stack.run("fot", "start", volume, "--checkpoint", "pol-2", "--read-only")
    assert fot["resolved"]["checkpoint"] == "pol-2"
    stack.run("fot", "stop", fot["fot"])


def test_the_history(stack: Stack, volume: str) -> None:
    kept = {"volume": volume, "history_seconds": 172_800, "history_bytes": 20 << 30}
    assert stack.run("history", volume, "--keep", "48h") == {"volumes": [kept]}
    assert stack.run("history", "--group", volume, "--keep", "48h,20GiB") == {
        "volumes": [kept],
        "already": True,
    }
    stack.fails("history", volume, "--keep", "0s", code=2)
    stack.fails("history", "nobody", "--keep", "1h", code=4)


def test_the_pace_of_syncs(stack: Stack, volume: str) -> None:
    pace = {"paused": False, "rate_bytes_per_second": None, "priority": 0}
    for verb, change in (
        (("throttle", volume, "--rate", "50MiB"), {"rate_bytes_per_second": 50 * MIB}),
        (("priority", volume, "7"), {"priority": 7}),
        (("pause", volume), {"paused": True}),
    ):
        pace |= change
        assert stack.run("sync", *verb) == {"volume": volume} | pace
        assert stack.run("sync", *verb) == {"volume": volume} | pace | {"already": True}
    assert stack.status(volume)["sync_pace"] == pace
    assert any("no gap would be closed" in line for line in stack.run("status", volume)["problems"])

    # A later sync stands still, and says so.
    stack.run("resync", volume)
    held = stack.wait_until("held", lambda: (found := stack.status(volume))["sync"] and found)
    assert held["state"] == "resyncing"
    assert held["sync"]["paused"] is True
    assert held["sync"]["rate_bytes_per_second"] == 50 * MIB
    assert f"rephub sync resume {volume}" in held["reason"]
    stack.run("sync", "resume", volume)
    stack.run("wait", volume, "--state", "protected")
    stack.run("sync", "throttle", volume, "--rate", "none")

    stack.fails("sync", "throttle", volume, "--rate", "0", code=2)
    stack.fails("sync", "throttle", volume, "--rate", "1KiB", code=2)
    stack.fails("sync", "pause", "nobody", code=4)
