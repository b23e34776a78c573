"""The supervisor with small real processes: order, restarts, failure, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rephub.cli import supervisor as supervisor_module
from rephub.cli.part_spec import PartSpec, Stage
from rephub.cli.parts import parts
from rephub.cli.supervisor import Supervisor
from rephub.core.errors import StorageError, UnavailableError
from rephub.infra.process import start_time

STUBBORN = "import signal,time,pathlib,sys; signal.signal(15, signal.SIG_IGN); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
POLITE = (
    "import signal,time,pathlib,sys\n"
    "def end(*_):\n"
    "    open(sys.argv[2], 'a').write(sys.argv[3] + '\\n')\n"
    "    sys.exit(0)\n"
    "signal.signal(15, end)\n"
    "pathlib.Path(sys.argv[1]).touch()\n"
    "while True: signal.pause()\n"
)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def _done() -> None:
    pass


class Bench:
    """One supervisor under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = folder / "order"
        self.said: list[str] = []
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.changes = 0
        self.grown: list[PartSpec] = []

    def part(self, kind: str, code: str = POLITE) -> PartSpec:
        flag = self.folder / f"{kind}.ready"
        argv = [sys.executable, "-c", code, str(flag), str(self.order), kind]

        async def ready() -> bool:
            return flag.exists()

        return PartSpec(f"{kind}1", kind, lambda: argv, self.folder / f"{kind}.log", ready)

    def start(
        self, *stages: list[PartSpec], restart: bool = True, after: Callable[[], Awaitable[None]] = _done
    ) -> None:
        self.supervisor = Supervisor(
            self.folder,
            [Stage(stage, after) for stage in stages],
            restart=restart,
            say=self.said.append,
            on_change=self._changed,
            grown=lambda: self.grown,
        )
        self.task = asyncio.create_task(self.supervisor.run(self._ready, self.stop))

    async def end(self) -> None:
        self.stop.set()
        await self.task

    def entry(self, name: str) -> dict[str, object]:
        return next(part for part in parts(self.folder) if part["name"] == name)

    def _changed(self) -> None:
        self.changes += 1

    async def _ready(self) -> None:
        self.ready.set()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_parts_stop_in_order_whatever_order_they_started_in(bench: Bench) -> None:
    bench.start(
        [bench.part("broker"), bench.part("redis")],
        [bench.part("hub"), bench.part("agent"), bench.part("diskbox"), bench.part("monitor")],
    )
    await asyncio.wait_for(bench.ready.wait(), 20)
    pids = bench.supervisor.pids()
    assert pids["supervisor"] == os.getpid()
    assert all(start_time(pid or 0) for pid in pids.values())
    await bench.end()
    assert bench.order.read_text().split() == ["monitor", "agent", "diskbox", "hub", "redis", "broker"]
    assert not any(start_time(pid or 0) for kind, pid in pids.items() if kind != "supervisor")


async def test_a_killed_part_comes_back_with_another_pid(bench: Bench) -> None:
    bench.start([bench.part("agent")])
    await asyncio.wait_for(bench.ready.wait(), 20)
    first = bench.supervisor.pids()["agent"]
    os.kill(first or 0, signal.SIGKILL)
    await until(lambda: bench.entry("agent1")["restarts"] == 1 and bench.entry("agent1")["alive"])
    entry = bench.entry("agent1")
    assert entry["pid"] not in {first, None}
    assert entry["last_exit"] == "signal SIGKILL"
    assert bench.changes >= 1
    await bench.end()


