"""What an agent does next, from the catalogue and what it holds: protect, loss, restart, promote, unprotect."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rephub.agent.plan import Action, Held, Local, Pace, is_final, key_of, next_action, wanted_pace
from rephub.core.errors import FencedError, UnavailableError
from rephub.projections.catalogue import Catalogue
from rephub.schemas import events as ev


class World:
    """A catalogue with one volume `v` of agent `a`, grown by events."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.local = Local()
        self._numbers = itertools.count(1)

    def tell(self, event_type: type[ev.Record], **fields: Any) -> None:
        number = next(self._numbers)
        event = event_type(id=f"id{number}", at=number, source="test", hub_epoch=0, **fields)
        assert self.catalogue.apply(number, event), self.catalogue.ignored

    def next(self, agent: str = "a") -> Action:
        return next_action(self.catalogue, self.catalogue.volumes["v"], agent, self.local)

    def protect(self) -> None:
        self.tell(
            ev.StartProtect, volume="v", group="v", qmp="/q", node="n", ack="async", overload="throttle",
            history_seconds=1, history_bytes=1, agent="a", diskbox="d", size_bytes=1,
        )  # fmt: skip

    def created(self) -> None:
        self.tell(ev.RecoveryVolumeCreated, volume="v", diskbox="d", path="/p", size_bytes=1)

    def attached(self, epoch: int = 1) -> None:
        taken_by = self.catalogue.volumes["v"].taken_by
        self.local.held, self.local.last_epoch = Held(epoch, "aa", 0, taken_by=taken_by), epoch
        self.local.resynced = self.catalogue.volumes["v"].resync_id
        self.tell(
            ev.FilterAttached,
            volume="v",
            agent="a",
            epoch=epoch,
            attachment_id=f"a{epoch}",
            offset=0,
            reason="r",
        )

    def synced(self) -> None:
        assert self.local.held is not None
        epoch = self.local.held.epoch
        self.tell(ev.SyncRequested, volume="v", epoch=epoch)
        self.local.held.sync_begun, self.local.held.synced_offset = True, 5
        self.tell(ev.VolumeSyncCompleted, volume="v", epoch=epoch, offset=5)


@pytest.fixture
def world() -> World:
    world = World()
    world.protect()
    return world


def test_protect_in_its_order(world: World) -> None:
    assert world.next() is Action.NONE, "the recovery volume is not there yet"
    world.created()
    assert world.next("b") is Action.NONE, "another agent's volume"
    assert world.next() is Action.ATTACH
    world.attached()
    assert world.next() is Action.NONE, "nobody asked for sync yet"
    world.tell(ev.SyncRequested, volume="v", epoch=1)
    assert world.next() is Action.SYNC
    assert world.local.held is not None
    world.local.held.sync_begun = world.local.held.source_open = True
    assert world.next() is Action.NONE
    world.local.held.synced_offset = 9
    assert world.next() is Action.TIDY
    world.local.held.source_open = False
    assert world.next() is Action.NONE


def test_a_refused_protect_is_not_tried_again(world: World) -> None:
    world.created()
    world.local.gave_up = world.catalogue.volumes["v"].start_id
    assert world.next() is Action.NONE
    world.tell(ev.ProtectFailed, volume="v", error="{}")
    assert world.next() is Action.RELEASE
    world.tell(ev.CaptureDetached, volume="v", epoch=0)
    assert world.next() is Action.NONE


