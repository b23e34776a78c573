"""The catalogue is a pure fold: repeats, stale facts, fenced hubs and restarts leave it as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_world import DISK_BYTES, World, attached, fresh, head, lost, node, replay, state_of
from failover_actors import agent_failovers
from rephub.core.errors import ConflictError, IntegrityError
from rephub.projections import catalogue as catalogue_module
from rephub.projections import fold, states
from rephub.projections.catalogue import Catalogue
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def busy_world() -> World:
    """A log with every kind of event in it."""
    world = World()
    world.protected("v1", group="g")
    world.protected("v2", group="g", node="n2")
    world.append(lost(world.catalogue.volumes["v1"], world.now))
    world.settle()
    world.done(world.command(cmd.Resync, volume="v2"))
    stopped = head(ev.VolumeStopped, "x", "v2", world.now, "diskbox/d1")
    world.append(
        ev.VolumeStopped(**stopped, volume="v2", offset=7, error=IntegrityError("bad crc").to_json())
    )
    world.append(ev.VolumeResumed(**head(ev.VolumeResumed, "x", "v2", world.now, "diskbox/d1"), volume="v2"))
    world.done(world.command(cmd.SetHistory, group="g", history_bytes=1 << 30))
    short = head(ev.HistoryShortened, "x", "v1@9", world.now, "diskbox/d1")
    left = {"volume": "v1", "earliest_offset": 9, "window_seconds": 5.0}
    world.append(ev.HistoryShortened(**short, **left, asked_seconds=86400, limit_bytes=1 << 30))
    whole = head(ev.HistoryRestored, "x", "v1@19", world.now, "diskbox/d1")
    world.append(ev.HistoryRestored(**whole, volume="v1", window_seconds=86400.0))
    world.done(world.command(cmd.SetSyncPace, volume="v1", paused=True, rate_bytes_per_second=1 << 20))
    world.done(world.command(cmd.CreateCheckpoint, checkpoint="c1", group="g", quiesce=False))
    world.done(world.command(cmd.Verify, volume="v1", repair=True))
    cancelled = world.send(world.command(cmd.Verify, volume="v1", repair=False))
    world.done(world.command(cmd.CancelVerify, verify=cancelled.verify))
    world.done(world.command(cmd.CreateCheckpoint, checkpoint="c2", group="g", quiesce=False))
    world.done(world.command(cmd.DeleteCheckpoint, checkpoint="c2"))
    passed = {"checkpoint": "c1", "volume": "v1", "offset": 100, "earliest_offset": 101}
    expired = head(ev.CheckpointExpired, "x", "c1/v1", world.now, "diskbox/d1")
    world.append(ev.CheckpointExpired(**expired, **passed))
    world.done(world.command(cmd.Pause, volume="v2"))
    world.vms["a1"]["/vm1.sock"][1] = node("n2", size_bytes=2 * DISK_BYTES)
    world.done(world.command(cmd.Resume, volume="v2"))
    point = {"point_kind": "latest", "point_value": ""}
    world.done(world.command(cmd.StartFot, fot="f1", volume="v1", read_only=False, **point))
    world.done(world.command(cmd.SetHydration, fot="f1", rate_bytes_per_second=1 << 20))
    full = head(ev.FotScratchFull, "x", "f1", world.now, "diskbox/d1")
    world.append(ev.FotScratchFull(**full, fot="f1", volume="v1", scratch_bytes=1 << 20))
    world.done(world.command(cmd.StopFot, fot="f1"))
    world.done(world.command(cmd.StartFot, fot="f2", volume="v1", read_only=False, qmp="/vm1.sock", **point))
    world.done(world.command(cmd.StopFot, fot="f2"))
    world.done(world.command(cmd.StartFot, fot="f3", volume="v1", read_only=False, qmp="/nowhere", **point))
    world.new_hub()
    world.done(world.command(cmd.Promote, volume="v1", dry_run=True, **point))
    world.send(world.command(cmd.Promote, volume="v1", dry_run=False, **point))
    world.send(world.command(cmd.CancelPromote, volume="v1"))
    world.append(next(event for event in world.due() if isinstance(event, ev.PromoteFailed)))
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, to="/copy", **point))
    rest = {"dry_run": False, "planned": False, **point}
    world.done(world.command(cmd.Failover, volume="v1", qmp="/vm1.sock", **rest))
    world.done(world.command(cmd.Rollback, volume="v1"))
    world.done(world.command(cmd.Failover, volume="v1", qmp="/nowhere", **rest))
    world.done(world.command(cmd.Rollback, volume="v1"))
    move = world.command(cmd.Failover, volume="v1", **rest | {"planned": True})
    world.send(move)
    world.append(agent_failovers(world.catalogue, "a1", world.vms["a1"], world.now)[0])
    world.done(world.command(cmd.Rollback, volume="v1"))
    world.done(world.command(cmd.Failover, volume="v1", **rest))
    world.done(world.command(cmd.Commit, volume="v1", close=True))
    world.protected("v1")
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, **point))
    world.rejected(world.command(cmd.Resync, volume="nope"))
    world.already(world.protect_command("v2", group="g", node="n2"))
    world.rejected(world.protect_command("v3", qmp="relative"))
    world.done(world.protect_command("v3", qmp="/nowhere"))
    world.done(world.protect_command("v4", node="ro"))
    world.done(world.command(cmd.Unprotect, volume="v2", purge=True))
    world.protected("v6", node="n2", seed="/copy.raw")
    world.done(world.command(cmd.Unprotect, volume="v6", purge=True))
    world.protected("v1")
    box = world.catalogue.diskboxes["d1"]
    shrunk = {"diskbox": "d1", "host": "h", "pid": 2, "url": box.url, "capacity": 1}
    world.append(
        ev.DiskboxAnnounced(**head(ev.DiskboxAnnounced, "again", "d1", world.now, "diskbox/d1"), **shrunk)
    )
    world.done(world.protect_command("v5", node="n2"))
    world.provides = 27
    world.done(world.protect_command("v5", node="n2"))
    world.dies("diskbox1")
    world.settle()
    world.announces("diskbox1", "second life")
    world.send(world.command(cmd.MoveVolumes, volume="v5", group=None, diskbox=None))
    world.done(world.command(cmd.CancelMove, volume="v5", group=None))
    world.done(world.command(cmd.DrainDiskbox, diskbox="diskbox2", drain=True))
    return world


BUSY = busy_world()


def test_busy_world_has_nearly_every_event() -> None:
    """The other tests are worth as much as the log they use."""
    missing = {kind.__name__ for kind in ev.RECORDS} - {type(event).__name__ for event in BUSY.log}
    assert missing == {"CheckpointFailed", "FailoverFailed", "FotFailed", "PauseFailed"}
    assert BUSY.catalogue.ignored == []
    assert set(fold.FOLDS) == set(ev.RECORDS)


@given(data=st.data())
@settings(max_examples=60)
def test_duplicates_anywhere_change_nothing(data: st.DataObject) -> None:
    """At-least-once: any event may come again at any later place, any number of times."""
    log = list(BUSY.log)
    for _ in range(data.draw(st.integers(1, 30))):
        source = data.draw(st.integers(0, len(log) - 1))
        log.insert(data.draw(st.integers(source + 1, len(log))), log[source])
    assert state_of(replay(log)) == BUSY.state()


@given(data=st.data())
@settings(max_examples=60)
def test_offsets_seen_before_change_nothing(data: st.DataObject) -> None:
    """A consumer that starts again further back brings old offsets: not one bit changes, known ids or not."""
    with mock.patch.object(catalogue_module, "SEEN_MAX", 3):
        catalogue = Catalogue()
        offset = 0
        while offset < len(BUSY.log):
            catalogue.apply(offset, BUSY.log[offset])
            offset += 1
            if data.draw(st.booleans()):
                for again in range(data.draw(st.integers(0, offset)), offset):
                    assert catalogue.apply(again, BUSY.log[again]) is False
                    assert catalogue.next_offset == offset
        assert catalogue.to_json() == replay(BUSY.log).to_json()


@given(at=st.lists(st.integers(0, len(BUSY.log)), max_size=5))
def test_snapshots_at_any_places_give_the_same_bytes(at: list[int]) -> None:
    """Replay from 0 and replay through snapshots: the same catalogue, byte for byte."""
    catalogue = Catalogue()
    for offset, event in enumerate(BUSY.log):
        if offset in at:
            catalogue = Catalogue.from_dict(json.loads(catalogue.to_json()))
        catalogue.apply(offset, event)
    assert catalogue.to_json() == BUSY.catalogue.to_json()


@given(data=st.data())
@settings(max_examples=60)
def test_facts_of_older_epochs_change_nothing(data: st.DataObject) -> None:
    """Late events of an older attachment, told anew under other ids, do not take a volume back."""
    log = [
        event
        for event in BUSY.log
        if isinstance(event, (ev.FilterAttached, ev.CaptureLost, ev.VolumeSyncCompleted, ev.SyncRequested))
    ]
    catalogue = replay(BUSY.log)
    before = state_of(catalogue)
    epochs = {name: volume.epoch for name, volume in catalogue.volumes.items()}
    for number, event in enumerate(data.draw(st.lists(st.sampled_from(log), min_size=1))):
        if event.epoch < epochs[event.volume]:
            assert catalogue.apply(catalogue.next_offset, fresh(event, str(number))) is False
    assert state_of(catalogue) == before


@given(offsets=st.lists(st.integers(0, 5), max_size=8))
def test_order_of_unrelated_volumes_does_not_matter(offsets: list[int]) -> None:
    """Events about different volumes may be interleaved in any way."""
    world = World()
    world.vms["a1"]["/vm1.sock"] = [node("n1"), node("n2")]
    start = len(world.log)
    world.protected("v1")
    first, middle = world.log[start:], len(world.log)
    world.protected("v2", node="n2")
    second = world.log[middle:]
    mixed = list(world.log[:start])
    queue = list(second)
    for number, event in enumerate(first):
        mixed.append(event)
        count = offsets[number] if number < len(offsets) else 0
        mixed += queue[:count]
        del queue[:count]
    assert state_of(replay([*mixed, *queue])) == world.state()


def test_a_fenced_hub_counts_for_nothing() -> None:
    """An older hub's event changes nothing, and does not take the id from the same event of the hub in charge."""
    world = World()
    world.send(world.protect_command())
    (probe,) = world.due()
    world.new_hub()
    assert world.append(probe) is False
    assert world.catalogue.ignored[-1]["reason"] == "hub epoch 1 is over, the current one is 2"
    assert not world.catalogue.agents["a1"].probes
    (again,) = world.due()
    assert again.id == probe.id
    assert world.append(again) is True


