"""The main job beside a running load: attach, groups, fail-over tests, capture loss. All parts are real."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from stack import Stack, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK_BYTES = 64 * MIB


@pytest.fixture
def disks(folder: Path) -> Iterator[Callable[[int], StorageDaemon]]:
    """Make a storage daemon with so many disks."""
    started: list[StorageDaemon] = []

    def start(count: int) -> StorageDaemon:
        started.append(StorageDaemon(folder / str(len(started)), [DISK_BYTES] * count))
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


class Fio:
    """fio's nbd engine on one disk, with verification of what it reads back; any I/O error makes it fail."""

    def __init__(self, uri: str, seconds: float, *, rate: str = "", block: str = "4k-64k") -> None:
        arguments = [
            "fio",
            "--name=load",
            "--ioengine=nbd",
            f"--uri={uri}",
            "--rw=randrw",
            f"--bsrange={block}",
        ]
        arguments += [
            "--iodepth=16",
            f"--size={DISK_BYTES}",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=256",
        ]
        arguments += ["--time_based", f"--runtime={seconds}", "--randseed=7", "--verify_state_save=0"]
        arguments += [f"--rate={rate}"] if rate else []
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self) -> None:
        """Wait for its end; fail on any error."""
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, output[-3000:]
        assert "err= 0" in output, output[-3000:]

    @property
    def running(self) -> bool:
        return self.process.poll() is None


def test_attach_under_load(stack: Stack, disks, folder: Path) -> None:
    """fio with verify runs through protect, sync and detach: no I/O error, no wrong byte; at rest the view = source."""
    daemon = disks(1)
    jobs, nodes = daemon.query("query-block-jobs"), daemon.query("query-named-block-nodes")
    fio = Fio(daemon.uri(), 12, rate="40m")
    stack.protect("attach", daemon.qmp, "disk0")
    assert fio.running, "the load ended before the first sync did"
    fio.finish()
    stack.wait_until("everything is acked", lambda: stack.status("attach")["lag_bytes"] == 0)
    stack.run("checkpoint", "create", "attach-rest", "--volume", "attach")
    fot = stack.run("fot", "start", "attach", "--latest", "--read-only")
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", fot["uri"], str(daemon.files[0])], check=False
    )
    assert compared.returncode == 0
    stack.run("fot", "stop", fot["fot"])
    fio = Fio(daemon.uri(), 4, rate="40m")
    stack.run("unprotect", "attach", "--purge")
    assert fio.running, "the load ended before the detach did"
    fio.finish()
    assert daemon.query("query-block-jobs") == jobs == []
    assert [node["node-name"] for node in daemon.query("query-named-block-nodes")] == [
        node["node-name"] for node in nodes
    ]


