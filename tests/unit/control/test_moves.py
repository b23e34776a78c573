"""Moves between diskboxes and draining, as the hub decides them."""

from __future__ import annotations

import pytest

from control_world import SECOND, World, node, replay
from rephub.core.errors import ConflictError, NotFoundError, UnavailableError
from rephub.projections.decisions import pending
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@pytest.fixture
def world() -> World:
    """Two diskboxes; v1 and v2 are a group on d1."""
    world = World(diskboxes={"d1": 9, "d2": 9})
    world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(1, 10)]
    for number in (1, 2):
        assert world.protected(f"v{number}", node=f"n{number}", group="g").diskbox == "d1"
    return world


def kinds(events: list[ev.Record]) -> list[str]:
    return [type(event).__name__ for event in events]


def boxes(world: World) -> set[str]:
    return {volume.diskbox for volume in world.catalogue.live_volumes()}


def move(world: World, **fields: str | None) -> cmd.MoveVolumes:
    return world.command(cmd.MoveVolumes, **({"volume": "v1", "group": None, "diskbox": None} | fields))


def fot(world: World, volume: str = "v1") -> cmd.StartFot:
    return world.command(
        cmd.StartFot, fot="f1", volume=volume, group=None, point_kind="latest", point_value="", read_only=False, qmp=None,
    )  # fmt: skip


def test_the_steps_and_nothing_of_capture_among_them(world: World) -> None:
    before = {v.name: (v.epoch, v.state, v.attachment_id) for v in world.catalogue.live_volumes()}
    assert kinds(world.done(move(world))) == [
        "MoveRequested", "MoveServed", "MoveServed", "MoveCopied", "MoveCopied", "VolumesMoved",
    ]  # fmt: skip
    assert boxes(world) == {"d2"}, "its group came along"
    assert {v.name: (v.epoch, v.state, v.attachment_id) for v in world.catalogue.live_volumes()} == before
    assert {v.path for v in world.catalogue.live_volumes()} == {"/boxes/d2/v1", "/boxes/d2/v2"}
    assert world.already(move(world, diskbox="d2"))["diskbox"] == "d2"
    assert not world.catalogue.ignored
    assert replay(world.log).to_json() == world.catalogue.to_json()


def test_a_hub_that_dies_at_any_event(world: World) -> None:
    world.send(move(world))
    written: set[str] = set()
    while due := [event for event in world.due() if event.id not in written]:
        world.append(due[0])
        written.add(due[0].id)
        world.new_hub()
    assert boxes(world) == {"d2"}


def test_what_is_refused(world: World) -> None:
    assert isinstance(world.rejected(move(world, diskbox="dx")), NotFoundError)
    world.silent.add("d2")
    assert isinstance(world.rejected(move(world, diskbox="d2")), UnavailableError)
    assert "no other diskbox has room" in world.rejected(move(world)).message
    world.silent = {"d1"}
    assert isinstance(world.rejected(move(world)), UnavailableError)
    world.silent.clear()
    world.done(fot(world))
    error = world.rejected(move(world, volume="v2"))
    assert (type(error), error.hint) == (ConflictError, "rephub fot stop f1")
    world.protected("v3", node="n3", recovery="/mnt/v3.raw")
    assert "--recovery put it" in world.rejected(move(world, volume="v3")).message
    world.announces("d2", "small", capacity=1)
    world.done(world.command(cmd.StopFot, fot="f1"))
    assert "no room" in world.rejected(move(world, diskbox="d2")).message