def test_loss_is_reported_and_followed_by_a_new_attachment(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    world.local.lost = UnavailableError("x")
    assert world.next() is Action.REPORT_LOST
    world.local.held = world.local.lost = None
    assert world.next() is Action.ATTACH, "the event need not be folded first"
    world.tell(ev.CaptureLost, volume="v", epoch=1, reason="x")
    assert world.next() is Action.ATTACH


def test_after_a_restart_the_dead_attachment_is_reported_first(world: World) -> None:
    world.created()
    world.attached()
    world.local = Local()
    assert world.next() is Action.REPORT_LOST
    world.local.last_epoch = 1
    assert world.next() is Action.ATTACH


def test_a_fenced_volume_waits_for_a_request(world: World) -> None:
    world.created()
    world.attached()
    assert is_final(FencedError("x"))
    world.local.held, world.local.fenced = None, key_of(world.catalogue.volumes["v"])
    world.tell(ev.CaptureLost, volume="v", epoch=1, reason="fenced")
    assert world.next() is Action.NONE
    world.tell(ev.ResyncRequested, volume="v")
    assert world.next() is Action.ATTACH


def test_resync_detaches_and_attaches_once(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    world.tell(ev.ResyncRequested, volume="v")
    assert world.next() is Action.DETACH
    world.local.held = None
    assert world.next() is Action.ATTACH
    world.attached(2)
    assert world.next() is Action.NONE


@pytest.mark.parametrize("restarted", [False, True])
def test_unprotect(world: World, *, restarted: bool) -> None:
    world.created()
    world.attached()
    world.tell(ev.UnprotectRequested, volume="v", purge=False)
    if restarted:
        world.local = Local()
        assert world.next() is Action.RELEASE
    else:
        assert world.next() is Action.DETACH
    world.local.held = None
    world.local.last_epoch, world.local.released = 1, key_of(world.catalogue.volumes["v"])
    assert world.next() is Action.NONE, "it is said already"
    world.tell(ev.CaptureDetached, volume="v", epoch=1)
    assert world.next() is Action.NONE


def test_lost_monitor_is_looked_for_while_capture_is_on(world: World) -> None:
    world.created()
    world.attached()
    world.local.connected = False
    assert world.next() is Action.RECONNECT


def test_the_pace_is_told_before_sync_begins_and_whenever_it_changes(world: World) -> None:
    world.created()
    world.attached()
    world.tell(ev.SyncPaceSet, volume="v", paused=True, rate_bytes_per_second=7 << 20, priority=0)
    assert world.next() is Action.NONE, "nobody asked for sync yet"
    world.tell(ev.SyncRequested, volume="v", epoch=1)
    held = world.local.held
    assert held is not None
    assert world.next() is Action.PACE
    held.pace = wanted_pace(world.catalogue.volumes["v"], world.local)
    assert held.pace == Pace(running=False, bytes_per_second=7 << 20)
    assert world.next() is Action.NONE, "paused before it began"
    world.tell(ev.SyncPaceSet, volume="v", paused=False, rate_bytes_per_second=0, priority=0)
    assert world.next() is Action.PACE
    held.pace = Pace()
    assert world.next() is Action.SYNC
    held.sync_begun = True
    world.local.turn = False
    assert world.next() is Action.PACE, "a higher one took its place"
    held.pace = Pace(running=False)
    held.synced_offset = 5
    world.local.turn = True
    assert world.next() is Action.NONE, "it is over"


def paused(world: World, epoch: int = 1) -> None:
    world.tell(
        ev.VolumePaused,
        volume="v",
        epoch=epoch,
        offset=9,
        bitmap="rephub-b-x-1",
        persistent=False,
        image="/i",
    )


def test_pause_and_resume(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    assert world.local.held is not None
    world.local.held.source_open = True
    world.tell(ev.PauseRequested, volume="v", deadline_at=99)
    assert world.next() is Action.TIDY, "QEMU lets go of the export first"
    world.local.held.source_open = False
    assert world.next() is Action.PAUSE
    world.local.held, world.local.paused = None, world.catalogue.volumes["v"].pause_id
    assert world.next() is Action.NONE, "the event need not be folded first"
    paused(world)
    assert world.next() is Action.NONE
    world.local = Local()
    assert world.next() is Action.NONE, "nor does a restart end it"
    world.tell(ev.ResumeRequested, volume="v")
    assert world.next() is Action.ATTACH
    world.attached(2)
    assert world.next() is Action.NONE


def test_a_pause_that_failed_leaves_capture_on(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    world.tell(ev.PauseRequested, volume="v", deadline_at=99)
    world.local.paused = pause_id = world.catalogue.volumes["v"].pause_id
    assert world.next() is Action.NONE
    world.tell(ev.PauseFailed, volume="v", error="{}", cause_id=pause_id)
    assert world.next() is Action.NONE
    assert world.catalogue.wants_capture(world.catalogue.volumes["v"])


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_that_is_held_cannot_be_paused(world: World, *, restarted: bool) -> None:
    world.created()
    world.attached()
    world.synced()
    world.tell(ev.PauseRequested, volume="v", deadline_at=99)
    if restarted:
        world.local = Local()
    else:
        world.local.lost = UnavailableError("x")
        assert world.next() is Action.REPORT_LOST
        world.local.held = world.local.lost = None
    assert world.next() is Action.REFUSE_PAUSE
    pause_id = world.local.paused = world.catalogue.volumes["v"].pause_id
    assert world.next() is (Action.REPORT_LOST if restarted else Action.NONE)
    world.tell(ev.PauseFailed, volume="v", error="{}", cause_id=pause_id)
    world.tell(ev.CaptureLost, volume="v", epoch=1, reason="x")
    assert world.next() is Action.ATTACH


def test_unprotect_of_a_paused_volume_removes_the_bitmap(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    world.tell(ev.PauseRequested, volume="v", deadline_at=99)
    world.local.held = None
    paused(world)
    world.tell(ev.UnprotectRequested, volume="v", purge=False)
    assert world.next() is Action.RELEASE


def fail_over(world: World, name: str) -> None:
    """As hub and diskbox do it, up to the start."""
    world.tell(
        ev.FailoverRequested, failover=name, volumes=("v",), diskbox="d", point_kind="latest", point_value="",
        dry_run=False, planned=False,
    )  # fmt: skip
    world.tell(ev.FailoverPlanned, failover=name, plans=())
    world.tell(ev.FailoverStarted, failover=name)


def test_a_failover_ends_capture_and_a_rollback_begins_it_again(world: World) -> None:
    world.created()
    world.attached()
    world.synced()
    fail_over(world, "f")
    assert world.next() is Action.DETACH
    world.local.held = None
    assert world.next() is Action.NONE
    world.tell(ev.CaptureLost, volume="v", epoch=1, reason="failed over")
    world.tell(ev.RollbackRequested, failover="f", reason="r")
    assert world.next() is Action.NONE
    world.tell(ev.FailoverRolledBack, failover="f", reason="r")
    assert world.next() is Action.ATTACH


def test_one_that_was_rolled_back_before_anybody_looked_is_noticed_all_the_same(world: World) -> None:
    """Its fence has ended the epoch: what is written there counts for nothing."""
    world.created()
    world.attached()
    world.synced()
    before = key_of(world.catalogue.volumes["v"])
    fail_over(world, "f")
    world.tell(ev.RollbackRequested, failover="f", reason="r")
    world.tell(ev.FailoverRolledBack, failover="f", reason="r")
    assert world.next() is Action.DETACH
    # An agent that had noticed the fence, and not yet why, does not stay away.
    world.local.held, world.local.fenced = None, before
    assert world.next() is Action.ATTACH