def test_groups_and_isolated_failover_tests(stack: Stack, disks, folder: Path) -> None:
    """Two volumes of one group and a third of another; five views at different offsets while writes go on."""
    daemon, other = disks(2), disks(1)
    loads = [Load(daemon.uri(0)), Load(daemon.uri(1)), Load(other.uri(0))]
    stack.protect("db-data", daemon.qmp, "disk0", "--group", "db")
    stack.protect("db-log", daemon.qmp, "disk1", "--group", "db")
    stack.protect("web", other.qmp, "disk0")
    assert {v["group"] for v in stack.run("status")["volumes"] if v["volume"].startswith("db-")} == {"db"}
    offsets = []
    for number in range(5):
        for load in loads:
            load("write", start=number * MIB, length=MIB, seed=number)
            load("write", start=63 * MIB, length=4096, seed=100 + number)
        made = stack.run("checkpoint", "create", f"db-{number}", "--group", "db")
        assert set(made["offsets"]) == {"db-data", "db-log"}
        offsets.append(made["offsets"]["db-data"])
    loads[0].send("numbered", depth=4, count=20_000, first=1, sectors=16 * MIB // 512, seed=1)
    fots = [stack.run("fot", "start", "db-data", "--offset", str(offset)) for offset in offsets]
    assert len(stack.run("fot", "list")["fots"]) >= 5
    before = [read_uri(fot["uri"], folder / "view") for fot in fots]
    assert len({bytes(view[63 * MIB : 63 * MIB + 4096]) for view in before}) == 5
    scratch = Load(fots[2]["uri"])
    scratch("write", start=30 * MIB + 5, length=100_000, seed=9)
    scratch("zero", start=2 * MIB, length=MIB)
    scratch.close()
    loads[0].receive()
    for number, fot in enumerate(fots):
        view = read_uri(fot["uri"], folder / "view")
        assert (view == before[number]) is (number != 2)
    copy = stack.run("promote", "db-data", "--offset", str(offsets[2]), "--to", str(folder / "copy"), "--yes")
    assert Path(copy["path"]).read_bytes() == before[2]
    for fot in fots:
        stack.run("fot", "stop", fot["fot"])
    done = stack.run("promote", "db-data", "--offset", str(offsets[3]), "--yes")
    assert Path(done["path"]).read_bytes() == before[3]
    for load in loads:
        load.close()
    for volume in ("db-data", "db-log", "web"):
        stack.run("unprotect", volume, "--purge")


def test_agent_killed_comes_back_by_itself(own_stack: Stack, disks) -> None:
    """SIGKILL under load: no guest error; the supervisor restarts the agent, a resync closes the gap."""
    stack, daemon = own_stack, disks(1)
    stack.protect("killed", daemon.qmp, "disk0")
    good = stack.run("checkpoint", "create", "killed-before", "--volume", "killed")["offsets"]["killed"]
    want = stack.read_view("killed", "--offset", str(good))
    fio = Fio(daemon.uri(), 15, rate="20m")
    stack.wait_until("the load arrives", lambda: stack.status("killed")["head_offset"] > good + 100)
    pid = part(stack, "agent")["pid"]
    os.kill(pid, signal.SIGKILL)
    stack.wait_until(
        "the loss shows", lambda: stack.status("killed")["state"] in ("gap", "resyncing"), timeout=5
    )
    stack.run("wait", "killed", "--state", "protected", "--timeout", "60")
    assert part(stack, "agent")["pid"] != pid
    fio.finish()
    timeline = stack.run("timeline", "killed")
    kinds = [entry["kind"] for entry in timeline["ranges"]]
    assert kinds[-3:] == ["restorable", "gap", "restorable"], timeline["ranges"]
    gap = timeline["ranges"][-2]
    error = stack.fails("fot", "start", "killed", "--offset", str(gap["first_offset"]), code=9)
    assert error["nearest_offset"] in (gap["first_offset"] - 1, gap["last_offset"] + 1)
    assert stack.read_view("killed", "--offset", str(good)) == want
    stack.run("checkpoint", "create", "killed-after", "--volume", "killed")
    assert stack.read_view("killed", "--latest") == daemon.files[0].read_bytes()


def part(stack: Stack, kind: str) -> dict:
    """The one part of the kind."""
    (found,) = [entry for entry in stack.run("status")["parts"] if entry["kind"] == kind]
    return found


def test_agent_killed_without_restart(own_stack_no_restart: Stack, disks) -> None:
    """`status --check` exits 3 and says why; the guest goes on."""
    stack, daemon = own_stack_no_restart, disks(1)
    stack.protect("dead", daemon.qmp, "disk0")
    code, _ = stack.call("status", "--check")
    assert code == 0
    os.kill(part(stack, "agent")["pid"], signal.SIGKILL)
    stack.wait_until("status says gap", lambda: stack.status("dead")["state"] == "gap", timeout=5)
    code, document = stack.call("status", "--check")
    assert code == 3
    assert "agent" in document["volumes"][0]["reason"]
    assert document["volumes"][0]["consistent"] is False
    load = Load(daemon.uri())
    load("write", start=0, length=MIB, seed=1)
    load.close()
    assert part(stack, "agent")["alive"] is False
