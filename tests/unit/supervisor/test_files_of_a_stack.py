"""Lock, parts, endpoints, ports, child processes: what makes a stack findable and mortal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rephub.cli.endpoints import Endpoints, read_endpoints
from rephub.cli.parts import Part, parts, write_parts
from rephub.cli.stack import reap_leftovers, wait_gone
from rephub.cli.stack_lock import StackLock, holder
from rephub.core.errors import StorageError, UnavailableError
from rephub.infra.files import private_dir, write_atomic
from rephub.infra.ports import is_free, kept_ports
from rephub.infra.process import bound_log, is_same, spawn, start_time, stop


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    code = f"""
import sys, time
from pathlib import Path
from rephub.cli.stack_lock import StackLock
lock = StackLock(Path({str(tmp_path)!r}))
print(lock.acquire(), flush=True)
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "True\n"
    found = holder(tmp_path)
    assert found
    assert found.pid == child.pid
    assert is_same(found.pid, found.started_at)
    mine = StackLock(tmp_path)
    assert not mine.acquire()
    child.kill()
    child.wait()
    child.stdout.close()
    assert holder(tmp_path) is None
    assert mine.acquire()
    mine.release()


def test_parts_are_judged_by_the_system_not_by_the_file(tmp_path: Path) -> None:
    assert parts(tmp_path) == []
    me = os.getpid()
    began = start_time(me) or 0.0
    write_parts(
        tmp_path,
        [
            Part("agent1", "agent", me, began, 2),
            Part("hub1", "hub", me, began - 100),
            Part("redis", "redis", None, 0.0, 0, "waiting", "status 1"),
        ],
    )
    agent, hub, redis = parts(tmp_path)
    assert (agent["alive"], agent["pid"], agent["restarts"]) == (True, me, 2)
    assert (hub["alive"], hub["pid"], hub["state"]) == (False, None, "stopped"), (
        "the pid belongs to somebody else now"
    )
    assert (redis["alive"], redis["state"], redis["last_exit"]) == (False, "waiting", "status 1")
    (tmp_path / "supervisor.json").write_text('{"parts": [{"na')
    assert parts(tmp_path) == []


def test_leftovers_of_a_killed_supervisor_are_ended(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (tmp_path / "endpoints.json").write_text("{}")
    write_parts(tmp_path, [Part("agent1", "agent", child.pid, start_time(child.pid) or 0.0)])
    said: list[str] = []
    reap_leftovers(tmp_path, said.append)
    assert child.wait(5) == -signal.SIGTERM
    assert "agent1" in said[0]
    assert not (tmp_path / "endpoints.json").exists()


def test_a_stranger_with_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write_parts(tmp_path, [Part("agent1", "agent", child.pid, (start_time(child.pid) or 0.0) - 3600)])
    reap_leftovers(tmp_path, lambda _: None)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_endpoints_say_where_or_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPHUB_KAFKA__BOOTSTRAP", raising=False)
    with pytest.raises(UnavailableError, match="no stack runs") as caught:
        read_endpoints(tmp_path)
    assert "rephub up" in caught.value.hint
    written = Endpoints(
        "k:1", "unix:///r", "http://h:1", tmp_path, {"broker": None}, {"hub": "http://h:1"}, "c"
    )
    (tmp_path / "endpoints.json").write_text(json.dumps(written.to_document()))
    assert read_endpoints(tmp_path) == written
    (tmp_path / "endpoints.json").write_text("{")
    with pytest.raises(StorageError):
        read_endpoints(tmp_path)


def test_a_real_site_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPHUB_KAFKA__BOOTSTRAP", "k1:9092,k2:9092")
    monkeypatch.setenv("REPHUB_HUB__HOST", "hub.example")
    monkeypatch.setenv("REPHUB_HUB__PORT", "8080")
    found = read_endpoints(tmp_path)
    assert (found.bootstrap, found.web) == ("k1:9092,k2:9092", "http://hub.example:8080")


def test_ports_stay_and_move_only_if_they_must(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = kept_ports(file, ["a", "b"])
    assert len(set(first.values())) == 2
    assert kept_ports(file, ["a", "b"]) == first
    assert all(port < 32_768 for port in first.values()), (
        "an ephemeral port could be taken while its owner restarts"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["a"]))
        taken.listen()
        assert not is_free(first["a"])
        second = kept_ports(file, ["a", "b"])
    assert second["a"] not in first.values()
    assert second["b"] == first["b"]


def test_a_port_of_another_stack_is_not_taken_while_nobody_listens(tmp_path: Path) -> None:
    mine = kept_ports(tmp_path / "ports.json", ["a"])
    theirs = tmp_path / "theirs.json"
    theirs.write_text((tmp_path / "ports.json").read_text())
    code = f"""
from pathlib import Path
from rephub.infra.ports import kept_ports
print(kept_ports(Path({str(theirs)!r}), ["a"])["a"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) != mine["a"]


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from rephub.infra.process import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=Path({str(tmp_path / "log")!r}))
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    left = Part("child", "agent", pid, start_time(pid) or 0.0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_gone([left], 10.0)


def test_a_program_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot start /nonexistent/java") as caught:
        spawn(["/nonexistent/java"], log=tmp_path / "log")
    assert "make setup" in caught.value.hint


def test_stop_reports_how_it_ended(tmp_path: Path) -> None:
    child = spawn(["sleep", "600"], log=tmp_path / "log")
    assert stop(child, 5.0) == -signal.SIGTERM


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old")
    assert file.stat().st_mode & 0o777 == 0o600
    (tmp_path / f".file.{os.getpid()}").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(file, "new")
    assert file.read_text() == "old"


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make directory"):
        private_dir(tmp_path / "file" / "below")
    assert private_dir(tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_log_is_bounded_and_keeps_what_was_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a" * 100)
    bound_log(log, 100)
    assert log.stat().st_size == 100
    bound_log(log, 99)
    assert log.stat().st_size == 0
    assert (tmp_path / "log.1").read_text() == "a" * 100
