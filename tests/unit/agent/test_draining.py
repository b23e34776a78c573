"""A move whose agent is killed between the stop of the VM and the event: that the VM ran is not forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rephub.agent.draining import Draining
from rephub.projections.catalogue import Failover
from rephub.schemas import events as ev


class FakeVm:
    """A monitor that knows whether its guest runs."""

    def __init__(self) -> None:
        self.running = True

    async def execute(self, command: str, _arguments: Any = None, **_rest: Any) -> Any:
        if command in ("stop", "cont"):
            self.running = command == "cont"
        return {"query-status": {"running": self.running}, "query-named-block-nodes": []}.get(command, {})


class Site:
    """An agent's parts; `agent()` is one life of it."""

    def __init__(self, directory: Path) -> None:
        self.vm, self.emitted = FakeVm(), []
        self.directory = directory
        self.acked = asyncio.Event()
        self.found = Failover(
            name="fo", volumes=["v"], group=None, diskbox="d", point_kind="latest", point_value="", dry_run=False,
            planned=True, qmp=None,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def changing(self, _vm: FakeVm) -> AsyncIterator[None]:
        yield

    async def get(self, _qmp: str, _user: Any) -> FakeVm:
        return self.vm

    def agent(self) -> Draining:
        volume = SimpleNamespace(agent="a1", qmp="/vm.sock", node="n")
        catalogue = SimpleNamespace(failovers={"fo": self.found}, volumes={"v": volume})
        settings = SimpleNamespace(agent_dir=self.directory, agent=SimpleNamespace(id="a1"))
        vms = SimpleNamespace(get=self.get, give_back=lambda *_: None, changing=self.changing)

        def emit(what: type, _subject: str, **fields: Any) -> None:
            self.emitted.append((what, fields))

        async def position(*_: Any, **__: Any) -> dict[str, int]:
            await self.acked.wait()
            return {"acked_offset": 7}

        keeper = SimpleNamespace(
            worker=SimpleNamespace(call=position),
            local=SimpleNamespace(held=SimpleNamespace(epoch=1)),
            is_consistent=True,
        )
        parts = SimpleNamespace(
            catalogue=catalogue, settings=settings, vms=vms, announcer=SimpleNamespace(emit=emit)
        )
        return Draining(parts, {"v": keeper})  # type: ignore[arg-type, dict-item]

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    async def killed_while_draining(self) -> None:
        first = self.agent()
        first.look()
        await self.until(lambda: not self.vm.running)
        await first.stop()
        assert not self.emitted


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "agent")


async def test_the_next_life_says_that_the_vm_ran(site: Site) -> None:
    await site.killed_while_draining()
    site.acked.set()
    second = site.agent()
    second.look()
    await site.until(lambda: site.emitted)
    ((what, fields),) = site.emitted
    assert what is ev.FailoverDrained
    assert fields["drained"][0].stopped
    # Once the event is folded, the note has done its work.
    site.found.drained = {"v": {"offset": 7, "captured_at": 1, "stopped": True, "agent": "a1"}}
    site.found.state = "drained"
    second.look()
    assert (site.directory / "stopped.json").read_text() == "{}"


async def test_a_move_that_failed_meanwhile_leaves_no_vm_stopped(site: Site) -> None:
    await site.killed_while_draining()
    site.found.state = "failed"
    third = site.agent()
    third.look()
    await site.until(lambda: site.vm.running)
    await site.until(lambda: (site.directory / "stopped.json").read_text() == "{}")
    assert not site.emitted


async def test_a_vm_that_somebody_had_stopped_stays_so(site: Site) -> None:
    site.vm.running = False
    site.acked.set()
    agent = site.agent()
    agent.look()
    await site.until(lambda: site.emitted)
    assert not site.emitted[0][1]["drained"][0].stopped
