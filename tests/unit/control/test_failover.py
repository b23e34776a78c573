"""Fail-over, commit, rollback, move: what the hub decides and what becomes of the volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_world import SECOND, World, lost
from failover_actors import agent_failovers, diskbox_failovers
from rephub.core.errors import ConflictError, NotFoundError, UsageError
from rephub.projections.catalogue import Failover
from rephub.projections.failover import FAILOVER
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

DOCS = Path(__file__).resolve().parents[3] / "docs"
LATEST = {"point_kind": "latest", "point_value": ""}


def failover_command(world: World, **changes: Any) -> cmd.Failover:
    fields = {"dry_run": False, "planned": False, **LATEST}
    if "group" not in changes:
        fields["volume"] = "v1"
    return world.command(cmd.Failover, **(fields | changes))


def failed_over(world: World, **changes: Any) -> Failover:
    """Run it until it is open."""
    command = failover_command(world, **changes)
    world.done(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    assert found.state == "opened", found
    return found


def step(world: World, actor: Any, *arguments: Any) -> None:
    """One actor acts once."""
    for event in actor(world.catalogue, *arguments, world.now):
        world.append(event)


def test_the_diagram_is_drawn_from_the_table() -> None:
    assert FAILOVER.diagram() in (DOCS / "failover.md").read_text()


def test_a_failover_ends_capture_and_is_answered_again() -> None:
    world = World()
    world.protected()
    found = failed_over(world)
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.attached, volume.failover) == ("failed_over", False, found.name)
    assert volume.bitmap, "the way back is a delta"
    assert found.folded
    assert not world.catalogue.wants_capture(volume)
    answer = world.already(failover_command(world))
    assert answer["failover"] == found.name
    assert answer["views"][0]["offset"] == 150
    for kind, fields in [
        (cmd.Promote, {"dry_run": False, **LATEST}),
        (cmd.Unprotect, {"purge": False}),
        (cmd.Pause, {}),
        (cmd.Resync, {}),
        (cmd.StartFot, {"fot": "f", "read_only": True, **LATEST}),
    ]:
        error = world.rejected(world.command(kind, volume="v1", **fields))
        assert isinstance(error, ConflictError)
        assert "rephub rollback v1" in error.hint


def test_a_dry_run_changes_nothing() -> None:
    world = World()
    world.protected()
    command = failover_command(world, dry_run=True)
    world.done(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    assert found.ended
    assert found.plans[0]["lost_events"] == 1
    assert world.catalogue.volumes["v1"].state == "protected"
    assert isinstance(world.rejected(world.command(cmd.Rollback, volume="v1")), NotFoundError)


def test_a_rollback_replicates_as_before() -> None:
    world = World()
    epoch = world.protected().epoch
    failed_over(world)
    world.done(world.command(cmd.Rollback, volume="v1"))
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.epoch, volume.failover) == ("protected", epoch + 1, "")
    assert volume.sync_mode == "delta"
    assert world.already(world.command(cmd.Rollback, volume="v1"))["state"] == "rolled_back"


def test_a_paused_volume_is_paused_again_after_a_rollback() -> None:
    world = World()
    world.protected()
    world.done(world.command(cmd.Pause, volume="v1"))
    failed_over(world)
    world.done(world.command(cmd.Rollback, volume="v1"))
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.attached) == ("paused", False)
    assert volume.bitmap


def test_a_commit_is_the_end_of_protection_and_is_served_until_closed() -> None:
    world = World()
    world.protected()
    found = failed_over(world)
    world.done(world.command(cmd.Commit, volume="v1", close=False))
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.failover, found.state) == ("promoted", "", "committed")
    error = world.rejected(world.command(cmd.Rollback, volume="v1"))
    assert "rephub failback v1" in error.hint
    assert world.already(world.command(cmd.Commit, volume="v1", close=False))["state"] == "committed"
    # A VM may be running from it.
    assert "commit v1 --close" in world.rejected(world.command(cmd.Unprotect, volume="v1", purge=True)).hint
    assert "commit v1 --close" in world.rejected(world.protect_command()).hint
    world.protected(recovery="/elsewhere.raw")
    world.done(world.command(cmd.Commit, volume="v1", close=True))
    assert found.state == "closed"
    assert world.already(world.command(cmd.Commit, volume="v1", close=True))["closed"]


def test_a_commit_may_close_at_once() -> None:
    world = World()
    world.protected()
    found = failed_over(world)
    world.done(world.command(cmd.Commit, volume="v1", close=True))
    assert found.state == "closed"
    world.protected()


def test_a_commit_waits_for_tests_to_stop() -> None:
    world = World()
    world.protected()
    world.done(world.command(cmd.StartFot, fot="f1", volume="v1", read_only=True, **LATEST))
    failed_over(world)
    assert "fot stop f1" in world.rejected(world.command(cmd.Commit, volume="v1", close=False)).hint
    world.done(world.command(cmd.StopFot, fot="f1"))
    world.done(world.command(cmd.Commit, volume="v1", close=False))


def test_it_rolls_back_by_itself_unless_committed() -> None:
    world = World()
    world.protected()
    found = failed_over(world, rollback_seconds=60)
    world.now += 59 * SECOND
    world.settle()
    assert found.state == "opened"
    world.now += 2 * SECOND
    world.settle()
    assert found.state == "rolled_back"
    assert "no commit within 60 s" in found.reason
    found = failed_over(world, rollback_seconds=60)
    world.done(world.command(cmd.Commit, volume="v1", close=False))
    world.now += 61 * SECOND
    world.settle()
    assert found.state == "committed"
    world.protected(recovery="/other.raw")
    assert isinstance(world.rejected(failover_command(world, rollback_seconds=0)), UsageError)


def test_a_group_fails_over_and_is_committed_together() -> None:
    world = World()
    world.protected("v1", group="g")
    world.protected("v2", group="g", node="n2")
    found = failed_over(world, group="g")
    assert found.volumes == ["v1", "v2"]
    error = world.rejected(world.command(cmd.Commit, volume="v2", close=False))
    assert error.hint == "--group g"
    world.done(world.command(cmd.Rollback, group="g"))
    assert {world.catalogue.volumes[name].state for name in found.volumes} == {"protected"}


def test_a_move_is_drained_before_it_is_planned() -> None:
    world = World()
    world.protected()
    command = failover_command(world, planned=True)
    world.send(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    assert found.to_drain
    assert diskbox_failovers(world.catalogue, "d1", world.now) == []
    step(world, agent_failovers, "a1", {})
    assert (found.state, found.drained["v1"]["offset"]) == ("drained", 150)
    world.settle()
    assert found.state == "opened"
    world.done(world.command(cmd.Rollback, volume="v1"))
    assert found.resumed == ["a1"], "the VM that was stopped runs again"
    assert world.catalogue.volumes["v1"].state == "protected"


def test_a_move_needs_all_of_it_captured() -> None:
    world = World()
    volume = world.protected()
    world.append(lost(volume, world.now))
    error = world.rejected(failover_command(world, planned=True))
    assert "rephub failover" in error.hint
    failed_over(world)


def test_an_agent_that_does_not_drain_in_time_costs_nothing() -> None:
    world = World()
    world.protected()
    command = failover_command(world, planned=True)
    world.send(command)
    world.now = command.deadline_at + SECOND
    late = agent_failovers(world.catalogue, "a1", {}, world.now)
    world.append(next(event for event in world.due() if isinstance(event, ev.FailoverFailed)))
    found = world.catalogue.failovers[f"fo-{command.id}"]
    assert "did not drain" in found.reason
    assert world.catalogue.volumes["v1"].state == "protected"
    assert not world.append(late[0]), "what comes late counts for nothing"


def test_a_cancel_before_it_is_open() -> None:
    world = World()
    world.protected()
    command = failover_command(world)
    world.send(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    error = world.rejected(failover_command(world))
    assert "rollback" in error.hint
    world.append(next(event for event in world.due() if isinstance(event, ev.FailoverPlanned)))
    world.append(next(event for event in world.due() if isinstance(event, ev.FailoverStarted)))
    opened = next(event for event in world.due() if isinstance(event, ev.FailoverOpened))
    world.send(world.command(cmd.Rollback, volume="v1"))
    world.append(opened)
    assert (found.state, found.views) == ("rolling_back", [])
    world.settle()
    assert found.state == "rolled_back"
    assert world.catalogue.volumes["v1"].state == "protected"


def test_a_vm_that_cannot_have_the_views_is_no_end() -> None:
    world = World()
    world.protected()
    found = failed_over(world, qmp="/nowhere")
    assert (found.redirect, found.state) == ("done", "opened")
    assert "no monitor" in found.reason
    world.done(world.command(cmd.Rollback, volume="v1"))
    found = failed_over(world, qmp="/vm1.sock")
    assert found.redirect == "attached"
    world.done(world.command(cmd.Rollback, volume="v1"))
    assert found.redirect == "done"


@pytest.mark.parametrize("state", ["requested", "started", "opened", "committing"])
def test_a_lost_diskbox(state: str) -> None:
    """What had opened nothing fails; what a VM may run from waits for its diskbox."""
    world = World(diskboxes={"d1": 27, "d2": 27})
    world.protected()
    command = failover_command(world)
    world.send(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    box = found.diskbox
    while found.state != state:
        if found.state == "opened":
            world.send(world.command(cmd.Commit, volume="v1", close=False))
            continue
        wanted = (ev.FailoverPlanned, ev.FailoverStarted, ev.FailoverOpened)
        world.append(next(event for event in world.due() if isinstance(event, wanted)))
    world.dies(box)
    world.settle()
    if state in ("requested", "started"):
        assert (found.state, world.catalogue.volumes["v1"].state) == ("failed", "protected")
        return
    assert found.state == state
    assert world.catalogue.volumes["v1"].diskbox == box
    world.announces(box, "again")
    world.settle()
    assert found.state == ("committed" if state == "committing" else "opened")


def test_a_promote_is_cancelled_before_it_started() -> None:
    world = World()
    world.protected()
    assert isinstance(world.rejected(world.command(cmd.CancelPromote, volume="v1")), NotFoundError)
    world.send(world.command(cmd.Promote, volume="v1", dry_run=False, **LATEST))
    world.done(world.command(cmd.CancelPromote, volume="v1"))
    (promotion,) = world.catalogue.promotions.values()
    assert (promotion.state, promotion.reason) == ("failed", "the promote was cancelled")
    assert world.catalogue.volumes["v1"].state == "protected"


def test_a_commit_has_a_way_back_until_the_journal_is_folded() -> None:
    world = World()
    world.protected()
    command = failover_command(world)
    world.send(command)
    found = world.catalogue.failovers[f"fo-{command.id}"]
    while found.state != "opened":
        wanted = (ev.FailoverPlanned, ev.FailoverStarted, ev.FailoverOpened)
        world.append(next(event for event in world.due() if isinstance(event, wanted)))
    folded = next(event for event in world.due() if isinstance(event, ev.FailoverFolded))
    world.send(world.command(cmd.Commit, volume="v1", close=False))
    undo = world.send(world.command(cmd.Rollback, volume="v1"))
    assert isinstance(undo, ev.RollbackRequested)
    assert not world.append(folded), "what comes late counts for nothing"
    world.settle()
    assert (found.state, world.catalogue.volumes["v1"].state) == ("rolled_back", "protected")
    found = failed_over(world)
    world.send(world.command(cmd.Commit, volume="v1", close=False))
    assert found.folded
    assert isinstance(world.rejected(world.command(cmd.Rollback, volume="v1")), ConflictError)
