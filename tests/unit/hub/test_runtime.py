"""The hub's core on the memory adapters: what its decisions may rely on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from control_world import START, World
from rephub.consumers.hub import runtime
from rephub.consumers.hub.runtime import Hub
from rephub.core.control.memory import MemoryControlLog
from rephub.core.journal.memory import MemoryJournalStore
from rephub.core.names import EVENTS_TOPIC


async def test_a_decision_sees_every_event_that_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing brings the log to this hub (Faust lags): an operator who saw a promote end must not hear otherwise."""
    monkeypatch.setattr(runtime, "FOLD_SECONDS", 0.01)
    control = MemoryControlLog()
    hub = Hub("hub1", tmp_path, control, MemoryJournalStore(), clock=lambda: START)
    await hub.start()
    world = World()
    for event in world.log[1:]:  # the first says that another hub is there
        await control.append(EVENTS_TOPIC, event)
    await hub.answer(world.protect_command())
    assert "v1" in hub.catalogue.protects  # and not: no agent has announced itself
    await hub.close()


async def test_who_has_seen_an_event_finds_it_in_the_catalogue(tmp_path: Path) -> None:
    """Nothing brings the log to this hub (Faust lags); and a log that is away does not keep anybody waiting."""
    control = MemoryControlLog()
    hub = Hub("hub1", tmp_path, control, MemoryJournalStore(), clock=lambda: START)
    await hub.start()
    world = World()
    for event in world.log[1:]:
        await control.append(EVENTS_TOPIC, event)
    assert not hub.catalogue.diskboxes
    await hub.refresh(5.0)
    assert hub.catalogue.diskboxes
    async with hub._lock, asyncio.timeout(5):
        await hub.refresh(0.01)
    control.unavailable = True
    await hub.refresh(0.01)
    control.unavailable = False
    await hub.close()