def test_of_two_hubs_with_one_epoch_the_first_wins() -> None:
    world = World()
    fields = head(ev.HubStarted, "rival", "h2", world.now, "hub/h2") | {"hub_epoch": 1}
    assert world.append(ev.HubStarted(**fields, hub="h2")) is False
    assert world.catalogue.hub == "h1"


def test_every_state_is_reached_by_the_table_or_reserved() -> None:
    """paused and failed_over have a place in the table before something leads there."""
    for row in states.TABLE.values():
        assert set(row) | set(row.values()) <= set(states.STATES)
    reached = {after for row in states.TABLE.values() for after in row.values()}
    assert set(states.STATES) - reached <= {"failed_over"}


@pytest.mark.parametrize(
    ("state", "fact"), [("promoted", "attached"), ("promoted", "lost"), ("gap", "resumed_synced")]
)
def test_a_forbidden_fact_names_both_states(state: str, fact: str) -> None:
    with pytest.raises(ConflictError) as caught:
        states.next_state(state, fact)
    assert state in caught.value.message
    assert any(target in caught.value.message for target in states.TABLE[fact].values())


def test_an_impossible_event_is_noted_and_changes_nothing() -> None:
    world = World()
    world.protected("v1")
    before = world.state()
    volume = replace_volume_event(world)
    assert world.append(volume) is False
    assert world.state() == before
    assert world.catalogue.ignored_events == 1
    assert world.catalogue.ignored[-1]["event"] == "FilterAttached"


