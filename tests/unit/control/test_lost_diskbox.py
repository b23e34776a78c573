"""A diskbox that is lost: what runs on it ends, its volumes go elsewhere, and its return disturbs nobody."""

from __future__ import annotations

from collections import Counter

import pytest

from control_world import SECOND, World, attached, node, replay
from rephub.consumers.timelines import lost_before
from rephub.core.errors import ConflictError, NotFoundError, UnavailableError, from_json
from rephub.projections.decisions import pending
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@pytest.fixture
def world() -> World:
    """Two diskboxes, four disks; v1 is on d1."""
    world = World(diskboxes={"d1": 9, "d2": 9})
    world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(1, 10)]
    assert world.protected("v1").diskbox == "d1"
    return world


def kinds(events: list[ev.Record]) -> list[str]:
    return [type(event).__name__ for event in events]


def steps(world: World) -> list[ev.Record]:
    """What anybody would write next and has not written yet."""
    written = {event.id for event in world.log}
    return [event for event in world.due() if event.id not in written]


def test_the_steps(world: World) -> None:
    world.dies("d1")
    assert kinds(world.settle()) == [
        "DiskboxLost",
        "VolumePlaced",
        "RecoveryVolumeCreated",
        "FilterAttached",
        "SyncRequested",
        "VolumeSyncStarted",
        "VolumeSyncCompleted",
    ]
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.diskbox, volume.epoch) == ("protected", "d2", 2)
    assert volume.path == "/boxes/d2/v1"
    assert not volume.needs_full
    assert not world.catalogue.ignored
    assert replay(world.log).to_json() == world.catalogue.to_json()


def test_a_volume_on_another_diskbox_notices_nothing(world: World) -> None:
    other = world.protected("v2", node="n2")
    assert other.diskbox == "d2"
    before = repr(other)
    world.dies("d1")
    world.settle()
    assert repr(world.catalogue.volumes["v2"]) == before


def test_capture_is_wanted_all_the_time(world: World) -> None:
    world.dies("d1")
    while due := steps(world):
        world.append(due[0])
        volume = world.catalogue.volumes["v1"]
        assert world.catalogue.wants_capture(volume)
        assert volume.attached
        assert volume.state in ("failed", "gap", "resyncing", "protected")


def test_nothing_is_protected_by_a_sync_that_began_before_the_new_recovery_volume(world: World) -> None:
    """The agent attaches anew by itself at the worst moment: before the new diskbox looked at the journal."""
    world.dies("d1")
    while not world.catalogue.volumes["v1"].placed_id:
        world.append(pending(world.catalogue, world.now, world.silent, world.gone)[0])
    volume = world.catalogue.volumes["v1"]
    early = attached(volume, 2, world.now, "by itself")
    (created,) = [event for event in world.due() if isinstance(event, ev.RecoveryVolumeCreated)]
    late = {name: getattr(created, name) for name in created.__dataclass_fields__} | {"first_offset": 150}
    world.append(ev.RecoveryVolumeCreated(**late))
    world.append(early)  # its EpochStarted is at 101
    volume = world.catalogue.volumes["v1"]
    assert volume.resync_id, "that attachment does not do"
    world.append(
        ev.VolumeSyncCompleted(
            id="x", at=world.now, source="agent/a1", hub_epoch=0, volume="v1", epoch=2, offset=140
        )
    )
    assert volume.state != "protected"
    world.settle()
    assert (volume.state, volume.epoch) == ("protected", 3)


def test_a_group_moves_as_a_whole(world: World) -> None:
    for number in (2, 3, 4):
        world.protected(f"v{number}", node=f"n{number}", group="g")
    boxes = {world.catalogue.volumes[f"v{number}"].diskbox for number in (2, 3, 4)}
    (box,) = boxes
    world.announces("d3", "d3", capacity=2)  # the least loaded, but not for three
    world.dies(box)
    world.settle()
    held = Counter(world.catalogue.volumes[f"v{number}"].diskbox for number in (2, 3, 4))
    assert len(held) == 1
    assert not set(held) & {box, "d3"}


def test_overflow_asks_the_provider_and_asks_again_after_a_failure() -> None:
    world = World(diskboxes={"d1": 9})
    world.protected("v1")
    world.dies("d1")
    assert kinds(world.settle()) == ["DiskboxLost", "DiskboxRequested", "DiskboxFailed"]
    assert "d1 is lost" in world.catalogue.volumes["v1"].reason
    world.now += 61 * SECOND
    world.provides = 9
    world.settle()
    volume = world.catalogue.volumes["v1"]
    assert (volume.diskbox, volume.state) == ("diskbox1", "protected")


