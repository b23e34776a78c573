"""Named checkpoints of a group over two agents: no later write shows without the earlier one.

The disks are of two QEMUs, each captured by an agent of its own; the load is that of test_crossdisk.py. Enabled: real QEMU
block layer, Kafka, Redis, all daemons, two agent processes on one host. Not enabled: several hosts.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Rig, fresh
from dependent_writes import DISK_BYTES, Loads, Shown, judge, shown_by_journal, shown_by_view, violations
from qsd import StorageDaemon
from rephub.schemas import events as ev
from stack import Stack, read_uri

pytestmark = [
    pytest.mark.long,
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.qemu,
    pytest.mark.timeout(600),
]

SEED = 20261125
TORN_AGENT = str(Path(__file__).parent.parent / "tools/torn_agent.py")

CHECKPOINTS = 110
LOAD_SECONDS = 180
"""At most: it ends with the last checkpoint."""

PAUSE_SECONDS = 0.002
"""Between the load's steps: two cores are left for two agents."""


@pytest.fixture
def qsds(folder: Path) -> Iterator[tuple[StorageDaemon, StorageDaemon]]:
    """Two QEMUs of one disk each."""
    daemons = StorageDaemon(folder / "q0", [DISK_BYTES]), StorageDaemon(folder / "q1", [DISK_BYTES])
    yield daemons
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
async def torn_rigs(folder: Path, kafka: str, redis_url: str) -> AsyncIterator[list[Rig]]:
    """Two agents that hold no answers, and mark when they like."""
    rigs = []
    try:
        for number in range(2):
            (folder / f"a{number}").mkdir()
            rigs.append(Rig(folder / f"a{number}", kafka, redis_url, checkpoint_seconds=0))
            rigs[-1].program = [TORN_AGENT]
            await rigs[-1].start()
        yield rigs
    finally:
        for rig in rigs:
            await rig.close()


async def mark(rig: Rig, coordinator: str, name: str, group: str, volumes: list[str]) -> Any:
    """Ask as the hub does; the event that answers."""
    await rig.tell(
        ev.CheckpointRequested,
        checkpoint=name,
        volumes=tuple(volumes),
        group=group,
        agent=coordinator,
        kind="crash",
    )
    return await rig.until(
        f"checkpoint {name}",
        lambda: [*rig.of(ev.CheckpointCreated, name), *rig.of(ev.CheckpointFailed, name)],
    )


async def many(
    rig: Rig,
    coordinator: str,
    group: str,
    volumes: list[str],
    qsds: tuple[StorageDaemon, StorageDaemon],
    count: int,
    pause: float = PAUSE_SECONDS,
) -> tuple[dict[str, Any], Shown]:
    """So many checkpoints under load: the events, and the last write of each chain."""
    made, failed = {}, []
    enough = rig.folder / "enough"
    loads = Loads((qsds[0].uri(), qsds[1].uri()), LOAD_SECONDS, SEED, until=str(enough), pause=pause)
    while len(made) < count:
        name = f"{group}-{len(made) + len(failed)}"
        (answer,) = await mark(rig, coordinator, name, group, volumes)
        if isinstance(answer, ev.CheckpointCreated):
            made[name] = answer
        else:
            failed.append(answer.error)
            assert len(failed) < count, failed
    enough.touch()
    longest = max((answer.hold_ms for answer in made.values()), default=0)
    print(f"{len(made)} checkpoints, {len(failed)} void, longest hold {longest} ms")
    return made, await asyncio.to_thread(loads.end)


