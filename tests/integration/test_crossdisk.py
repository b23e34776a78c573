"""Group checkpoints across the disks of one agent: no later write shows without the earlier one.

In each chain of dependent writes, write i goes to the one disk only after write i - 1 was answered on the other. The load
(libnbd) shares no code with RepHub. Enabled: real QEMU block layer, Kafka, Redis, all daemons. Several agents: test_crossagents.py.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent_rig import Rig, fresh
from dependent_writes import DISK_BYTES, Loads, Shown, judge, shown_by_journal, shown_by_view, violations
from qsd import StorageDaemon
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.schemas import events as ev
from stack import Stack, read_uri

pytestmark = [
    pytest.mark.long,
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.qemu,
    pytest.mark.timeout(300),
]

CHECKPOINT_SECONDS = 0.05
SEED = 20261123
TORN_TRIES = 4


@pytest.fixture
def qsd(folder: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(folder / "q", [DISK_BYTES] * 3)
    yield daemon
    daemon.stop()


@pytest.fixture
def fast_stack(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stack:
    """A stack that makes a periodic checkpoint twenty times a second."""
    monkeypatch.setenv("REPHUB_AGENT__CHECKPOINT_SECONDS", str(CHECKPOINT_SECONDS))
    found = request.getfixturevalue("own_stack")
    assert isinstance(found, Stack)
    return found


@pytest.fixture
async def rig(folder: Path, kafka: str, redis_url: str) -> AsyncIterator[Rig]:
    """The agent as it is."""
    rig = Rig(folder, kafka, redis_url, checkpoint_seconds=CHECKPOINT_SECONDS)
    try:
        await rig.start()
        yield rig
    finally:
        await rig.close()


@pytest.fixture
async def torn_rig(folder: Path, kafka: str, redis_url: str) -> AsyncIterator[Rig]:
    """The agent that is wrong on purpose."""
    rig = Rig(folder, kafka, redis_url, checkpoint_seconds=CHECKPOINT_SECONDS)
    rig.program = [str(Path(__file__).parent.parent / "tools/torn_agent.py")]
    try:
        await rig.start()
        yield rig
    finally:
        await rig.close()


async def test_no_checkpoint_shows_a_later_write_without_the_earlier(
    fast_stack: Stack, qsd: StorageDaemon
) -> None:
    """At least 500 checkpoints from the journals, 30 of them through fail-over tests of the group."""
    stack = fast_stack
    for number in range(2):
        await asyncio.to_thread(stack.protect, f"x{number}", qsd.qmp, f"disk{number}", "--group", "x")
    loads = Loads((qsd.uri(0), qsd.uri(1)), 40, SEED)
    named = [f"x-named-{number}" for number in range(10)]
    for name in named:
        await asyncio.to_thread(stack.run, "checkpoint", "create", name, "--group", "x")
    answered = await asyncio.to_thread(loads.end)
    await asyncio.to_thread(stack.run, "checkpoint", "create", "x-end", "--group", "x")
    settings = await asyncio.to_thread((stack.state_dir / "endpoints.json").read_text)
    journals = KafkaJournalStore(json.loads(settings)["bootstrap"], JOURNAL_CONFIG)
    try:
        first, second = [await shown_by_journal(journals, f"x{number}") for number in range(2)]
    finally:
        await journals.close()
    assert judge(first, second) == {}
    # The load was there: the checkpoints lie within it, and its last writes show at the end.
    states = {tuple(first[name] + second[name]) for name in first if name in second}
    print(f"{len(first)} checkpoints, {len(states)} states, {sum(answered)} dependent writes")
    assert len(states) >= 500
    assert [max(pair) for pair in zip(first["x-end"], second["x-end"], strict=True)] == answered
    within = sorted(name for name in first if name in second and any(first[name]) and name not in named)
    for name in [*named, *random.Random(SEED).sample(within, 20)]:
        shown = await asyncio.to_thread(views, stack, name)
        assert shown == [first[name], second[name]], (SEED, name)
        assert violations(*shown) == [], (SEED, name)


def views(stack: Stack, name: str) -> list[Shown]:
    """Both disks at a checkpoint, through a fail-over test of the group and a foreign client."""
    fot = stack.run("fot", "start", "--group", "x", "--checkpoint", name, "--read-only")
    try:
        uris = {item["volume"]: item["uri"] for item in fot["volumes"]}
        return [shown_by_view(read_uri(uris[volume], stack.state_dir / "read")) for volume in ("x0", "x1")]
    finally:
        stack.run("fot", "stop", fot["fot"])


async def test_markers_of_different_loop_turns_are_caught(torn_rig: Rig, qsd: StorageDaemon) -> None:
    """The judge is judged: an agent that does not put all markers in within one turn must fail."""
    group = fresh("g")
    volumes = [fresh(), fresh()]
    for number, volume in enumerate(volumes):
        await torn_rig.protect(volume, qsd.qmp, f"disk{number}", DISK_BYTES, group=group)
    for volume in volumes:
        await torn_rig.protected(volume)
    caught: dict[str, list[str]] = {}
    for _ in range(TORN_TRIES):
        # On a machine that is busy, few writes fall between two turns.
        await asyncio.to_thread(Loads((qsd.uri(0), qsd.uri(1)), 4, SEED).end)
        first, second = [await shown_by_journal(torn_rig.journals, volume) for volume in volumes]
        if caught := judge(first, second):
            break
    print(f"{len(caught)} of {len(first)} checkpoints caught")
    assert caught


async def test_no_periodic_markers_while_a_member_is_not_synced(rig: Rig, qsd: StorageDaemon) -> None:
    """A group with a member in its initial sync gets none in any journal, while a volume beside it gets its own."""
    rig.auto_sync = False
    group = fresh("g")
    synced, waiting, beside = fresh(), fresh(), fresh()
    for number, volume in enumerate((synced, waiting, beside)):
        await rig.protect(
            volume, qsd.qmp, f"disk{number}", DISK_BYTES, group=beside if volume == beside else group
        )

    async def sync(volume: str) -> None:
        await rig.until("attached", lambda: rig.of(ev.FilterAttached, volume))
        await rig.tell(ev.SyncRequested, volume=volume, epoch=rig.of(ev.FilterAttached, volume)[0].epoch)
        await rig.protected(volume)

    async def made(volume: str, count: int) -> None:
        async with asyncio.timeout(30):
            while len(await shown_by_journal(rig.journals, volume)) < count:
                await asyncio.sleep(CHECKPOINT_SECONDS)

    await sync(synced)
    await sync(beside)
    await made(beside, 10)
    assert await shown_by_journal(rig.journals, synced) == {}
    assert await shown_by_journal(rig.journals, waiting) == {}
    await sync(waiting)
    await made(synced, 3)
    await made(waiting, 3)
