"""The status document says what is confirmed, and names the reason of everything that is not."""

from __future__ import annotations

from typing import Any

import pytest

from control_world import SECOND, World, head, lost
from rephub.core.errors import IntegrityError
from rephub.projections.status import merge, only
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

FIELDS = [
    "volume",
    "group",
    "agent",
    "diskbox",
    "recovery",
    "size_bytes",
    "state",
    "consistent",
    "epoch",
    "head_offset",
    "acked_offset",
    "applied_offset",
    "earliest_offset",
    "latest_offset",
    "rpo_seconds",
    "window_seconds",
    "lag_bytes",
    "dirty_bytes",
    "paused_at",
    "sync",
    "verify",
    "sync_pace",
    "reason",
]


@pytest.fixture
def world() -> World:
    found = World()
    found.protected("v1")
    return found


def agent(world: World, **volume: Any) -> dict[str, Any]:
    entry = {
        "attached": True,
        "epoch": world.catalogue.volumes["v1"].epoch,
        "acked_offset": 90,
        "lag_bytes": 10,
        "rpo_seconds": 0.5,
        "dirty_bytes": 1 << 20,
        "sync": None,
        "gap_since_at": None,
        "verify": None,
        "reason": "",
    }
    return {"kind": "agent", "id": "a1", "ready": True, "at": world.now, "volumes": {"v1": entry | volume}}


def diskbox(world: World, **volume: Any) -> dict[str, Any]:
    entry = {
        "head_offset": 91,
        "applied_offset": 50,
        "earliest_offset": 55,
        "latest_offset": 91,
        "window_seconds": 12.0,
        "in_gap": False,
        "stopped": None,
        "path": "/p",
        "size_bytes": 64 << 20,
    }
    return {"kind": "diskbox", "id": "d1", "ready": True, "at": world.now, "volumes": {"v1": entry | volume}}


def document(world: World, agents: Any = ..., boxes: Any = ..., **rest: Any) -> dict[str, Any]:
    agents = agent(world) if agents is ... else agents
    boxes = diskbox(world) if boxes is ... else boxes
    options = {"parts": [], "waited_seconds": 2.0} | rest
    return merge(world.catalogue, world.now, {"a1": agents}, {"d1": boxes}, **options)


def test_whole(world: World) -> None:
    found = document(world)
    (volume,) = found["volumes"]
    assert list(volume) == FIELDS
    assert volume["state"] == "protected"
    assert volume["consistent"] is True
    assert (volume["rpo_seconds"], volume["acked_offset"], volume["head_offset"]) == (0.5, 90, 91)
    assert found["problems"] == []


def test_a_silent_agent_is_a_gap(world: World) -> None:
    found = document(world, agents=None)
    (volume,) = found["volumes"]
    assert (volume["state"], volume["consistent"]) == ("gap", False)
    assert volume["reason"] == "agent a1 silent for 2.0 s"
    assert (volume["acked_offset"], volume["rpo_seconds"], volume["lag_bytes"]) == (None, None, None)
    assert "agent a1 silent for 2.0 s" in found["problems"]


def test_an_agent_that_hangs_is_a_gap(world: World) -> None:
    """Its last document is there, but old: nobody confirms anything now."""
    stale = agent(world)
    world.now += 6 * SECOND
    (volume,) = document(world, agents=stale)["volumes"]
    assert (volume["state"], volume["reason"]) == ("gap", "agent a1 silent for 6 s")


def test_an_agent_that_does_not_capture_is_a_gap(world: World) -> None:
    for state in ({"attached": False}, {"gap_since_at": world.now - 3 * SECOND, "reason": "Kafka refuses"}):
        (volume,) = document(world, agents=agent(world, **state))["volumes"]
        assert (volume["state"], volume["consistent"]) == ("gap", False)
        assert volume["reason"]
    assert volume["rpo_seconds"] == pytest.approx(3.0)


def test_an_agent_that_restarted_and_knows_nothing_yet_is_a_gap(world: World) -> None:
    empty = agent(world) | {"volumes": {}}
    (volume,) = document(world, agents=empty)["volumes"]
    assert (volume["state"], volume["reason"]) == ("gap", "agent a1 does not capture it")


def test_rpo_of_a_gap_counts_from_its_beginning(world: World) -> None:
    world.append(lost(world.catalogue.volumes["v1"], world.now))
    world.now += 7 * SECOND
    (volume,) = document(world, agents=agent(world, attached=False, reason="no broker"))["volumes"]
    assert volume["state"] == "gap"
    assert volume["rpo_seconds"] == pytest.approx(7.0, abs=0.1)


def test_resync_is_never_consistent(world: World) -> None:
    volume = world.catalogue.volumes["v1"]
    world.append(lost(volume, world.now))
    while not volume.attached:
        world.append(world.due()[0])
    sync = {"done_bytes": 1, "total_bytes": 2, "eta_seconds": 3.0}
    found = document(world, agents=agent(world, sync=sync))
    (entry,) = found["volumes"]
    assert (entry["state"], entry["consistent"], entry["sync"]) == ("resyncing", False, sync)
    assert found["problems"] == ["volume v1 is resyncing: waits for sync"]


