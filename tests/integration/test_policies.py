"""What an operator changes while a volume is protected: pace of syncs, by the verbs, on a whole stack."""

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
