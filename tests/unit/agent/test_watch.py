"""What counts as a change of a VM, when it is looked at, and that a change is said once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from rephub.agent.announce import Announcer
from rephub.agent.discover import Seen
from rephub.agent.vm import Vm
from rephub.agent.vms import Vms
from rephub.agent.watch import Watch
from rephub.agent.workers import WorkerPool
from rephub.core.config import Settings
from rephub.core.control.port import ControlLog
from rephub.projections.catalogue import Catalogue
from rephub.schemas import events as ev


class Log:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.events: list[ev.VmAnnounced] = []

    async def append(self, _topic: str, event: Any) -> int:
        self.events.append(event)
        return len(self.events)


def node(name: str, **changes: Any) -> ev.NodeInfo:
    fields = {"node": name, "device": "", "size_bytes": 4096, "driver": "raw", "read_only": False}
    return ev.NodeInfo(**(fields | changes))


SEEN = Seen("vm1", "7.2.0", 77, (node("n1"), node("n2")))


class World:
    """A watch whose announcements can be read, and folded."""

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self.settings = Settings()
        self.catalogue = catalogue or Catalogue()
        self.log = Log()
        self.vms = Vms(WorkerPool(self.settings))
        log: Any = self.log
        control: ControlLog = log
        self.announcer = Announcer(control, self.settings.agent.id)
        self.watch = Watch(self.settings, self.catalogue, self.vms, self.announcer)
        self.vm = Vm("/q", lambda _vm: None)

    async def saw(self, *seen: Seen) -> list[ev.VmAnnounced]:
        """What is written when one after the other was seen."""
        for one in seen:
            self.watch.saw(self.vm, one)
        task = asyncio.create_task(self.announcer.run())
        assert await self.announcer.flush(5)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return self.log.events


async def test_a_change_is_said_once_and_again_when_it_comes_again() -> None:
    more = replace(SEEN, nodes=(*SEEN.nodes, node("n3")))
    said = await World().saw(SEEN, SEEN, more, more, SEEN, more)
    assert [len(event.nodes) for event in said] == [2, 3, 2, 3]
    assert len({event.id for event in said}) == 4


async def test_every_part_of_what_is_seen_counts() -> None:
    changes: list[dict[str, Any]] = [
        {"pid": 78},
        {"version": "10.0.2"},
        {"vm": "other"},
        {"nodes": (node("n1"), node("n2", size_bytes=8192))},
        {"nodes": (node("n1"), node("n2", device="vd0"))},
        {"nodes": (node("n1"), node("n2", read_only=True))},
        {"nodes": (node("n1"), node("n2", iothread="io0"))},
        {"nodes": (node("n1"),)},
    ]
    for change in changes:
        assert len(await World().saw(SEEN, replace(SEEN, **change))) == 2, change


async def test_a_restarted_agent_knows_what_it_had_said() -> None:
    before = World()
    (event,) = await before.saw(SEEN)
    agent = before.settings.agent.id
    catalogue = Catalogue()
    head = {"at": 1, "source": "agent", "hub_epoch": 0}
    catalogue.apply(0, ev.AgentAnnounced(**head, id="a", agent=agent, host="h", pid=1, url="u"))
    catalogue.apply(1, event)
    assert catalogue.ignored_events == 0
    after = World(Catalogue.from_dict(catalogue.to_dict()))
    assert await after.saw(SEEN) == []
    assert len(await after.saw(replace(SEEN, pid=78))) == 1


async def test_what_an_older_agent_announced_is_completed() -> None:
    world = World()
    entry = {"vm": "vm1", "version": "7.2.0", "nodes": [{"node": "n1", "device": "", "size_bytes": 1}]}
    entry["nodes"][0] |= {"driver": "raw", "read_only": False, "iothread": None}  # type: ignore[index]
    known = Seen.known(entry)
    assert known.pid is None
    assert len(await world.saw(known)) == 1


def test_events_of_ours_and_of_no_meaning_make_no_look() -> None:
    world = World()
    heard, due = world.vms.on_event, world.watch.due
    assert heard is not None
    heard(world.vm, "BLOCK_JOB_COMPLETED", {"device": "rephub-j-1"})
    heard(world.vm, "BLOCK_IO_ERROR", {"device": "vd0"})
    assert not due("/q")
    heard(world.vm, "DEVICE_DELETED", {"device": "vd1", "path": "/machine/peripheral/vd1"})
    assert due("/q")
