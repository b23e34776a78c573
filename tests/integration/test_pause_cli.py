"""`rephub pause` and `resume` as an operator uses them, with a diskbox behind: points, sizes, promote, unprotect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture
def qsd(folder: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(folder / "q", [SIZE])
    yield daemon
    daemon.stop()


def write(qsd: StorageDaemon, start: int, length: int, seed: int) -> None:
    load = Load(qsd.uri())
    load("write", start=start, length=length, seed=seed)
    load.close()


def offset_of(stack: Stack, volume: str, name: str) -> int:
    """Of a new checkpoint."""
    return int(stack.run("checkpoint", "create", name, "--volume", volume)["offsets"][volume])


def bitmaps(qsd: StorageDaemon) -> list[dict]:
    nodes = qsd.execute("query-named-block-nodes", flat=True)["return"]
    return [item for node in nodes for item in node.get("dirty-bitmaps", []) if "name" in item]


def resume(stack: Stack, volume: str) -> None:
    stack.run("resume", volume)
    stack.run("wait", volume, "--state", "protected", "--timeout", "60")


def test_pause_resize_resume_and_every_point_has_its_own_size(
    stack: Stack, qsd: StorageDaemon, folder: Path
) -> None:
    stack.protect("pz", qsd.qmp, "disk0")
    write(qsd, 0, 3 * MIB, 1)
    first, small = offset_of(stack, "pz", "pz-16"), qsd.content()

    document = stack.run("pause", "pz")
    assert (document["state"], document["epoch"]) == ("paused", 1)
    assert stack.run("wait", "pz", "--state", "paused") == {"volume": "pz", "state": "paused"}
    again = stack.run("pause", "pz")
    assert again == document | {"already": True}
    status = stack.status("pz")
    assert status["paused_at"] == document["paused_at"]
    assert document["paused_at"] in status["reason"]
    assert status["rpo_seconds"] > 0
    assert stack.call("status", "--check")[0] == 3
    assert (
        "rephub resume pz" in stack.fails("checkpoint", "create", "pz-no", "--volume", "pz", code=5)["hint"]
    )
    assert stack.read_view("pz", "--offset", str(first)) == small

    assert "return" in qsd.resize(24 * MIB)
    write(qsd, 20 * MIB, MIB, 2)
    resume(stack, "pz")
    assert stack.run("resume", "pz")["already"] is True
    assert stack.status("pz")["paused_at"] is None
    assert stack.status("pz")["size_bytes"] == 24 * MIB
    second, large = offset_of(stack, "pz", "pz-24"), qsd.content()
    assert len(large) == 24 * MIB

    stack.run("pause", "pz")
    assert "return" in qsd.resize(8 * MIB)
    resume(stack, "pz")
    assert stack.status("pz")["size_bytes"] == 8 * MIB
    offset_of(stack, "pz", "pz-8")

    # Each point as it was, with the size that it had.
    assert stack.read_view("pz", "--offset", str(first)) == small
    assert stack.read_view("pz", "--offset", str(second)) == large
    assert stack.read_view("pz", "--latest") == qsd.content() == small[: 8 * MIB]
    copy = stack.run("promote", "pz", "--offset", str(second), "--to", str(folder / "copy"), "--yes")
    assert Path(copy["path"]).read_bytes() == large
    done = stack.run("promote", "pz", "--latest", "--yes")
    assert Path(done["path"]).read_bytes() == qsd.content()
    assert stack.fails("pause", "pz", code=5)["state"] == "promoted"
    assert stack.fails("resume", "pz", code=5)["state"] == "promoted"
    stack.run("unprotect", "pz", "--purge")


def test_promote_and_unprotect_of_a_paused_volume(stack: Stack, qsd: StorageDaemon) -> None:
    stack.protect("pp", qsd.qmp, "disk0")
    write(qsd, 0, MIB, 1)
    point, want = offset_of(stack, "pp", "pp-1"), qsd.content()
    stack.run("pause", "pp")
    write(qsd, 0, MIB, 2)
    assert len(bitmaps(qsd)) == 2
    done = stack.run("promote", "pp", "--latest", "--yes")
    assert done["offset"] >= point
    assert Path(done["path"]).read_bytes() == want
    stack.wait_until("bitmap gone", lambda: not bitmaps(qsd))

    stack.protect("pp", qsd.qmp, "disk0")
    stack.run("pause", "pp")
    assert len(bitmaps(qsd)) == 2
    stack.run("unprotect", "pp", "--purge")
    assert bitmaps(qsd) == []