def test_an_agent_ahead_of_the_catalogue_is_believed(world: World) -> None:
    (volume,) = document(world, agents=agent(world, epoch=2))["volumes"]
    assert (volume["state"], volume["consistent"]) == ("resyncing", False)


def test_protected_but_the_diskbox_is_still_in_the_gap(world: World) -> None:
    (volume,) = document(world, boxes=diskbox(world, in_gap=True))["volumes"]
    assert (volume["state"], volume["consistent"]) == ("protected", False)


def test_a_stopped_projector_is_failed(world: World) -> None:
    stopped = IntegrityError("wrong crc at offset 7").to_dict()
    found = document(world, boxes=diskbox(world, stopped=stopped))
    (volume,) = found["volumes"]
    assert (volume["state"], volume["reason"]) == ("failed", "stopped: wrong crc at offset 7")
    assert found["problems"] == ["volume v1 is failed: stopped: wrong crc at offset 7"]


def test_a_silent_diskbox_is_said(world: World) -> None:
    found = document(world, boxes=None)
    (volume,) = found["volumes"]
    assert volume["state"] == "protected"
    assert (volume["head_offset"], volume["earliest_offset"], volume["window_seconds"]) == (None, None, None)
    assert "diskbox d1 silent for 2.0 s" in found["problems"]


def test_dead_parts_and_hub_are_said(world: World) -> None:
    parts = [{"name": "agent1", "kind": "agent", "pid": None, "alive": False}]
    found = document(world, parts=parts, hub_problem="the hub does not answer")
    assert found["problems"] == ["the hub does not answer", "agent agent1 is not running"]
    assert found["hub"]["alive"] is False


def test_promoted_needs_no_agent(world: World) -> None:
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, point_kind="latest", point_value=""))
    found = document(world, agents=agent(world) | {"volumes": {}})
    (volume,) = found["volumes"]
    assert (volume["state"], volume["consistent"], volume["rpo_seconds"]) == ("promoted", True, None)
    assert found["problems"] == []


def test_a_retired_volume_is_not_listed(world: World) -> None:
    world.done(world.command(cmd.Unprotect, volume="v1", purge=False))
    assert document(world)["volumes"] == []


def test_a_volume_before_its_first_attach_is_syncing() -> None:
    world = World()
    world.send(world.protect_command())
    while "v1" not in world.catalogue.volumes:
        world.append(world.due()[0])
    (volume,) = document(world, agents=agent(world) | {"volumes": {}})["volumes"]
    assert (volume["state"], volume["consistent"]) == ("syncing", False)


def test_failed_is_not_hidden_by_a_silent_agent(world: World) -> None:
    fields = head(ev.VolumeStopped, "x", "v1", world.now, "diskbox/d1")
    world.append(ev.VolumeStopped(**fields, volume="v1", offset=7, error=IntegrityError("bad").to_json()))
    (volume,) = document(world, agents=None)["volumes"]
    assert volume["state"] == "failed"


def test_one_volume_keeps_its_own_problems(world: World) -> None:
    world.protected("v2", node="n2")
    found = document(world, agents=agent(world))
    one = only(found, "v1")
    assert one is not None
    assert [entry["volume"] for entry in one["volumes"]] == ["v1"]
    assert one["problems"] == []
    assert found["problems"] == ["volume v2 is gap: agent a1 does not capture it"]
    assert only(found, "nope") is None


def test_a_paused_sync_is_said(world: World) -> None:
    world.done(world.command(cmd.SetSyncPace, volume="v1", paused=True))
    found = document(world)
    assert found["volumes"][0]["sync_pace"] == {"paused": True, "rate_bytes_per_second": None, "priority": 0}
    assert found["problems"] == [
        "volume v1 is protected: sync is paused, no gap would be closed: rephub sync resume v1"
    ]


def test_a_window_that_was_cut_is_said(world: World) -> None:
    world.catalogue.volumes["v1"].history_short = True
    found = document(world, boxes=diskbox(world, window_seconds=3600.0))
    assert found["volumes"][0]["state"] == "protected"
    assert found["problems"] == [
        "volume v1 is protected: history is 60 min of 24.0 h: the limit of 20.0 GiB was reached, rephub history changes it"
    ]


def test_a_gap_that_is_being_closed_is_resyncing(world: World) -> None:
    world.catalogue.volumes["v1"].state = "resyncing"
    (found,) = document(world, agents=agent(world, gap_since_at=world.now - 3 * SECOND))["volumes"]
    assert (found["state"], found["consistent"], found["rpo_seconds"]) == ("resyncing", False, 3.0)


def test_a_sync_that_waits_for_its_turn_is_said(world: World) -> None:
    volume = world.catalogue.volumes["v1"]
    volume.state = "resyncing"
    (found,) = document(world, agents=agent(world, sync={"waiting": True}))["volumes"]
    assert found["reason"] == "sync waits for its turn"
