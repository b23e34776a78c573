"""`rephub up` and `down`: a whole stack of real parts, found, killed, restarted, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stack import REPHUB, Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]

KINDS = {"supervisor", "broker", "redis", "hub", "agent", "diskbox"}


def until(what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def runs(pid: int | None) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def below(state_dir: Path) -> list[psutil.Process]:
    """Processes that name the state directory on their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(state_dir) in word for word in process.cmdline()):
                found.append(process)
    return found


def endpoints(stack: Stack) -> dict[str, Any]:
    return dict(json.loads((stack.state_dir / "endpoints.json").read_text()))


def part(stack: Stack, kind: str) -> dict[str, Any]:
    return next(dict(one) for one in stack.run("status")["parts"] if one["kind"] == kind)


def test_up_says_where_all_is_and_down_of_another_stack_does_not_matter(
    stack: Stack, own_stack: Stack
) -> None:
    for one in (stack, own_stack):
        document = endpoints(one)
        assert document["ready"] is True
        assert set(document["pids"]) == KINDS
        assert all(runs(pid) for pid in document["pids"].values())
        words = {kind: " ".join(psutil.Process(pid).cmdline()) for kind, pid in document["pids"].items()}
        assert "kafka.Kafka" in words["broker"], "the pid is the broker's own, not a wrapper's"
        assert "redis-server" in words["redis"]
        assert all(f" {kind} " in words[kind] for kind in ("hub", "agent", "diskbox"))
        modes = {path: path.stat().st_mode & 0o777 for path in one.state_dir.rglob("*")}
        assert modes[one.state_dir / "endpoints.json"] == 0o600
        assert all(mode == 0o600 for path, mode in modes.items() if path.is_socket())
        assert one.state_dir.stat().st_mode & 0o777 == 0o700
    first, second = endpoints(stack), endpoints(own_stack)
    assert first["bootstrap"] != second["bootstrap"]
    assert first["web"] != second["web"]
    again = own_stack.run("up", "--detach")
    assert again["already"] is True
    assert again["pids"] == second["pids"]

    assert own_stack.run("down")["already"] is False
    assert not any(runs(pid) for pid in second["pids"].values())
    assert below(own_stack.state_dir) == []
    assert not (own_stack.state_dir / "endpoints.json").exists()
    assert own_stack.run("down")["already"] is True
    assert own_stack.fails("status", code=6)["hint"]
    assert all(one["alive"] for one in stack.run("status")["parts"])

    resumed = own_stack.run("up", "--detach")
    assert {key: resumed[key] for key in ("bootstrap", "web")} == {
        key: second[key] for key in ("bootstrap", "web")
    }
    assert resumed["already"] is False


def test_parts_that_are_killed_come_back_where_they_were(own_stack: Stack) -> None:
    before = endpoints(own_stack)
    for kind in ("redis", "agent", "diskbox", "hub", "broker"):
        os.kill(before["pids"][kind], signal.SIGKILL)
    for kind in ("broker", "redis", "hub", "agent", "diskbox"):
        until(
            f"{kind} is back",
            lambda kind=kind: part(own_stack, kind)["restarts"] >= 1 and part(own_stack, kind)["alive"],
        )
    until("all answer", lambda: own_stack.call("doctor")[0] == 0)
    after = until(
        "endpoints follow",
        lambda: endpoints(own_stack)["pids"]["agent"] != before["pids"]["agent"] and endpoints(own_stack),
    )
    assert (after["bootstrap"], after["web"], after["urls"]) == (
        before["bootstrap"],
        before["web"],
        before["urls"],
    )
    assert after["pids"]["supervisor"] == before["pids"]["supervisor"]


def test_a_killed_supervisor_takes_all_along_and_up_goes_on_from_there(own_stack: Stack) -> None:
    before = endpoints(own_stack)
    os.kill(before["pids"]["supervisor"], signal.SIGKILL)
    until("children end", lambda: not any(runs(pid) for pid in before["pids"].values()))
    assert (own_stack.state_dir / "endpoints.json").exists(), "nobody was there to remove it"
    assert not any(one["alive"] for one in own_stack.run("status")["parts"])
    assert own_stack.call("doctor")[0] == 3
    after = own_stack.run("up", "--detach")
    assert after["already"] is False
    assert after["bootstrap"] == before["bootstrap"]
    assert set(after["pids"].values()).isdisjoint(before["pids"].values())


def test_without_restart_a_dead_part_stays_dead_and_doctor_says_so(own_stack_no_restart: Stack) -> None:
    stack = own_stack_no_restart
    pid = endpoints(stack)["pids"]["diskbox"]
    os.kill(pid, signal.SIGKILL)
    until("the supervisor saw it", lambda: part(stack, "diskbox")["last_exit"] == "signal SIGKILL")
    assert part(stack, "diskbox")["state"] == "stopped"
    code, document = stack.call("doctor")
    assert code == 3
    assert [one for one in document["checks"] if one["check"] == "diskbox1" and one["level"] == "failed"]