async def test_what_a_killed_part_left_behind_goes_with_it(bench: Bench) -> None:
    code = (
        "import subprocess,sys,pathlib,time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    bench.start([bench.part("agent", code)], restart=False)
    await asyncio.wait_for(bench.ready.wait(), 20)
    flag = bench.folder / "agent.ready"
    await until(flag.read_text)
    worker = int(flag.read_text())
    os.kill(bench.supervisor.pids()["agent"] or 0, signal.SIGKILL)
    await until(lambda: start_time(worker) is None)
    await bench.end()


async def test_no_restart_leaves_it_dead_and_says_so(bench: Bench) -> None:
    bench.start([bench.part("agent"), bench.part("hub")], restart=False)
    await asyncio.wait_for(bench.ready.wait(), 20)
    os.kill(bench.supervisor.pids()["agent"] or 0, signal.SIGTERM)
    # A reader sees at once that it is dead, and how it ended as soon as the supervisor has noticed.
    await until(lambda: bench.entry("agent1")["last_exit"])
    assert bench.entry("agent1")["last_exit"] == "status 0"
    assert bench.entry("agent1")["state"] == "stopped"
    assert not bench.entry("agent1")["alive"]
    assert bench.entry("hub1")["alive"]
    await bench.end()


async def test_a_flapping_part_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rephub.cli.restarts.DELAY_SECONDS_MAX", 0.05)
    code = "import pathlib,sys,time\np = pathlib.Path(sys.argv[1])\nif p.exists(): sys.exit(7)\np.touch(); time.sleep(0.5)"
    bench.start([bench.part("hub", code)])
    await asyncio.wait_for(bench.ready.wait(), 20)
    await until(lambda: bench.entry("hub1")["state"] == "flapping")
    assert bench.entry("hub1")["last_exit"] == "status 7"
    await bench.end()


async def test_a_part_that_ends_at_its_start_fails_the_whole_and_leaves_nothing(bench: Bench) -> None:
    bench.start([bench.part("broker")], [bench.part("hub", "import sys; sys.exit('no such cluster')")])
    with pytest.raises(UnavailableError, match=r"hub ended at its start \(status 1\): no such cluster"):
        await bench.task
    assert not bench.ready.is_set()
    assert bench.order.read_text().split() == ["broker"]


async def test_a_part_that_never_gets_ready_has_a_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "READY_SECONDS_MAX", 0.3)
    bench.start([bench.part("hub", "import time; print('still thinking', flush=True); time.sleep(600)")])
    with pytest.raises(UnavailableError, match="was not ready within"):
        await bench.task
    assert bench.supervisor.pids()["hub"] is None


async def test_a_failed_look_between_stages_stops_the_first(bench: Bench) -> None:
    async def refuse() -> None:
        raise UnavailableError("no Kafka")

    bench.start([bench.part("broker")], [bench.part("hub")], after=refuse)
    with pytest.raises(UnavailableError, match="no Kafka"):
        await bench.task
    assert bench.order.read_text().split() == ["broker"]


async def test_stop_while_starting_ends_what_was_started(bench: Bench) -> None:
    never = bench.part("hub", "import time; time.sleep(600)")
    bench.start([bench.part("broker")], [never])
    await until(
        lambda: (
            bench.folder.joinpath("supervisor.json").exists()
            and "hub" in bench.folder.joinpath("supervisor.json").read_text()
        )
    )
    pid = bench.supervisor.pids()["hub"]
    await bench.end()
    assert not bench.ready.is_set()
    assert start_time(pid or 0) is None


async def test_a_part_that_ignores_sigterm_is_killed_at_its_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", {"agent": 0.2})
    bench.start([bench.part("agent", STUBBORN)])
    await asyncio.wait_for(bench.ready.wait(), 20)
    pid = bench.supervisor.pids()["agent"]
    await bench.end()
    assert start_time(pid or 0) is None


async def test_a_part_that_is_added_is_watched_like_the_others(bench: Bench) -> None:
    bench.start([bench.part("diskbox")])
    await asyncio.wait_for(bench.ready.wait(), 20)
    first = bench.supervisor.pids()["diskbox"]
    flag = bench.folder / "added.ready"
    argv = [sys.executable, "-c", POLITE, str(flag), str(bench.order), "added"]
    spec = replace(bench.part("diskbox"), name="diskbox2", argv=lambda: argv)
    missing = replace(spec, name="diskbox3", argv=lambda: ["/nonexistent"])
    bench.grown = [spec, missing]
    await until(lambda: flag.exists() and bench.entry("diskbox2")["alive"])
    await until(lambda: "cannot start" in str(bench.entry("diskbox3")["last_exit"]))
    assert bench.supervisor.pids()["diskbox"] == first, "the first of its kind"
    flag.unlink()
    os.kill(int(str(bench.entry("diskbox2")["pid"])), signal.SIGKILL)
    await until(lambda: flag.exists() and bench.entry("diskbox2")["restarts"] == 1)
    os.kill(first or 0, signal.SIGKILL)
    await until(lambda: bench.entry("diskbox1")["restarts"] == 1 and bench.entry("diskbox1")["alive"])
    pid = int(str(bench.entry("diskbox2")["pid"]))
    assert bench.supervisor.pids()["diskbox"] not in {None, pid}
    await bench.end()
    assert "added" in bench.order.read_text().split()
    assert start_time(pid) is None


async def test_a_list_that_cannot_be_read_stops_nothing(bench: Bench) -> None:
    def broken() -> list[PartSpec]:
        asked.set()
        raise StorageError("cannot read the list", hint="mend it")

    asked = asyncio.Event()
    bench.start([bench.part("diskbox")])
    bench.supervisor._grown = broken
    await asyncio.wait_for(asked.wait(), 20)
    await asyncio.wait_for(bench.ready.wait(), 20)
    assert bench.entry("diskbox1")["alive"]
    assert not bench.task.done()
    await bench.end()
