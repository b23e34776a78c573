"""The contract of the command line: fields, types and exit codes of every verb, on a real stack and a real QEMU.

What is checked here is what other tools rely on (docs/cli.md); what the verbs do to data is checked elsewhere.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import pytest

from qsd import Load, StorageDaemon
from stack import REPHUB, Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

MIB = 1 << 20
NUMBER = int | float
RESOLVED = {"offset": int, "captured_at": str, "checkpoint": str | NoneType}
VIEW = {"fot": str, "volume": str, "offset": int, "uri": str, "resolved": RESOLVED}
PLAN = {
    "volume": str,
    "offset": int,
    "path": str,
    "applied_events": int,
    "applied_bytes": int,
    "resolved": RESOLVED,
}
STATUS = {
    "volume": str,
    "group": str,
    "agent": str,
    "diskbox": str,
    "recovery": str,
    "size_bytes": int,
    "state": str,
    "consistent": bool,
    "epoch": int,
    "head_offset": int,
    "acked_offset": int,
    "applied_offset": int,
    "earliest_offset": int,
    "latest_offset": int,
    "rpo_seconds": NUMBER,
    "window_seconds": NUMBER,
    "lag_bytes": int,
    "dirty_bytes": int,
    "sync": dict | NoneType,
    "sync_pace": dict,
    "reason": str,
}


def shape(found: Any, wanted: Any, at: str = "document") -> None:
    """Fail unless `found` has at least the wanted fields, with values of the wanted types; a list: all of one shape."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), (at, found)
        assert set(wanted) <= set(found), (at, set(wanted) - set(found))
        for name, kind in wanted.items():
            shape(found[name], kind, f"{at}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), (at, found)
        assert found, f"{at} is empty"
        for number, entry in enumerate(found):
            shape(entry, wanted[0], f"{at}[{number}]")
    else:
        assert isinstance(wanted, (type, UnionType))
        assert isinstance(found, wanted), (at, found)
        assert not (isinstance(found, bool) and wanted in (int, NUMBER)), (at, found)


def moment(text: str) -> dt.datetime:
    """A time of the contract: RFC 3339 with a zone."""
    at = dt.datetime.fromisoformat(text)
    assert at.tzinfo is not None
    return at


class Command(Stack):
    """Every verb by the command itself, as other tools run it."""

    def call(self, *arguments: str, timeout: float = 120) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [REPHUB, *arguments, "--json", "--state-dir", str(self.state_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        (line,) = done.stdout.splitlines()
        return done.returncode, json.loads(line)


@pytest.fixture(scope="module")
def stack(stack: Stack) -> Command:
    """The stack of the session."""
    return Command(stack.state_dir)


@pytest.fixture(scope="module")
def qemu(short_session_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_session_dir / "contract", [16 * MIB] * 4)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def volume(stack: Stack, qemu: StorageDaemon) -> Iterator[str]:
    """Volume `c1` with some writes, alone in its group, and a checkpoint `c1-mark`."""
    document = stack.run("protect", "c1", "--qmp", str(qemu.qmp), "--node", "disk0", "--history", "1h,1GiB")
    shape(document, {"volume": str, "group": str, "epoch": int, "state": str})
    assert (document["volume"], document["group"], document["epoch"]) == ("c1", "c1", 1)
    assert "already" not in document
    assert stack.run("wait", "c1", "--state", "protected", "--timeout", "60")["state"] == "protected"
    load = Load(qemu.uri())
    for number in range(8):
        load("write", start=number * MIB, length=4096, seed=number)
    load.close()
    marked = stack.run("checkpoint", "create", "c1-mark", "--volume", "c1")
    shape(marked, {"checkpoint": str, "kind": str, "offsets": {"c1": int}})
    assert marked["kind"] == "crash"
    yield "c1"
    stack.call("unprotect", "c1", "--purge")


def test_up_is_idempotent(stack: Stack) -> None:
    document = stack.run("up", "--detach")
    pids = dict.fromkeys(("supervisor", "broker", "redis", "hub", "agent", "diskbox"), int)
    shape(
        document, {"ready": bool, "bootstrap": str, "redis": str, "web": str, "state_dir": str, "pids": pids}
    )
    assert document["ready"] is True
    assert document["already"] is True


def test_protect_again_is_already(stack: Stack, qemu: StorageDaemon, volume: str) -> None:
    for node in ("disk0", "guest0"):
        document = stack.run("protect", volume, "--qmp", str(qemu.qmp), "--node", node)
        assert document["already"] is True
        shape(document, {"volume": str, "group": str, "epoch": int, "state": str})


def test_status(stack: Stack, volume: str) -> None:
    document = stack.run("status")
    shape(document, {"volumes": [dict], "parts": [{"name": str, "kind": str, "pid": int, "alive": bool}]})
    (entry,) = stack.run("status", volume)["volumes"]
    shape(entry, STATUS)
    assert (entry["state"], entry["consistent"], entry["group"]) == ("protected", True, "c1")
    assert entry["earliest_offset"] <= entry["latest_offset"] <= entry["head_offset"]
    code, _ = stack.call("status", volume, "--check")
    assert code == 0


def test_status_for_people(stack: Stack, volume: str) -> None:
    done = subprocess.run(
        [REPHUB, "--state-dir", stack.state_dir, "status", volume], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1].split()[:3] == ["c1", "c1", "protected"]


def test_status_watch_is_a_stream_of_documents(stack: Stack, volume: str) -> None:
    watching = subprocess.Popen(
        [REPHUB, "--json", "--state-dir", stack.state_dir, "status", volume, "--watch"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    documents = [json.loads(watching.stdout.readline()) for _ in range(2)]
    watching.terminate()
    watching.communicate(timeout=10)
    assert [document["volumes"][0]["volume"] for document in documents] == [volume] * 2


def test_wait_names_the_last_state(stack: Stack, volume: str) -> None:
    error = stack.fails("wait", volume, "--state", "promoted", "--timeout", "0.5", code=1)
    assert error["state"] == "protected"
    assert "protected" in error["message"]


def test_timeline(stack: Stack, volume: str) -> None:
    document = stack.run("timeline", volume)
    span = {"first_offset": int, "last_offset": int, "from_at": str, "to_at": str, "kind": str, "reason": str}
    shape(
        document,
        {"ranges": [span], "checkpoints": [{"checkpoint": str, "offset": int}], "epochs": [{"epoch": int}]},
    )
    assert {entry["kind"] for entry in document["ranges"]} <= {"restorable", "gap"}
    for entry in document["ranges"]:
        assert entry["first_offset"] <= entry["last_offset"]
        assert moment(entry["from_at"]) <= moment(entry["to_at"])
    assert "c1-mark" in [entry["checkpoint"] for entry in document["checkpoints"]]


def test_checkpoints(stack: Stack, volume: str) -> None:
    document = stack.run("checkpoint", "list")
    wanted = {"checkpoint": str, "kind": str, "offsets": dict, "captured_at": str}
    shape(document, {"checkpoints": [wanted]})
    (mark,) = [entry for entry in document["checkpoints"] if entry["checkpoint"] == "c1-mark"]
    moment(mark["captured_at"])
    assert list(mark["offsets"]) == [volume]
    error = stack.fails("checkpoint", "create", "c1-mark", "--volume", volume, code=5)
    assert error["class"] == "ConflictError"


def points(stack: Stack, volume: str) -> list[tuple[str, ...]]:
    """Each kind of point, all good."""
    (mark,) = [c for c in stack.run("timeline", volume)["checkpoints"] if c["checkpoint"] == "c1-mark"]
    return [
        ("--offset", str(mark["offset"])),
        ("--checkpoint", "c1-mark"),
        ("--time", mark["captured_at"]),
        ("--latest",),
    ]


def test_fot_at_every_kind_of_point(stack: Stack, volume: str) -> None:
    for point in points(stack, volume):
        fot = stack.run("fot", "start", volume, *point, "--read-only")
        shape(fot, VIEW)
        assert fot["uri"].startswith("nbd")
        assert fot["resolved"]["offset"] == fot["offset"]
        moment(fot["resolved"]["captured_at"])
        if point[0] == "--checkpoint":
            assert fot["resolved"]["checkpoint"] == "c1-mark"
        listed = [entry for entry in stack.run("fot", "list")["fots"] if entry["fot"] == fot["fot"]]
        shape(listed, [VIEW])
        assert stack.run("fot", "stop", fot["fot"]) == {"fot": fot["fot"]}
        assert stack.run("fot", "stop", fot["fot"]) == {"fot": fot["fot"], "already": True}
        assert fot["fot"] not in [entry["fot"] for entry in stack.run("fot", "list")["fots"]]


def test_hydration_is_set_waited_for_and_stopped(stack: Stack, volume: str) -> None:
    fot = stack.run("fot", "start", volume, "--latest", "--read-only")["fot"]
    done = stack.run("fot", "hydrate", fot, "--rate", "1GiB", "--wait")
    (view,) = done["volumes"]
    assert view["volume"] == volume
    assert view["hydration"]["state"] == "done"
    assert view["rate_bytes_per_second"] == 1 << 30
    stack.run("fot", "hydrate", fot, "--stop")
    (listed,) = [entry for entry in stack.run("fot", "list")["fots"] if entry["fot"] == fot]
    assert listed["hydration"]["done_events"] == listed["hydration"]["total_events"]
    stack.fails("fot", "hydrate", fot, "--rate", "fast", code=2)
    stack.run("fot", "stop", fot)
    stack.fails("fot", "hydrate", fot, code=4)
    stack.fails("fot", "hydrate", fot, "--stop", code=5)


def test_a_point_that_is_not_there_names_the_nearest(stack: Stack, volume: str) -> None:
    for verb in (("fot", "start"), ("promote",)):
        error = stack.fails(*verb, volume, "--offset", "99999999", code=9)
        assert error["class"] == "PointNotAvailableError"
        assert isinstance(error["nearest_offset"], int)


@pytest.mark.parametrize(
    "point", [(), ("--latest", "--offset", "1"), ("--time", "noon"), ("--checkpoint", "a/b")]
)
def test_exactly_one_good_point(stack: Stack, volume: str, point: tuple[str, ...]) -> None:
    for verb in (("fot", "start"), ("promote",)):
        stack.fails(*verb, volume, *point, code=2)


def test_promote_says_first_and_asks(stack: Stack, volume: str, folder: Path) -> None:
    plan = stack.run("promote", volume, "--checkpoint", "c1-mark", "--dry-run")
    lost = {"lost_events": int, "lost_bytes": int, "lost_seconds": NUMBER}
    shape(plan, PLAN | lost)
    error = stack.fails("promote", volume, "--checkpoint", "c1-mark", code=2)
    assert error["class"] == "ConfirmationRequired"
    shape(error["plan"], PLAN | lost)
    assert error["plan"]["offset"] == plan["offset"]
    assert stack.status(volume)["state"] == "protected"
    copy = stack.run("promote", volume, "--checkpoint", "c1-mark", "--to", str(folder / "copy"), "--yes")
    shape(copy, PLAN)
    assert copy["path"] == str(folder / "copy")
    assert Path(copy["path"]).stat().st_size == 16 * MIB
    assert stack.status(volume)["state"] == "protected"


def test_resync(stack: Stack, volume: str) -> None:
    before = stack.status(volume)["epoch"]
    document = stack.run("resync", volume)
    shape(document, {"volume": str, "epoch": int, "state": str})
    assert document["epoch"] == before + 1
    stack.run("wait", volume, "--state", "protected", "--timeout", "60")


def test_a_group(stack: Stack, qemu: StorageDaemon) -> None:
    for number in (1, 2):
        stack.protect(f"c-g{number}", qemu.qmp, f"disk{number}", "--group", "c-group")
    marked = stack.run("checkpoint", "create", "c-group-mark", "--group", "c-group")
    assert set(marked["offsets"]) == {"c-g1", "c-g2"}
    fot = stack.run("fot", "start", "--group", "c-group", "--checkpoint", "c-group-mark")
    shape(fot, {"fot": str, "group": str, "volumes": [VIEW]})
    assert {view["volume"]: view["offset"] for view in fot["volumes"]} == marked["offsets"]
    stack.fails("fot", "start", "--group", "c-group", "--offset", "3", code=2)
    stack.fails("unprotect", "c-g1", code=5)
    stack.run("fot", "stop", fot["fot"])
    done = stack.run("promote", "--group", "c-group", "--checkpoint", "c-group-mark", "--yes")
    shape(done, {"group": str, "volumes": [PLAN]})
    assert {plan["volume"]: plan["offset"] for plan in done["volumes"]} == marked["offsets"]
    assert {stack.status(name)["state"] for name in ("c-g1", "c-g2")} == {"promoted"}
    for name in ("c-g1", "c-g2"):
        stack.run("unprotect", name, "--purge")


def test_promote_and_after(stack: Stack, qemu: StorageDaemon) -> None:
    """Promote ends protection; the same promote is `already`; a later protect opens a new epoch; purge ends all."""
    stack.protect("c-end", qemu.qmp, "disk3")
    stack.run("checkpoint", "create", "c-end-mark", "--volume", "c-end")
    done = stack.run("promote", "c-end", "--checkpoint", "c-end-mark", "--yes")
    shape(done, PLAN)
    assert stack.status("c-end")["state"] == "promoted"
    again = stack.run("promote", "c-end", "--checkpoint", "c-end-mark", "--yes")
    assert again["already"] is True
    assert again["offset"] == done["offset"]
    assert stack.fails("promote", "c-end", "--latest", "--yes", code=5)["state"] == "promoted"
    assert stack.fails("fot", "start", "c-end", "--latest", code=5)["state"] == "promoted"
    assert stack.fails("resync", "c-end", code=5)["state"] == "promoted"
    assert stack.run("protect", "c-end", "--qmp", str(qemu.qmp), "--node", "disk3")["epoch"] > 1
    stack.run("wait", "c-end", "--state", "protected", "--timeout", "60")
    assert stack.run("unprotect", "c-end") == {"volume": "c-end", "purged": False}
    assert stack.run("unprotect", "c-end") == {"volume": "c-end", "purged": False, "already": True}
    stack.fails("status", "c-end", code=4)
    assert stack.run("unprotect", "c-end", "--purge") == {"volume": "c-end", "purged": True}
    assert stack.run("unprotect", "c-end", "--purge")["already"] is True


def test_hub_down_is_said_quickly_and_status_still_answers(own_stack_no_restart: Stack) -> None:
    stack = Command(own_stack_no_restart.state_dir)
    (hub,) = [part for part in stack.run("status")["parts"] if part["kind"] == "hub"]
    subprocess.run(["kill", "-KILL", str(hub["pid"])], check=True)
    stack.wait_until(
        "the hub's death shows",
        lambda: not next(p for p in stack.call("status")[1]["parts"] if p["kind"] == "hub")["alive"],
    )
    code, document = stack.call("status", "--check")
    assert code == 3
    assert any("hub" in problem for problem in document["problems"])
    error = stack.fails("unprotect", "x", "--timeout", "2", code=6)
    assert "hub" in error["message"]