def test_tests_promotes_and_new_protects_on_it_fail_with_the_reason(world: World) -> None:
    fot = world.command(
        cmd.StartFot, fot="f1", volume="v1", group=None, point_kind="latest", point_value="", read_only=False, qmp=None,
    )  # fmt: skip
    world.done(fot)
    promote = world.command(
        cmd.Promote, volume="v1", group=None, point_kind="latest", point_value="", dry_run=False, to=None
    )
    world.send(promote)
    world.send(world.protect_command("v2", node="n2", group="v1"))
    while "v2" not in world.catalogue.volumes:
        world.append(next(event for event in world.due() if not isinstance(event, ev.PromotePlanned)))
    world.dies("d1")
    told = world.settle()
    assert world.catalogue.fots["f1"].state == "failed"
    assert "d1 is lost" in world.catalogue.fots["f1"].reason
    (promotion,) = world.catalogue.promotions.values()
    assert (promotion.state, promotion.command_id) == ("failed", promote.id)
    (failed,) = [event for event in told if isinstance(event, ev.ProtectFailed)]
    assert isinstance(from_json(failed.error), UnavailableError)
    assert world.catalogue.volumes["v2"].purged, "nothing is left of a protect that failed"
    assert world.catalogue.volumes["v1"].state == "protected"


def test_an_unprotect_does_not_wait_for_it(world: World) -> None:
    world.dies("d1")
    world.send(world.command(cmd.Unprotect, volume="v1", purge=True))
    world.settle()
    assert world.catalogue.volumes["v1"].purged


def test_it_comes_back_empty_and_is_used_again(world: World) -> None:
    world.dies("d1")
    world.settle()
    world.announces("d1", "second life")
    assert world.settle() == [], "the old looks are not about the new process"
    assert not world.catalogue.diskboxes["d1"].lost
    assert world.protected("v2", node="n2").diskbox == "d1"
    world.dies("d1")
    assert "DiskboxLost" in kinds(world.settle())


def test_it_comes_back_before_there_was_a_place_and_goes_on() -> None:
    world = World(diskboxes={"d1": 9})
    world.protected("v1")
    world.dies("d1")
    world.settle()
    volume = world.catalogue.volumes["v1"]
    assert volume.state == "failed"
    resumed = {"at": world.now, "source": "diskbox/d1", "hub_epoch": 0, "volume": "v1"}
    assert not world.append(ev.VolumeResumed(id="r1", **resumed)), "called lost, it has nothing to say"
    world.announces("d1", "second life")
    assert world.append(ev.VolumeResumed(id="r2", **resumed))
    world.settle()
    assert (volume.state, volume.diskbox, volume.epoch) == ("protected", "d1", 1)


def test_a_placement_that_crosses_its_return_counts_for_nothing(world: World) -> None:
    world.dies("d1")
    world.append(world.due()[0])
    (placed,) = [event for event in world.due() if isinstance(event, ev.VolumePlaced)]
    world.announces("d1", "second life")
    assert not world.append(placed)
    assert world.catalogue.volumes["v1"].diskbox == "d1"


@pytest.mark.parametrize("target", ["/mnt/v2.raw", "/dev/disk/by-id/x", "nbd://store/v2"])
def test_an_explicit_target_waits_for_its_diskbox(world: World, target: str) -> None:
    box = world.protected("v2", node="n2", recovery=target).diskbox
    world.dies(box)
    world.settle()
    volume = world.catalogue.volumes["v2"]
    assert (volume.state, volume.diskbox) == ("failed", box)
    assert f"diskbox {box} is lost" in volume.reason
    world.done(world.command(cmd.LoseDiskbox, diskbox=box))
    moved = volume.diskbox != box
    assert moved == target.startswith("nbd"), "an operator said that it is off: the export may be taken over"
    if moved:
        assert (volume.state, volume.path) == ("protected", target)


def test_an_operator_gives_it_up(world: World) -> None:
    assert isinstance(world.rejected(world.command(cmd.LoseDiskbox, diskbox="d1")), ConflictError)
    assert isinstance(world.rejected(world.command(cmd.LoseDiskbox, diskbox="dx")), NotFoundError)
    world.silent.add("d1")
    assert "VolumePlaced" in kinds(world.done(world.command(cmd.LoseDiskbox, diskbox="d1")))
    assert world.already(world.command(cmd.LoseDiskbox, diskbox="d1")) == {"diskbox": "d1"}
    assert world.catalogue.volumes["v1"].diskbox == "d2"


def test_a_hub_that_dies_at_any_event_leaves_the_rest_to_the_next(world: World) -> None:
    for number in (2, 3):
        world.protected(f"v{number}", node=f"n{number}", group="v1")
    world.dies("d1")
    while due := steps(world):
        world.append(due[0])
        world.new_hub()
    assert {volume.state for volume in world.catalogue.live_volumes()} == {"protected"}
    assert {volume.diskbox for volume in world.catalogue.live_volumes()} == {"d2"}


def test_the_timeline_says_what_was_lost_as_long_as_it_is_missed(world: World) -> None:
    volume = world.catalogue.volumes["v1"]
    assert lost_before(volume, world.now) == []
    world.dies("d1")
    world.settle()
    (gap,) = lost_before(volume, world.now)
    assert (gap["kind"], gap["reason"]) == ("gap", "diskbox d1 was lost, with all points on it")
    assert lost_before(volume, world.now + 86401 * SECOND) == []


def test_nothing_is_placed_on_a_lost_one(world: World) -> None:
    world.dies("d1")
    world.settle()
    world.silent.clear()
    assert world.protected("v2", node="n2").diskbox == "d2"
