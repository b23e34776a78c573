"""The pace of syncs: who may change what, and whose turn it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_world import World
from rephub.core.errors import from_json
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide_sync import pace, turns
from rephub.projections.decisions import decide
from rephub.projections.entities import Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@pytest.fixture
def world() -> World:
    found = World()
    found.protected("v1")
    return found


def set_pace(world: World, **changes: Any) -> ev.Record:
    (event,) = world.done(world.command(cmd.SetSyncPace, **({"volume": "v1"} | changes)))
    return event


def test_each_field_is_changed_alone_and_stays(world: World) -> None:
    set_pace(world, paused=True)
    set_pace(world, rate_bytes_per_second=1 << 20)
    set_pace(world, priority=-3)
    now = {"paused": True, "rate_bytes_per_second": 1 << 20, "priority": -3}
    assert pace(world.catalogue.volumes["v1"]) == now
    assert pace(Catalogue.from_dict(world.catalogue.to_dict()).volumes["v1"]) == now
    set_pace(world, rate_bytes_per_second=0)
    set_pace(world, paused=False)
    assert pace(world.catalogue.volumes["v1"]) == {
        "paused": False,
        "rate_bytes_per_second": None,
        "priority": -3,
    }


@pytest.mark.parametrize("change", [{"paused": True}, {"rate_bytes_per_second": 1 << 20}, {"priority": 1}])
def test_a_repeat_is_fulfilled(world: World, change: dict[str, Any]) -> None:
    assert isinstance(set_pace(world, **change), ev.SyncPaceSet)
    assert isinstance(set_pace(world, **change), ev.CommandFulfilled)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"rate_bytes_per_second": 1000}, "UsageError"),
        ({"rate_bytes_per_second": -1}, "UsageError"),
        ({"priority": 101}, "UsageError"),
        ({"volume": "nobody"}, "NotFoundError"),
    ],
)
def test_what_cannot_be_is_refused(world: World, change: dict[str, Any], kind: str) -> None:
    (event,) = decide(
        world.catalogue, world.command(cmd.SetSyncPace, **({"volume": "v1"} | change)), world.now
    )
    assert isinstance(event, ev.CommandRejected)
    error = from_json(event.error)
    assert type(error).__name__ == kind
    assert error.hint


def _catalogue(waiting: list[tuple[int, int, bool]]) -> Catalogue:
    """Volumes that all want sync: (priority, since_at, paused)."""
    world = World()
    world.protected("v1")
    model = world.catalogue.volumes["v1"]
    catalogue = Catalogue()
    for number, (priority, since_at, paused) in enumerate(waiting):
        volume: Volume = dataclasses.replace(
            model, name=f"v{number:02}", state="resyncing", attached=True, since_at=since_at,
            sync_priority=priority, sync_paused=paused, synced_epoch=model.epoch - 1,
        )  # fmt: skip
        catalogue.volumes[volume.name] = volume
    return catalogue


def test_the_turns_of_a_few() -> None:
    catalogue = _catalogue([(0, 5, False), (0, 3, False), (1, 9, False), (9, 1, True), (0, 4, False)])
    assert turns(catalogue, "a1", 1) == {"v02"}, "the highest priority"
    assert turns(catalogue, "a1", 3) == {"v02", "v01", "v04"}, "then who waits longest; a paused one never"
    assert turns(catalogue, "a2", 3) == set()


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 5), st.booleans()), max_size=12),
    st.integers(1, 5),
)
def test_as_many_as_may_run_and_none_before_a_higher_one(
    waiting: list[tuple[int, int, bool]], syncs_max: int
) -> None:
    catalogue = _catalogue(waiting)
    running = turns(catalogue, "a1", syncs_max)
    ready = {name for name, volume in catalogue.volumes.items() if not volume.sync_paused}
    assert running <= ready
    assert len(running) == min(len(ready), syncs_max), "no place stays empty"
    lowest = min((catalogue.volumes[name].sync_priority for name in running), default=0)
    assert all(catalogue.volumes[name].sync_priority <= lowest for name in ready - running)
