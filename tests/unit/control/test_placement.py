"""Where volumes go: least loaded, overflow to a new diskbox, silent ones left out."""

from __future__ import annotations

from collections import Counter

import pytest

from control_world import SECOND, World, node, replay
from rephub.core.errors import ConflictError, DeadlineError, RephubError, UnavailableError, from_json
from rephub.projections.decisions import pending
from rephub.schemas import events as ev


@pytest.fixture
def full() -> World:
    """One diskbox with one place, which is taken."""
    world = World(diskboxes={"diskbox1": 1})
    world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(70)]
    world.protected("v0", node="n0")
    return world


def kinds(events: list[ev.Record]) -> list[str]:
    return [type(event).__name__ for event in events]


def failures(events: list[ev.Record]) -> dict[str, RephubError]:
    return {event.volume: from_json(event.error) for event in events if isinstance(event, ev.ProtectFailed)}


def test_the_steps_of_an_overflow(full: World) -> None:
    full.provides = 1
    assert kinds(full.done(full.protect_command("v1", node="n1"))) == [
        "ProtectRequested",
        "VmProbeRequested",
        "VmAnnounced",
        "DiskboxRequested",
        "DiskboxAnnounced",
        "StartProtect",
        "RecoveryVolumeCreated",
        "FilterAttached",
        "SyncRequested",
        "VolumeSyncStarted",
        "VolumeSyncCompleted",
    ]
    assert full.catalogue.volumes["v1"].diskbox == "diskbox2"
    assert not full.catalogue.diskbox_requests


def test_sixty_at_once_ask_for_two_one_after_the_other() -> None:
    world = World(diskboxes={"diskbox1": 27})
    world.provides = 27
    world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(60)]
    for number in range(60):
        world.send(world.protect_command(f"v{number}", node=f"n{number}"))
    asked = [event.diskbox for event in world.settle() if isinstance(event, ev.DiskboxRequested)]
    assert asked == ["diskbox2", "diskbox3"]
    held = Counter(volume.diskbox for volume in world.catalogue.volumes.values())
    assert held == {"diskbox1": 27, "diskbox2": 27, "diskbox3": 6}


def test_a_protect_that_meets_a_full_new_diskbox_asks_again(full: World) -> None:
    """Others took the places of the one that it had asked for: the next name, and an event of its own."""
    full.send(full.protect_command("v1", node="n1"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    (request,) = full.catalogue.diskbox_requests.values()
    full.provides = 0
    full.append(full.provided(request))
    full.provides = 1
    full.settle()
    assert full.catalogue.volumes["v1"].diskbox == "diskbox3"


def test_a_provider_that_fails_fails_all_that_wait_and_changes_nothing(full: World) -> None:
    before = full.state()
    for number in (1, 2):
        full.send(full.protect_command(f"v{number}", node=f"n{number}"))
    found = failures(full.settle())
    assert sorted(found) == ["v1", "v2"]
    for error in found.values():
        assert "exit code 3: no quota" in error.message
        assert error.hint
    assert full.state() == before
    full.provides = 1
    assert full.protected("v1", node="n1").diskbox == "diskbox2", (
        "the next protect asks anew, for the same name"
    )


def test_a_request_survives_a_hub(full: World) -> None:
    full.send(full.protect_command("v1", node="n1"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    full.new_hub()
    assert list(replay(full.log).diskbox_requests) == ["diskbox2"]
    full.provides = 1
    assert "DiskboxRequested" not in kinds(full.settle())
    assert full.catalogue.volumes["v1"].state == "protected"


def test_an_answer_to_an_older_request_counts_for_nothing(full: World) -> None:
    full.send(full.protect_command("v1", node="n1"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    (request,) = full.catalogue.diskbox_requests.values()
    late = full.provided(request)
    full.settle()
    full.send(full.protect_command("v2", node="n2"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    assert not full.append(ev.DiskboxFailed(**{**_fields(late), "id": "another"}))
    assert full.catalogue.diskbox_requests


def _fields(event: ev.Record) -> dict[str, object]:
    return {name: getattr(event, name) for name in event.__dataclass_fields__}


def test_a_protect_does_not_wait_for_ever(full: World) -> None:
    full.send(full.protect_command("v1", node="n1"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    full.now += 61 * SECOND
    (failed,) = pending(full.catalogue, full.now)
    error = from_json(failed.error)
    assert isinstance(error, DeadlineError)
    assert "diskbox2" in error.message


def test_a_place_that_comes_free_is_used_instead(full: World) -> None:
    full.send(full.protect_command("v1", node="n1"))
    while not full.catalogue.diskbox_requests:
        full.append(full.due()[0])
    again = ev.DiskboxAnnounced(
        id="more", at=full.now, source="diskbox/diskbox1", hub_epoch=0,
        diskbox="diskbox1", host="h", pid=2, url="http://diskbox1", capacity=2,
    )  # fmt: skip
    full.append(again)
    (start,) = pending(full.catalogue, full.now)
    assert (type(start), start.diskbox) == (ev.StartProtect, "diskbox1")


def test_a_group_stays_on_its_diskbox_and_says_when_that_is_full(full: World) -> None:
    full.provides = 5
    error = full.rejected(full.protect_command("v1", node="n1", group="v0"))
    assert isinstance(error, ConflictError)
    assert "diskbox1 holds 1" in error.message


def test_nothing_is_placed_on_a_silent_diskbox() -> None:
    world = World(diskboxes={"d1": 9, "d2": 9})
    world.protected("v0")
    world.protected("v1", node="n2")
    world.silent = {"d2"}
    world.vms["a1"]["/vm1.sock"].append(node("n3"))
    world.vms["a1"]["/vm1.sock"].append(node("n4"))
    assert world.protected("v2", node="n3").diskbox == "d1"
    error = world.rejected(world.protect_command("v3", node="n4", group="v1"))
    assert isinstance(error, UnavailableError)
    assert "d2" in error.message
    world.silent = {"d1", "d2"}
    world.provides = 3
    assert world.protected("v3", node="n4").diskbox == "diskbox1"
