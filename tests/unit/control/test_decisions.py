"""What the hub answers: each command, each reason to refuse it, and what follows by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control_world import SECOND, World, head, lost, node
from rephub.core.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    PointNotAvailableError,
    RephubError,
    UnavailableError,
    UsageError,
    from_json,
)
from rephub.projections.decisions import decide, pending
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

LATEST = {"point_kind": "latest", "point_value": ""}


@pytest.fixture
def world() -> World:
    return World()


def kinds(events: list[ev.Record]) -> list[str]:
    return [type(event).__name__ for event in events]


def failure(events: list[ev.Record], kind: type) -> RephubError:
    """The error of the one event of a kind."""
    (found,) = [event for event in events if isinstance(event, kind)]
    error = from_json(found.error)
    assert error.hint, error
    return error


def fot(world: World, name: str = "f1", **changes: Any) -> cmd.StartFot:
    return world.command(
        cmd.StartFot, **({"fot": name, "volume": "v1", "read_only": False} | LATEST | changes)
    )


def promote(world: World, **changes: Any) -> cmd.Promote:
    return world.command(cmd.Promote, **({"volume": "v1", "dry_run": False} | LATEST | changes))


def checkpoint(world: World, name: str = "c1", **changes: Any) -> cmd.CreateCheckpoint:
    return world.command(cmd.CreateCheckpoint, **({"checkpoint": name, "quiesce": False} | changes))


class TestProtect:
    def test_the_order_of_the_sketch(self, world: World) -> None:
        done = world.done(world.protect_command())
        assert kinds(done) == [
            "ProtectRequested",
            "VmProbeRequested",
            "VmAnnounced",
            "StartProtect",
            "RecoveryVolumeCreated",
            "FilterAttached",
            "SyncRequested",
            "VolumeSyncStarted",
            "VolumeSyncCompleted",
        ]
        volume = world.catalogue.volumes["v1"]
        assert (volume.state, volume.epoch, volume.agent, volume.diskbox) == ("protected", 1, "a1", "d1")
        assert volume.size_bytes == 64 << 20

    def test_every_event_of_the_chain_names_its_command(self, world: World) -> None:
        command = world.protect_command()
        for event in world.done(command):
            if not isinstance(
                event,
                (ev.VmAnnounced, ev.RecoveryVolumeCreated, ev.VolumeSyncStarted, ev.VolumeSyncCompleted),
            ):
                assert event.command_id == command.id, event

    def test_a_device_stands_for_its_node(self, world: World) -> None:
        assert world.protected("v1", node="dev-n1").node == "n1"

    @pytest.mark.parametrize("given", ["n1", "dev-n1"])
    def test_again_is_already(self, world: World, given: str) -> None:
        world.protected("v1")
        answer = world.already(world.protect_command(node=given))
        assert answer == {"volume": "v1", "group": "v1", "epoch": 1, "state": "protected", "attached": True}

    def test_again_while_under_way_is_already(self, world: World) -> None:
        world.send(world.protect_command())
        assert world.already(world.protect_command())["attached"] is False

    def test_another_node_under_the_name(self, world: World) -> None:
        world.protected("v1")
        assert isinstance(world.rejected(world.protect_command(node="n2")), ConflictError)

    def test_another_node_while_under_way(self, world: World) -> None:
        world.send(world.protect_command())
        assert isinstance(world.rejected(world.protect_command(node="n2")), ConflictError)

    @pytest.mark.parametrize("given", ["n1", "dev-n1"])
    def test_the_node_under_another_name(self, world: World, given: str) -> None:
        world.protected("v1")
        error = world.rejected(world.protect_command("v2", node=given))
        assert isinstance(error, ConflictError)
        assert error.fields["volume"] == "v1"

    def test_two_protects_of_a_node_at_once(self, world: World) -> None:
        """Both are taken before the VM is known; one of them gets the node."""
        world.send(world.protect_command("v1"))
        world.send(world.protect_command("v2", node="dev-n1"))
        assert isinstance(failure(world.settle(), ev.ProtectFailed), ConflictError)
        assert world.catalogue.volumes["v1"].state == "protected"
        assert "v2" not in world.catalogue.volumes

    @pytest.mark.parametrize(
        "changes",
        [
            {"volume": "-bad"},
            {"volume": "a" * 101},
            {"volume": "ü"},
            {"group": "a/b"},
            {"ack": "never"},
            {"overload": "explode"},
            {"history_seconds": 0},
            {"history_bytes": 0},
            {"qmp": "relative.sock"},
            {"node": ""},
        ],
    )
    def test_bad_values(self, world: World, changes: dict[str, Any]) -> None:
        command = replace(world.protect_command(), **changes)
        assert isinstance(world.rejected(command), UsageError)

    def test_unknown_node_lists_the_nodes(self, world: World) -> None:
        error = failure(world.done(world.protect_command(node="nope")), ev.ProtectFailed)
        assert isinstance(error, NotFoundError)
        assert "n1 (dev-n1), n2 (dev-n2)" in error.hint
        assert not world.catalogue.volumes
        assert not world.catalogue.protects

    def test_read_only_node(self, world: World) -> None:
        assert isinstance(
            failure(world.done(world.protect_command(node="ro")), ev.ProtectFailed), ConflictError
        )

    def test_empty_node(self, world: World) -> None:
        world.vms["a1"]["/vm1.sock"] = [node("n1", size_bytes=0)]
        assert isinstance(failure(world.done(world.protect_command()), ev.ProtectFailed), ConflictError)

    def test_no_monitor(self, world: World) -> None:
        error = failure(world.done(world.protect_command(qmp="/none")), ev.ProtectFailed)
        assert (type(error), error.message) == (NotFoundError, "no monitor at /none")

    def test_a_seed_has_an_absolute_path(self, world: World) -> None:
        assert isinstance(world.rejected(world.protect_command(seed="copy.raw")), UsageError)

    def test_no_agent(self) -> None:
        assert isinstance((w := World(agents=())).rejected(w.protect_command()), UnavailableError)

    def test_no_diskbox(self) -> None:
        assert isinstance((w := World(diskboxes={})).rejected(w.protect_command()), UnavailableError)

    def test_least_loaded_diskbox_but_groups_stay_together(self) -> None:
        world = World(diskboxes={"d1": 9, "d2": 9})
        world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(4)]
        boxes = [
            world.protected(f"v{number}", node=f"n{number}", group=group).diskbox
            for number, group in enumerate("abaa")
        ]
        assert boxes == ["d1", "d2", "d1", "d1"]

    def test_shared_recovery_volume(self, world: World) -> None:
        world.protected("v1", recovery="/r")
        for taken in ("/r", "/boxes/d1/v0"):
            world.protected("v0", node="n2") if "v0" not in world.catalogue.volumes else None
            assert isinstance(world.rejected(world.protect_command("v2", recovery=taken)), ConflictError)

    def test_waiting_survives_a_new_hub(self, world: World) -> None:
        world.send(world.protect_command())
        world.new_hub()
        world.settle()
        assert world.catalogue.volumes["v1"].state == "protected"

    def test_waiting_expires(self, world: World) -> None:
        world.send(world.protect_command())
        (probe,) = pending(world.catalogue, world.now)
        world.append(probe)
        world.now += 61 * SECOND
        (failed,) = pending(world.catalogue, world.now)
        error = from_json(failed.error)
        assert isinstance(error, DeadlineError)
        assert "agent a1" in error.message
        world.append(failed)
        assert not world.catalogue.protects

    def test_waiting_without_any_answer_expires(self, world: World) -> None:
        world.send(world.protect_command())
        world.now += 61 * SECOND
        assert isinstance(failure(pending(world.catalogue, world.now), ev.ProtectFailed), DeadlineError)

    def test_the_agent_that_sees_the_vm_gets_it(self) -> None:
        world = World(agents=("a1", "a2"))
        del world.vms["a1"]["/vm1.sock"]
        assert world.protected("v1").agent == "a2"

    def test_one_path_on_two_hosts_is_told_apart_by_the_node(self) -> None:
        world = World(agents=("a1", "a2"))
        world.vms["a1"]["/vm1.sock"] = [node("other")]
        assert world.protected("v1").agent == "a2"

    def test_group_on_another_agent(self) -> None:
        world = World(agents=("a1", "a2"))
        world.vms["a2"] = {"/vm2.sock": [node("m1")]}
        world.protected("v1", group="g")
        world.protected("v2", qmp="/vm2.sock", node="m1", group="g")
        assert {volume.agent for volume in world.catalogue.group_members("g")} == {"a1", "a2"}
        assert isinstance(world.rejected(checkpoint(world, group="g", quiesce=True)), ConflictError)
        (requested, *_) = world.done(checkpoint(world, group="g"))
        assert isinstance(requested, ev.CheckpointRequested)
        assert (requested.agent, requested.volumes) == ("a1", ("v1", "v2")), "the first one coordinates"

    def test_failed_attach_leaves_nothing(self, world: World) -> None:
        world.send(world.protect_command())
        while "v1" not in world.catalogue.volumes:
            world.append(world.due()[0])
        fields = head(ev.ProtectFailed, "x", "v1", world.now, "agent/a1")
        world.append(ev.ProtectFailed(**fields, volume="v1", error=ConflictError("iothread").to_json()))
        done = world.settle()
        assert kinds(done) == ["CaptureDetached", "RecoveryVolumeReleased", "Unprotected"]
        assert done[-1].purged
        assert not world.catalogue.live_volumes()
        assert world.protected("v1").epoch == 1

    def test_failed_attach_of_a_promoted_volume_leaves_it_promoted(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        world.send(world.protect_command())
        while world.catalogue.volumes["v1"].state == "promoted":
            world.append(world.due()[0])
        fields = head(ev.ProtectFailed, "x", "v1", world.now, "agent/a1")
        world.append(ev.ProtectFailed(**fields, volume="v1", error=ConflictError("iothread").to_json()))
        assert world.settle() == []
        volume = world.catalogue.volumes["v1"]
        assert (volume.state, volume.path) == ("promoted", "/boxes/d1/v1")

    @pytest.mark.parametrize("end", ["promote", "unprotect"])
    def test_again_after_the_end_continues_epochs(self, world: World, end: str) -> None:
        world.protected("v1")
        if end == "promote":
            world.done(promote(world))
        else:
            world.done(world.command(cmd.Unprotect, volume="v1", purge=False))
        volume = world.protected("v1")
        assert (volume.epoch, volume.diskbox, volume.path) == (2, "d1", "/boxes/d1/v1")

    def test_again_after_purge_starts_anew(self, world: World) -> None:
        world.protected("v1")
        world.done(world.command(cmd.Unprotect, volume="v1", purge=True))
        assert world.protected("v1").epoch == 1


class TestCommands:
    def test_sent_twice_acts_once(self, world: World) -> None:
        command = world.protect_command()
        world.done(command)
        assert decide(world.catalogue, command, world.now) == []

    def test_a_refusal_is_not_repeated(self, world: World) -> None:
        command = world.command(cmd.Resync, volume="nope")
        world.rejected(command)
        assert decide(world.catalogue, command, world.now) == []

    def test_expired(self, world: World) -> None:
        assert isinstance(
            world.rejected(replace(world.protect_command(), deadline_at=world.now - 1)), DeadlineError
        )

    def test_the_same_inputs_give_the_same_event(self, world: World) -> None:
        command = world.protect_command()
        assert decide(world.catalogue, command, world.now) == decide(world.catalogue, command, world.now)


class TestUnprotect:
    def test_agent_and_diskbox_let_go_first(self, world: World) -> None:
        world.protected("v1")
        done = world.done(world.command(cmd.Unprotect, volume="v1", purge=False))
        assert kinds(done) == [
            "UnprotectRequested",
            "CaptureDetached",
            "RecoveryVolumeReleased",
            "Unprotected",
        ]
        assert not world.catalogue.live_volumes()

    def test_one_of_both_is_not_enough(self, world: World) -> None:
        world.protected("v1")
        world.send(world.command(cmd.Unprotect, volume="v1", purge=False))
        for _ in range(2):
            assert kinds(pending(world.catalogue, world.now)) == []
            world.append(world.due()[0])
        assert kinds(pending(world.catalogue, world.now)) == ["Unprotected"]

    def test_again_is_already_and_purge_may_follow(self, world: World) -> None:
        world.protected("v1")
        world.done(world.command(cmd.Unprotect, volume="v1", purge=False))
        assert world.already(world.command(cmd.Unprotect, volume="v1", purge=False)) == {
            "volume": "v1",
            "purged": False,
        }
        assert world.done(world.command(cmd.Unprotect, volume="v1", purge=True))[-1].purged
        assert world.already(world.command(cmd.Unprotect, volume="v1", purge=True)) == {
            "volume": "v1",
            "purged": True,
        }

    def test_purge_of_a_promoted_volume_needs_no_agent(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        done = world.done(world.command(cmd.Unprotect, volume="v1", purge=True))
        assert kinds(done) == ["UnprotectRequested", "RecoveryVolumeReleased", "Unprotected"]

    def test_purge_forgets_checkpoints(self, world: World) -> None:
        world.protected("v1")
        world.done(checkpoint(world, volume="v1"))
        world.done(world.command(cmd.Unprotect, volume="v1", purge=True))
        assert not world.catalogue.checkpoints

    def test_unknown(self, world: World) -> None:
        assert isinstance(
            world.rejected(world.command(cmd.Unprotect, volume="nope", purge=False)), NotFoundError
        )

    def test_while_a_test_is_open(self, world: World) -> None:
        world.protected("v1")
        world.done(fot(world))
        error = world.rejected(world.command(cmd.Unprotect, volume="v1", purge=False))
        assert isinstance(error, ConflictError)
        assert error.hint == "rephub fot stop f1"

    def test_while_it_is_under_way(self, world: World) -> None:
        world.protected("v1")
        world.send(world.command(cmd.Unprotect, volume="v1", purge=False))
        for command in (
            world.command(cmd.Unprotect, volume="v1", purge=False),
            world.protect_command(),
            world.command(cmd.Resync, volume="v1"),
            fot(world),
            promote(world),
            checkpoint(world, volume="v1"),
        ):
            assert isinstance(world.rejected(command), ConflictError)


class TestResync:
    def test_brings_a_new_epoch(self, world: World) -> None:
        world.protected("v1")
        done = world.done(world.command(cmd.Resync, volume="v1"))
        assert kinds(done)[:3] == ["ResyncRequested", "FilterAttached", "SyncRequested"]
        assert world.catalogue.volumes["v1"].epoch == 2

    def test_while_asked_for_is_already(self, world: World) -> None:
        world.protected("v1")
        world.send(world.command(cmd.Resync, volume="v1"))
        assert world.already(world.command(cmd.Resync, volume="v1"))["volume"] == "v1"

    def test_while_syncing_is_already(self, world: World) -> None:
        world.send(world.protect_command())
        while not world.catalogue.volumes.get("v1") or not world.catalogue.volumes["v1"].attached:
            world.append(world.due()[0])
        assert world.already(world.command(cmd.Resync, volume="v1"))["state"] == "syncing"

    def test_of_a_promoted_volume(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        error = world.rejected(world.command(cmd.Resync, volume="v1"))
        assert isinstance(error, ConflictError)
        assert "promoted" in error.message
        assert "resyncing" in error.message

    def test_unknown(self, world: World) -> None:
        world.protected("v1")
        error = world.rejected(world.command(cmd.Resync, volume="nope"))
        assert isinstance(error, NotFoundError)
        assert error.hint == "volumes: v1"


class TestCheckpoint:
    def test_of_a_volume(self, world: World) -> None:
        world.protected("v1")
        done = world.done(checkpoint(world, volume="v1"))
        assert kinds(done) == ["CheckpointRequested", "CheckpointCreated"]
        assert done[0].kind == "crash"

    def test_of_a_group(self, world: World) -> None:
        world.protected("v1", group="g")
        world.protected("v2", group="g", node="n2")
        assert world.done(checkpoint(world, group="g"))[0].volumes == ("v1", "v2")

    def test_a_name_is_taken_once(self, world: World) -> None:
        world.protected("v1")
        world.done(checkpoint(world, volume="v1"))
        assert isinstance(world.rejected(checkpoint(world, volume="v1")), ConflictError)

    def test_a_failed_one_frees_its_name(self, world: World) -> None:
        world.protected("v1")
        world.send(checkpoint(world, volume="v1"))
        world.now += 61 * SECOND
        (failed,) = pending(world.catalogue, world.now)
        assert isinstance(from_json(failed.error), DeadlineError)
        world.append(failed)
        world.done(checkpoint(world, volume="v1"))
        assert world.catalogue.checkpoints["c1"].state == "created"

    def test_a_member_in_a_gap(self, world: World) -> None:
        world.protected("v1", group="g")
        world.append(lost(world.protected("v2", group="g", node="n2"), world.now))
        error = world.rejected(checkpoint(world, group="g"))
        assert isinstance(error, ConflictError)
        assert error.fields["state"] == "gap"

    @pytest.mark.parametrize(
        ("changes", "kind"),
        [
            ({"name": "bad name", "volume": "v1"}, UsageError),
            ({}, UsageError),
            ({"volume": "v1", "group": "v1"}, UsageError),
            ({"volume": "nope"}, NotFoundError),
            ({"group": "nope"}, NotFoundError),
        ],
    )
    def test_bad_targets(self, world: World, changes: dict[str, Any], kind: type) -> None:
        world.protected("v1")
        assert type(world.rejected(checkpoint(world, **changes))) is kind


class TestFot:
    def test_start_and_stop(self, world: World) -> None:
        world.protected("v1")
        assert kinds(world.done(fot(world))) == ["FotRequested", "FotStarted"]
        assert kinds(world.done(world.command(cmd.StopFot, fot="f1"))) == ["FotStopRequested", "FotStopped"]
        assert world.already(world.command(cmd.StopFot, fot="f1")) == {"fot": "f1", "ended": True}

    def test_a_recovery_vm_gets_the_views_and_lets_go_before_they_close(self, world: World) -> None:
        world.protected("v1")
        done = world.done(fot(world, qmp="/vm1.sock"))
        assert kinds(done) == ["FotRequested", "FotStarted", "FotAttached"]
        assert (done[0].agent, world.catalogue.fots["f1"].redirect) == ("a1", "attached")
        stop = world.done(world.command(cmd.StopFot, fot="f1"))
        assert kinds(stop) == ["FotStopRequested", "FotDetached", "FotStopped"]
        assert world.catalogue.fots["f1"].redirect == "done"

    def test_a_recovery_vm_that_cannot_have_them_ends_the_test(self, world: World) -> None:
        world.protected("v1")
        done = world.done(fot(world, qmp="/nowhere"))
        assert kinds(done) == ["FotRequested", "FotStarted", "FotAttachFailed", "FotStopped"]
        assert world.catalogue.fots["f1"].state == "stopped"

    def test_a_stop_while_the_agent_attaches(self, world: World) -> None:
        world.protected("v1")
        world.send(fot(world, qmp="/vm1.sock"))
        (started,) = world.due()
        world.append(started)
        (attached,) = world.due()
        world.send(world.command(cmd.StopFot, fot="f1"))
        world.append(attached)
        assert kinds(world.due()) == ["FotDetached"]
        world.settle()
        assert world.catalogue.fots["f1"].state == "stopped"

    def test_an_agent_that_does_not_attach(self, world: World) -> None:
        world.protected("v1")
        world.send(fot(world, qmp="/vm1.sock"))
        (started,) = world.due()
        world.append(started)
        (late,) = world.due()
        world.now += 61 * SECOND
        assert isinstance(failure(pending(world.catalogue, world.now), ev.FotAttachFailed), DeadlineError)
        (gave_up,) = pending(world.catalogue, world.now)
        world.append(gave_up)
        assert not world.append(late)
        world.settle()
        assert world.catalogue.fots["f1"].state == "stopped"

    def test_no_agent_on_the_diskbox_host(self, world: World) -> None:
        world.protected("v1")
        world.catalogue.diskboxes["d1"].host = "elsewhere"
        error = world.rejected(fot(world, qmp="/vm1.sock"))
        assert isinstance(error, NotFoundError)
        assert "elsewhere" in error.message

    def test_a_stop_before_the_start_wins(self, world: World) -> None:
        world.protected("v1")
        world.send(fot(world))
        (started,) = world.due()
        world.send(world.command(cmd.StopFot, fot="f1"))
        world.append(started)
        assert world.catalogue.fots["f1"].state == "stopping"
        world.settle()
        assert world.catalogue.fots["f1"].state == "stopped"

    def test_a_diskbox_that_does_not_answer(self, world: World) -> None:
        world.protected("v1")
        world.send(fot(world))
        world.now += 61 * SECOND
        assert isinstance(failure(pending(world.catalogue, world.now), ev.FotFailed), DeadlineError)

    def test_unknown_stop_lists_the_open_ones(self, world: World) -> None:
        world.protected("v1")
        world.done(fot(world))
        error = world.rejected(world.command(cmd.StopFot, fot="nope"))
        assert isinstance(error, NotFoundError)
        assert "f1" in error.hint

    @pytest.mark.parametrize(
        ("changes", "kind"),
        [
            ({"volume": "nope"}, NotFoundError),
            ({"volume": None, "group": "nope"}, NotFoundError),
            ({"volume": None}, UsageError),
            ({"group": "v1"}, UsageError),
            ({"point_kind": "moon"}, UsageError),
            ({"point_kind": "offset", "point_value": "-1"}, UsageError),
            ({"point_kind": "time", "point_value": "noon"}, UsageError),
            ({"point_kind": "checkpoint", "point_value": "a b"}, UsageError),
        ],
    )
    def test_bad_input(self, world: World, changes: dict[str, Any], kind: type) -> None:
        world.protected("v1")
        assert type(world.rejected(fot(world, **changes))) is kind

    def test_a_group_has_no_common_offset(self, world: World) -> None:
        world.protected("v1", group="g")
        world.protected("v2", group="g", node="n2")
        command = fot(world, volume=None, group="g", point_kind="offset", point_value="3")
        assert isinstance(world.rejected(command), UsageError)

    def test_never_synced(self, world: World) -> None:
        world.send(world.protect_command())
        while not world.catalogue.volumes.get("v1") or not world.catalogue.volumes["v1"].attached:
            world.append(world.due()[0])
        error = world.rejected(fot(world))
        assert isinstance(error, PointNotAvailableError)
        assert error.fields["nearest_offset"] is None

    def test_in_a_gap_older_points_can_be_opened(self, world: World) -> None:
        world.append(lost(world.protected("v1"), world.now))
        assert isinstance(world.send(fot(world)), ev.FotRequested)

    def test_of_a_promoted_volume(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        assert isinstance(world.rejected(fot(world)), ConflictError)


class TestPromote:
    def test_plan_detach_apply(self, world: World) -> None:
        world.protected("v1")
        done = world.done(promote(world))
        assert kinds(done) == [
            "PromoteRequested",
            "PromotePlanned",
            "PromoteStarted",
            "CaptureDetached",
            "Promoted",
        ]
        volume = world.catalogue.volumes["v1"]
        assert (volume.state, volume.attached, volume.promotion) == ("promoted", False, "")

    def test_a_dry_run_ends_with_the_plan(self, world: World) -> None:
        world.protected("v1")
        assert kinds(world.done(promote(world, dry_run=True))) == ["PromoteRequested", "PromotePlanned"]
        assert world.catalogue.volumes["v1"].state == "protected"

    def test_a_copy_ends_nothing(self, world: World) -> None:
        world.protected("v1")
        assert kinds(world.done(promote(world, to="/copy"))) == [
            "PromoteRequested",
            "PromotePlanned",
            "Promoted",
        ]
        assert world.catalogue.volumes["v1"].state == "protected"

    def test_a_dead_agent_is_not_waited_for(self, world: World) -> None:
        world.append(lost(world.protected("v1"), world.now))
        world.send(promote(world))
        for _ in range(2):
            world.append(next(event for event in world.due() if not isinstance(event, ev.FilterAttached)))
        (promotion,) = world.catalogue.promotions.values()
        assert (promotion.state, promotion.detached) == ("started", ["v1"])

    def test_the_agent_does_not_attach_meanwhile(self, world: World) -> None:
        volume = world.protected("v1")
        world.send(promote(world))
        while not volume.promotion:
            world.append(world.due()[0])
        assert not world.catalogue.wants_capture(volume)

    def test_again_is_already(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        for same in ({}, {"point_kind": "offset", "point_value": "150"}):
            (plan,) = world.already(promote(world, **same))["plans"]
            assert plan["offset"] == 150

    def test_again_elsewhere(self, world: World) -> None:
        world.protected("v1")
        world.done(promote(world))
        command = promote(world, point_kind="offset", point_value="3")
        assert isinstance(world.rejected(command), ConflictError)

    @pytest.mark.parametrize(("offset", "allowed"), [("200", False), ("150", True), ("100", True)])
    def test_a_test_that_pins_lower(self, world: World, offset: str, allowed: bool) -> None:
        world.protected("v1")
        world.done(fot(world))
        done = world.done(promote(world, point_kind="offset", point_value=offset))
        if allowed:
            assert kinds(done)[-1] == "Promoted"
            return
        error = failure(done, ev.PromoteFailed)
        assert isinstance(error, ConflictError)
        assert error.hint == "rephub fot stop f1"
        assert world.catalogue.volumes["v1"].state == "protected"

    def test_one_at_a_time(self, world: World) -> None:
        world.protected("v1")
        world.send(promote(world))
        assert isinstance(world.rejected(promote(world)), ConflictError)
        assert isinstance(world.send(promote(world, dry_run=True)), ev.PromoteRequested)

    def test_an_unprotect_that_came_between(self, world: World) -> None:
        world.protected("v1")
        world.send(promote(world))
        world.send(world.command(cmd.Unprotect, volume="v1", purge=False))
        assert isinstance(failure(world.settle(), ev.PromoteFailed), (ConflictError, NotFoundError))
        assert world.catalogue.volumes["v1"].retired

    def test_a_failure_brings_protection_back(self, world: World) -> None:
        volume = world.protected("v1")
        world.send(promote(world))
        while not volume.promotion:
            world.append(world.due()[0])
        (promotion,) = world.catalogue.promotions.values()
        world.append(world.due()[0])
        assert volume.state == "gap"
        fields = head(ev.PromoteFailed, promotion.event_id, "x", world.now, "diskbox/d1")
        world.append(
            ev.PromoteFailed(**fields, promotion=promotion.name, error=ConflictError("full").to_json())
        )
        world.settle()
        assert (volume.state, volume.epoch) == ("protected", 2)

    def test_a_plan_that_does_not_come(self, world: World) -> None:
        world.protected("v1")
        world.send(replace(promote(world), deadline_at=world.now + 7200 * SECOND))
        world.now += 121 * SECOND
        assert isinstance(failure(pending(world.catalogue, world.now), ev.PromoteFailed), DeadlineError)

    @pytest.mark.parametrize("to", ["relative", "/boxes/d1/v1"])
    def test_bad_target_paths(self, world: World, to: str) -> None:
        world.protected("v1")
        assert isinstance(world.rejected(promote(world, to=to)), (UsageError, ConflictError))

    def test_a_group_as_a_whole(self, world: World) -> None:
        world.protected("v1", group="g")
        world.protected("v2", group="g", node="n2")
        done = world.done(promote(world, volume=None, group="g"))
        assert kinds(done).count("CaptureDetached") == 2
        assert {volume.state for volume in world.catalogue.volumes.values()} == {"promoted"}