def replace_volume_event(world: World) -> ev.FilterAttached:
    """An attachment by an agent that does not own the volume."""
    volume = world.catalogue.volumes["v1"]
    return replace(attached(volume, volume.epoch + 1, world.now, "x"), agent="other")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "SEEN_MAX", 10)
    catalogue = replay(BUSY.log)
    assert len(catalogue._seen) == 10
    assert state_of(catalogue) == BUSY.state()


def test_gap_keeps_its_beginning_until_it_closes() -> None:
    world = World()
    volume = world.protected("v1")
    assert volume.gap_at == 0
    opened = world.now
    world.append(lost(volume, opened))
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.gap_at) == ("gap", opened)
    (again,) = world.due()
    world.append(again)
    assert (volume.state, volume.gap_at) == ("resyncing", opened)
    world.settle()
    assert (volume.state, volume.gap_at) == ("protected", 0)


def test_a_volume_that_stopped_is_whole_only_after_it_resumed() -> None:
    """A new copy alone does not make a stopped volume protected: its projector has to go on."""
    world = World()
    volume = world.protected("v1")
    fields = head(ev.VolumeStopped, "poison", "v1", world.now, "diskbox/d1")
    world.append(ev.VolumeStopped(**fields, volume="v1", offset=7, error=IntegrityError("bad crc").to_json()))
    assert (volume.state, volume.reason) == ("failed", "stopped at offset 7: bad crc")
    world.done(world.command(cmd.Resync, volume="v1"))
    assert (volume.state, volume.epoch) == ("failed", 2)
    world.append(
        ev.VolumeResumed(**head(ev.VolumeResumed, "poison", "v1", world.now, "diskbox/d1"), volume="v1")
    )
    assert (volume.state, volume.reason) == ("protected", "")


