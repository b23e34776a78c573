"""Pause and resume in the control plane: what is asked, what is refused, what is remembered meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from control_world import DISK_BYTES, SECOND, World, head, lost, node, paused
from rephub.core.errors import ConflictError, DeadlineError, IntegrityError, NotFoundError, from_json
from rephub.core.units import rfc3339
from rephub.projections.decisions import pending
from rephub.projections.entities import Volume
from rephub.projections.status import merge
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

LATEST = {"point_kind": "latest", "point_value": ""}


@pytest.fixture
def world() -> World:
    found = World()
    found.protected("v1")
    return found


def volume(world: World) -> Volume:
    return world.catalogue.volumes["v1"]


def pause(world: World) -> None:
    world.done(world.command(cmd.Pause, volume="v1"))
    assert volume(world).state == "paused"


def entry(world: World, seconds: float = 0.0) -> dict:
    at = world.now + int(seconds * SECOND)
    agent = {"kind": "agent", "at": at, "volumes": {"v1": {"attached": volume(world).attached}}}
    (found,) = merge(world.catalogue, at, {"a1": agent}, {"d1": {"at": at, "volumes": {}}}, [])["volumes"]
    return found


def test_pause_and_resume(world: World) -> None:
    pause(world)
    found = volume(world)
    assert not found.attached
    assert found.bitmap["name"] == "rephub-b-1"
    assert not world.catalogue.wants_capture(found)
    assert world.due() == []
    written = world.done(world.command(cmd.Resume, volume="v1"))
    found = volume(world)
    assert (found.state, found.epoch, found.paused_at) == ("protected", 2, 0)
    assert (found.bitmap["name"], found.bitmap["based"]) == ("rephub-b-2", True)
    (started,) = [event for event in written if isinstance(event, ev.VolumeSyncStarted)]
    assert started.mode == "delta"


def test_status_says_since_when_and_how_much_is_at_risk(world: World) -> None:
    pause(world)
    since = volume(world).paused_at
    found = entry(world, seconds=30)
    assert found["paused_at"] == rfc3339(since)
    assert found["reason"] == f"paused since {rfc3339(since)}"
    assert (found["state"], found["consistent"]) == ("paused", False)
    assert found["rpo_seconds"] == pytest.approx(30, abs=1)
    world.send(world.command(cmd.Resume, volume="v1"))
    assert entry(world)["reason"].startswith("resume under way")


def test_both_are_idempotent(world: World) -> None:
    assert world.already(world.command(cmd.Resume, volume="v1"))["done"] is True
    world.send(world.command(cmd.Pause, volume="v1"))
    assert world.already(world.command(cmd.Pause, volume="v1"))["done"] is False
    world.settle()
    assert world.already(world.command(cmd.Pause, volume="v1"))["done"] is True
    world.send(world.command(cmd.Resume, volume="v1"))
    assert world.already(world.command(cmd.Resume, volume="v1"))["done"] is False


def test_what_is_between_two_states_is_refused(world: World) -> None:
    world.send(world.command(cmd.Pause, volume="v1"))
    for kind in (cmd.Resume, cmd.Resync):
        assert "being paused" in world.rejected(world.command(kind, volume="v1")).message
    world.settle()
    world.send(world.command(cmd.Resume, volume="v1"))
    assert "being resumed" in world.rejected(world.command(cmd.Pause, volume="v1")).message


def test_only_a_protected_volume_is_paused(world: World) -> None:
    assert isinstance(world.rejected(world.command(cmd.Pause, volume="nope")), NotFoundError)
    world.append(lost(volume(world), world.now))
    error = world.rejected(world.command(cmd.Pause, volume="v1"))
    assert isinstance(error, ConflictError)
    assert "rephub wait v1 --state protected" in error.hint
    world.settle()
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, **LATEST))
    for kind in (cmd.Pause, cmd.Resume):
        error = world.rejected(world.command(kind, volume="v1"))
        assert (type(error), error.fields["state"]) == (ConflictError, "promoted")


def test_a_pause_that_nobody_answers_is_given_up(world: World) -> None:
    world.send(world.command(cmd.Pause, volume="v1"))
    assert not pending(world.catalogue, world.now)
    (failed,) = pending(world.catalogue, world.now + 61 * SECOND)
    assert isinstance(failed, ev.PauseFailed)
    assert isinstance(from_json(failed.error), DeadlineError)
    late = paused(volume(world), world.now)
    assert world.append(failed)
    assert (volume(world).state, volume(world).pause_id) == ("protected", "")
    # The agent did it after all: capture is off, and the bitmap is worth something.
    assert world.append(late)
    assert (volume(world).state, volume(world).attached, volume(world).paused_at) == ("gap", False, 0)
    assert volume(world).bitmap
    world.settle()
    assert volume(world).state == "protected"


def test_a_refused_pause_leaves_it_protected(world: World) -> None:
    world.send(world.command(cmd.Pause, volume="v1"))
    fields = head(ev.PauseFailed, volume(world).pause_id, "v1", world.now, "agent/a1")
    assert world.append(ev.PauseFailed(**fields, volume="v1", error=ConflictError("no").to_json()))
    assert world.settle() == []
    assert volume(world).state == "protected"


def test_what_a_bitmap_says_lasts_until_a_sync_is_complete(world: World) -> None:
    pause(world)
    world.send(world.command(cmd.Resume, volume="v1"))
    while volume(world).epoch < 2:
        world.append(world.due()[0])
    assert volume(world).bitmap["based"], "the new chain has what the one before said"
    world.append(lost(volume(world), world.now))
    assert (volume(world).state, volume(world).bitmap["epoch"]) == ("gap", 2)
    written = world.settle()
    assert [event.mode for event in written if isinstance(event, ev.VolumeSyncStarted)] == ["delta"]
    assert volume(world).state == "protected"


def test_a_resync_ends_a_pause_with_a_full_copy(world: World) -> None:
    pause(world)
    written = world.done(world.command(cmd.Resync, volume="v1"))
    assert [event.mode for event in written if isinstance(event, ev.VolumeSyncStarted)] == ["full"]
    assert (volume(world).state, volume(world).paused_at) == ("protected", 0)


def test_a_paused_volume_whose_projector_stops_stays_paused(world: World) -> None:
    pause(world)
    fields = head(ev.VolumeStopped, "x", "v1", world.now, "diskbox/d1")
    world.append(ev.VolumeStopped(**fields, volume="v1", offset=7, error=IntegrityError("bad").to_json()))
    assert volume(world).state == "failed"
    assert world.settle() == [], "nobody attaches it"
    world.append(ev.VolumeResumed(**head(ev.VolumeResumed, "x", "v1", world.now, "diskbox/d1"), volume="v1"))
    assert volume(world).state == "paused"
    assert "paused since" in volume(world).reason


def test_promote_and_unprotect_of_a_paused_volume(world: World) -> None:
    pause(world)
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, **LATEST))
    assert (volume(world).state, volume(world).paused_at, volume(world).bitmap) == ("promoted", 0, {})
    world.protected("v1")
    pause(world)
    world.done(world.command(cmd.Unprotect, volume="v1", purge=False))
    assert (volume(world).retired, volume(world).paused_at, volume(world).bitmap) == (True, 0, {})


def test_a_promote_that_fails_leaves_it_paused(world: World) -> None:
    pause(world)
    world.send(world.command(cmd.Promote, volume="v1", dry_run=False, **LATEST))
    while not volume(world).promotion:
        world.append(world.due()[0])
    fields = head(ev.PromoteFailed, "x", "v1", world.now, "diskbox/d1")
    error = ConflictError("no").to_json()
    world.append(ev.PromoteFailed(**fields, promotion=volume(world).promotion, error=error))
    assert world.settle() == []
    assert volume(world).state == "paused"


def test_protect_and_checkpoint_of_a_paused_volume_point_to_resume(world: World) -> None:
    pause(world)
    command = world.command(cmd.CreateCheckpoint, checkpoint="c1", volume="v1", quiesce=False)
    for refused in (command, world.protect_command("v1")):
        assert world.rejected(refused).hint == "rephub resume v1"


def test_a_new_size_is_known_to_the_catalogue(world: World) -> None:
    pause(world)
    world.vms["a1"]["/vm1.sock"][0] = node("n1", size_bytes=3 * DISK_BYTES)
    world.done(world.command(cmd.Resume, volume="v1"))
    assert volume(world).size_bytes == 3 * DISK_BYTES
    resized = next(event for event in world.log if isinstance(event, ev.VolumeResized))
    assert not world.append(replace(resized, id="again", epoch=1, size_bytes=1))
    assert volume(world).size_bytes == 3 * DISK_BYTES