async def test_no_checkpoint_over_two_agents_shows_a_later_write_without_the_earlier(
    own_stack: Stack, qsds: tuple[StorageDaemon, StorageDaemon], folder: Path
) -> None:
    stack, group, volumes = own_stack, "xa", ["xa0", "xa1"]
    endpoints = json.loads((stack.state_dir / "endpoints.json").read_text())
    await asyncio.to_thread(stack.protect, volumes[0], qsds[0].qmp, "disk0", "--group", group)
    rig = Rig(folder, endpoints["bootstrap"], endpoints["redis"])
    rig.auto_sync = False
    try:
        await rig.start()
        # As the hub would, had the other agent alone seen this QEMU.
        await rig.journals.admin().create(volumes[1])
        terms = {"ack": "async", "overload": "throttle", "history_seconds": 3600, "history_bytes": 1 << 30}
        where = {"qmp": str(qsds[1].qmp), "node": "disk0", "size_bytes": DISK_BYTES}
        await rig.tell(
            ev.StartProtect,
            volume=volumes[1],
            group=group,
            agent=rig.agent,
            diskbox="diskbox1",
            **terms,
            **where,
        )
        await rig.protected(volumes[1])

        made, answered = await many(rig, "agent1", group, volumes, qsds, CHECKPOINTS)
        first, second = [await shown_by_journal(rig.journals, volume) for volume in volumes]
        first, second = ({name: shown[name] for name in made} for shown in (first, second))
        assert judge(first, second) == {}
        states = {tuple(first[name] + second[name]) for name in made if any(first[name])}
        print(f"{len(states)} states, {sum(answered)} dependent writes")
        assert len(states) >= 100
        assert max(answer.hold_ms for answer in made.values()) < 500

        # By the command: every write that was answered before is in it, and both disks open at it, or none.
        document = await asyncio.to_thread(stack.run, "checkpoint", "create", "xa-end", "--group", group)
        assert 0 < document["hold_ms"] < 500
        assert set(document["offsets"]) == set(volumes)
        shown = await asyncio.to_thread(views, stack, "xa-end")
        assert [max(pair) for pair in zip(*shown, strict=True)] == answered
        for name in random.Random(SEED).sample(sorted(made), 3):
            shown = await asyncio.to_thread(views, stack, name)
            assert shown == [first[name], second[name]], (SEED, name)
            assert violations(*shown) == []
        error = await asyncio.to_thread(
            lambda: stack.fails("checkpoint", "create", "xa-app", "--group", group, "--quiesce", code=5)
        )
        assert "cannot be frozen together" in error["message"]

        # The other agent is gone: the checkpoint is void, says why, and no point of the group.
        rig.kill()
        (void,) = await mark(rig, "agent1", "xa-void", group, volumes)
        assert isinstance(void, ev.CheckpointFailed)
        assert f"agent {rig.agent} cannot be reached" in void.error
        await asyncio.to_thread(
            lambda: stack.fails("fot", "start", "--group", group, "--checkpoint", "xa-void", code=4)
        )
        rig.launch()
        await rig.until("agent ready", rig.ready)
        await rig.until("protected again", lambda: rig.state(volumes[1]) == "protected")
        done = await asyncio.to_thread(
            stack.run, "promote", "--group", group, "--checkpoint", "xa-end", "--yes", "--timeout", "60"
        )
        promoted = [shown_by_view(Path(plan["path"]).read_bytes()) for plan in done["volumes"]]
        assert [max(pair) for pair in zip(*promoted, strict=True)] == answered
    finally:
        await rig.close()


def views(stack: Stack, name: str) -> list[Shown]:
    """Both disks at a checkpoint, through a fail-over test of the group and a foreign client."""
    fot = stack.run("fot", "start", "--group", "xa", "--checkpoint", name, "--read-only")
    try:
        uris = {item["volume"]: item["uri"] for item in fot["volumes"]}
        return [shown_by_view(read_uri(uris[volume], stack.state_dir / "read")) for volume in ("xa0", "xa1")]
    finally:
        stack.run("fot", "stop", fot["fot"])


async def test_agents_that_hold_no_answers_are_caught(
    torn_rigs: list[Rig], qsds: tuple[StorageDaemon, StorageDaemon]
) -> None:
    """The judge is judged."""
    group, volumes = fresh("g"), [fresh(), fresh()]
    for rig, qsd, volume in zip(torn_rigs, qsds, volumes, strict=True):
        await rig.protect(volume, qsd.qmp, "disk0", DISK_BYTES, group=group)
        await rig.protected(volume)
    rig = torn_rigs[0]
    made, _answered = await many(rig, rig.agent, group, volumes, qsds, 20, pause=0)
    first, second = [await shown_by_journal(rig.journals, volume) for volume in volumes]
    caught = judge({name: first[name] for name in made}, second)
    print(f"{len(caught)} of {len(made)} checkpoints caught")
    assert caught