def test_what_waits_or_is_refused_meanwhile(world: World) -> None:
    world.send(move(world))
    assert isinstance(world.rejected(world.command(cmd.Unprotect, volume="v1", purge=False)), ConflictError)
    promote = {"volume": "v1", "group": None, "point_kind": "latest", "point_value": "", "dry_run": False}
    assert isinstance(world.rejected(world.command(cmd.Promote, to=None, **promote)), ConflictError)
    assert isinstance(world.rejected(world.protect_command("v3", node="n3", group="g")), ConflictError)
    world.done(fot(world))
    assert boxes(world) == {"d1"}, "a test looks at the old place"
    (under_way,) = world.catalogue.moves.values()
    assert under_way.copied.keys() == {"v1", "v2"}
    world.done(world.command(cmd.CreateCheckpoint, checkpoint="c1", volume=None, group="g", quiesce=False))
    world.done(world.command(cmd.Resync, volume="v1"))
    world.done(world.command(cmd.StopFot, fot="f1"))
    assert boxes(world) == {"d2"}
    assert {volume.state for volume in world.catalogue.live_volumes()} == {"protected"}


def test_cancel_leaves_all_as_it_was(world: World) -> None:
    before = world.state()
    cancel = {"volume": "v2", "group": None}
    assert isinstance(world.rejected(world.command(cmd.CancelMove, **cancel)), NotFoundError)
    world.send(move(world))
    for event in [event for event in world.due() if isinstance(event, ev.MoveServed)]:
        world.append(event)
    late = [event for event in world.due() if isinstance(event, ev.MoveCopied)]
    world.done(world.command(cmd.CancelMove, **cancel))
    assert not world.append(late[0]), "it was cancelled"
    (ended,) = world.catalogue.moves.values()
    assert (ended.state, ended.reason) == ("failed", "the move was cancelled")
    assert world.state() | {"moves": {}} == before
    world.done(move(world))
    assert boxes(world) == {"d2"}


@pytest.mark.parametrize("lost", ["d1", "d2"])
def test_a_diskbox_that_is_lost_ends_the_move(world: World, lost: str) -> None:
    world.send(move(world))
    world.dies(lost)
    world.settle()
    (ended,) = world.catalogue.moves.values()
    assert (ended.state, ended.reason) == ("failed", f"diskbox {lost} is lost")
    assert boxes(world) == ({"d2"} if lost == "d1" else {"d1"})
    assert {volume.state for volume in world.catalogue.live_volumes()} == {"protected"}


def test_drain_moves_group_by_group_and_places_nothing_new(world: World) -> None:
    world.protected("v3", node="n3")
    for number in (4, 5):
        world.protected(f"v{number}", node=f"n{number}", group="h")
    home = "d1" if world.catalogue.volumes["v4"].diskbox == "d1" else "d2"
    other = {"d1": "d2", "d2": "d1"}[home]
    drain = world.command(cmd.DrainDiskbox, diskbox=home, drain=True)
    log = world.done(drain)
    assert boxes(world) == {other}
    at_work = 0
    for event in log:
        at_work += isinstance(event, ev.MoveRequested)
        at_work -= isinstance(event, ev.VolumesMoved)
        assert at_work <= 1
    assert world.protected("v6", node="n6").diskbox == other
    assert world.already(world.command(cmd.DrainDiskbox, diskbox=home, drain=True))["state"] == "draining"
    world.announces(home, "second life")
    assert world.catalogue.diskboxes[home].state == "draining", "a restart does not end it"
    world.done(world.command(cmd.DrainDiskbox, diskbox=home, drain=False))
    assert world.protected("v7", node="n7").diskbox == home


def test_a_drain_without_room_asks_the_provider_and_tries_again() -> None:
    world = World(diskboxes={"d1": 9})
    world.protected("v1")
    assert kinds(world.done(world.command(cmd.DrainDiskbox, diskbox="d1", drain=True)))[1:] == [
        "DiskboxRequested",
        "DiskboxFailed",
    ]
    world.provides = 3
    world.now += 61 * SECOND
    world.settle()
    assert boxes(world) == {"diskbox1"}


def test_a_drain_goes_on_after_a_failed_move(world: World) -> None:
    world.send(world.command(cmd.DrainDiskbox, diskbox="d1", drain=True))
    (request,) = pending(world.catalogue, world.now)
    world.append(request)
    world.done(world.command(cmd.CancelMove, volume="v1", group=None))
    assert boxes(world) == {"d1"}
    world.now += 61 * SECOND
    world.settle()
    assert boxes(world) == {"d2"}