def test_a_vm_announced_unasked_answers_nobody() -> None:
    """It may have been on its way before the node came that the hub asks for; the protect waits for its own answer."""
    world = World()
    world.vms["a1"]["/vm1.sock"].append(node("hot"))
    world.send(world.protect_command(node="hot"))
    while not world.catalogue.agents["a1"].probes:
        world.append(world.due()[0])
    early = head(ev.VmAnnounced, "by itself", "/vm1.sock", world.now, "agent/a1")
    old = {"agent": "a1", "qmp": "/vm1.sock", "vm": "vm1", "version": "7.2.0", "nodes": (node("n1"),)}
    assert world.append(ev.VmAnnounced(**early, **old, pid=7))
    assert world.catalogue.agents["a1"].vms["/vm1.sock"]["pid"] == 7
    assert world.catalogue.agents["a1"].state == "probing"
    world.settle()
    assert world.catalogue.volumes["v1"].node == "hot"
    nodes = {item["node"] for item in world.catalogue.agents["a1"].vms["/vm1.sock"]["nodes"]}
    assert nodes == {"n1", "n2", "ro", "hot"}
    assert world.catalogue.ignored_events == 0


def test_the_device_by_which_a_volume_was_named_stays_its_name() -> None:
    world = World()
    assert world.protected("v1", node="dev-n1").by_device == "dev-n1"
    assert world.protected("v2", node="n2").by_device == ""
    volume = world.catalogue.volumes["v1"]
    assert (volume.node, volume.device) == ("n1", "dev-n1")
    world.append(lost(volume, world.now))
    world.append(replace(attached(volume, volume.epoch + 1, world.now, "x"), node="n7", device="dev-n1"))
    assert (world.catalogue.volumes["v1"].node, world.catalogue.volumes["v1"].device) == ("n7", "dev-n1")
    # Not announced under its new name yet: its device is its own all the same.
    again = world.send(world.protect_command(volume="v1", node="dev-n1"))
    assert isinstance(again, ev.CommandFulfilled)
    assert isinstance(world.rejected(world.protect_command(volume="v3", node="dev-n1")), ConflictError)


def test_a_node_out_of_its_device_keeps_it() -> None:
    """And an older agent says neither."""
    world = World()
    volume = world.protected("v1")
    for name, device in (("n1", "vd0"), ("n1", None), (None, None)):
        world.append(lost(volume, world.now))
        again = attached(volume, volume.epoch + 1, world.now, "x")
        assert world.append(replace(again, node=name, device=device))
        assert (volume.node, volume.device) == ("n1", "vd0")