@pytest.fixture
def folder_for_up() -> Iterator[Stack]:
    """A state directory in which nothing was started yet."""
    stack = Stack(Path(subprocess.check_output(["mktemp", "-d", "/tmp/rh-XXXXXX"], text=True).strip()))
    yield stack
    stack.down()
    assert below(stack.state_dir) == []
    shutil.rmtree(stack.state_dir)


def test_in_the_foreground_it_stays_until_ctrl_c(folder_for_up: Stack) -> None:
    state_dir = folder_for_up.state_dir
    with subprocess.Popen(
        [REPHUB, "up", "--json", "--state-dir", state_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        document = json.loads(process.stdout.readline())
        assert document["pids"]["supervisor"] == process.pid
        second = folder_for_up.run("up", "--detach")
        assert second["already"] is True
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == "", "exactly one document"
        said = process.stderr.read()
    assert "broker is ready" in said
    assert said.index("stopping agent") < said.index("stopping hub") < said.index("stopping broker")
    assert not any(runs(pid) for pid in document["pids"].values())


def test_a_wrong_kafka_address_fails_soon_and_leaves_nothing(folder_for_up: Stack) -> None:
    began = time.monotonic()
    error = folder_for_up.fails("up", "--detach", "--bootstrap", "127.0.0.1:9", code=6)
    assert time.monotonic() - began < 20
    assert "127.0.0.1:9" in error["message"]
    assert "--bootstrap" in error["hint"]
    assert below(folder_for_up.state_dir) == []
    assert folder_for_up.fails("up", "--detach", "--bootstrap", "nonsense", code=2)
    assert folder_for_up.fails("up", "--detach", "--redis", "http://x", code=2)
    assert (
        "127.0.0.1:9"
        in folder_for_up.fails("up", "--detach", "--redis", "redis://127.0.0.1:9", code=6)["message"]
    )


def test_a_given_kafka_and_redis_are_used_and_left_alone(
    folder_for_up: Stack, kafka: str, redis_url: str
) -> None:
    document = folder_for_up.run("up", "--detach", "--bootstrap", kafka, "--redis", redis_url)
    assert (document["bootstrap"], document["redis"]) == (kafka, redis_url)
    assert (document["pids"]["broker"], document["pids"]["redis"]) == (None, None)
    assert not (folder_for_up.state_dir / "broker").exists()
    folder_for_up.run("down")


def test_bad_state_directories(tmp_path: Path) -> None:
    too_long = Stack(Path("/tmp") / ("d" * 100))
    assert "at most" in too_long.fails("up", "--detach", code=2)["message"]
    assert not too_long.state_dir.exists()
    file = Path("/tmp") / f"rh-{os.getpid()}"
    file.touch()
    assert "cannot make directory" in Stack(file).fails("up", "--detach", code=12)["message"]
    assert "cannot make directory" in Stack(Path("/proc/rephub")).fails("up", "--detach", code=12)["message"]
    file.unlink()


def test_missing_programs_are_named(
    folder_for_up: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    error = folder_for_up.fails("up", "--detach", code=6)
    assert (error["message"], "make setup" in error["hint"]) == (
        "java is not installed; the broker needs it",
        True,
    )
    (tmp_path / "java").symlink_to(shutil.which("java", path=os.defpath) or "/usr/bin/java")
    assert "redis-server is not installed" in folder_for_up.fails("up", "--detach", code=6)["message"]
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    assert "jars are not in KAFKA_HOME" in folder_for_up.fails("up", "--detach", code=6)["message"]
    assert "docker compose" in folder_for_up.fails("up", "--detach", "--compose", code=6)["message"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A full file system: tmpfs of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    path = Path(subprocess.check_output(["mktemp", "-d", "/tmp/rh-XXXXXX"], text=True).strip())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


def test_a_full_disk_is_said_before_anything_starts(small_disk: Path) -> None:
    error = Stack(small_disk / "s").fails("up", "--detach", code=12)
    assert "MiB are free" in error["message"]
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(1 << 16))
            filler.flush()
    message = Stack(small_disk / "t").fails("up", "--detach", code=12)["message"]
    assert "No space left" in message or "only 0 MiB are free" in message
    assert below(small_disk) == []


def test_settings_tell_their_origin(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPHUB_AGENT__WORKERS", "2")
    settings = stack.run("config", "show", "--origin")["settings"]
    assert settings["agent.workers"] == {"value": 2, "origin": "environment REPHUB_AGENT__WORKERS"}
    assert settings["kafka.bootstrap"] == {
        "value": endpoints(stack)["bootstrap"],
        "origin": f"file {stack.state_dir / 'config.toml'}",
    }
