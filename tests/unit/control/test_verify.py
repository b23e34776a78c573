"""Verify in the control plane: rounds, results, what a difference means, and every way to fail; by fold and decisions alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_world import DISK_BYTES, SECOND, World, attached, compared, digested, lost, replay, state_of
from rephub.core.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    RephubError,
    UnavailableError,
    from_json,
)
from rephub.projections.entities import Comparison
from rephub.projections.extent_lists import EXTENTS_MAX, bounded, joined, total
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

MIB = 1 << 20


def begun(world: World, **fields: Any) -> Comparison:
    """A verify that the diskbox has accepted."""
    command = world.command(cmd.Verify, **({"volume": "v1", "repair": False} | fields))
    event = world.send(command)
    assert isinstance(event, ev.VerifyRequested), event
    run = world.catalogue.comparisons[event.verify]
    (accepted,) = [due for due in world.due() if isinstance(due, ev.ComparisonAccepted)]
    world.append(accepted)
    assert (run.state, run.round, run.extents) == ("digesting", 1, [])
    return run


def answer(world: World, run: Comparison, *differing: tuple[int, int]) -> None:
    """One round: the agent digests, the diskbox finds these extents."""
    assert world.append(digested(run, world.now))
    assert run.state == "comparing"
    assert world.append(compared(run, world.now, *differing))


def completed(world: World) -> ev.VerifyCompleted:
    """What the hub says at the end."""
    (event,) = world.settle()
    assert isinstance(event, ev.VerifyCompleted), event
    return event


def failed(world: World) -> RephubError:
    """The error with which the hub ends it."""
    (event,) = [event for event in world.settle() if isinstance(event, ev.VerifyFailed)]
    return from_json(event.error)


@pytest.fixture
def world() -> World:
    made = World()
    made.protected()
    return made


def test_equal_at_once(world: World) -> None:
    events = world.done(world.command(cmd.Verify, volume="v1", repair=False))
    assert [type(event).__name__ for event in events] == [
        "VerifyRequested", "ComparisonAccepted", "ExtentsDigested", "ExtentsCompared", "VerifyCompleted",
    ]  # fmt: skip
    end = events[-1]
    assert isinstance(end, ev.VerifyCompleted)
    assert (end.equal, end.compared_bytes, end.differing, end.repaired_bytes) == (True, DISK_BYTES, (), 0)
    assert world.catalogue.volumes["v1"].state == "protected"
    assert state_of(replay(world.log)) == state_of(world.catalogue)


def test_what_only_seemed_to_differ_is_equal(world: World) -> None:
    run = begun(world, repair=True)
    answer(world, run, (MIB, 65536))
    assert (run.state, run.round, run.extents, run.exact) == ("digesting", 2, [[MIB, 65536]], True)
    answer(world, run)
    end = completed(world)
    assert (end.equal, end.differing, end.compared_bytes, end.repaired_bytes) == (True, (), DISK_BYTES, 0)


def test_a_difference_fails_the_volume_until_it_is_repaired(world: World) -> None:
    run = begun(world)
    answer(world, run, (MIB, 65536), (4 * MIB, 4096))
    answer(world, run, (MIB, 65536))
    end = completed(world)
    assert not end.equal
    assert [(item.start, item.length) for item in end.differing] == [(MIB, 65536)]
    volume = world.catalogue.volumes["v1"]
    assert volume.state == "failed"
    assert "differs in 64.0 KiB" in volume.reason
    assert volume.gap_at

    run = begun(world, repair=True)
    answer(world, run, (MIB, 65536))
    answer(world, run, (MIB, 65536))
    assert (run.round, run.copies) == (3, True)
    answer(world, run)
    end = completed(world)
    assert (end.equal, end.repaired_bytes, end.differing_bytes) == (True, 65536, 65536)
    assert (volume.state, volume.reason, volume.differs, volume.gap_at) == ("protected", "", "", 0)
    assert state_of(replay(world.log)) == state_of(world.catalogue)


def test_a_repair_that_does_not_hold_says_so(world: World) -> None:
    run = begun(world, repair=True)
    for _ in range(3):
        answer(world, run, (0, 4096))
    end = completed(world)
    assert (end.equal, end.repaired_bytes) == (False, 4096)
    assert world.catalogue.volumes["v1"].state == "failed"


def test_neither_a_resume_nor_a_loss_hides_a_difference_and_a_full_sync_ends_it(world: World) -> None:
    run = begun(world)
    answer(world, run, (0, 4096))
    answer(world, run, (0, 4096))
    completed(world)
    volume = world.catalogue.volumes["v1"]
    fields = {"at": world.now, "source": "t", "hub_epoch": 0, "volume": "v1"}
    error = RephubError("EIO").to_json()
    assert world.append(ev.VolumeStopped(id="s", offset=9, error=error, **fields))
    assert world.append(ev.VolumeResumed(id="r", **fields))
    assert volume.state == "failed"
    assert "differs" in volume.reason
    assert world.append(lost(volume, world.now))
    assert "differs" in volume.reason
    world.settle()
    assert (volume.state, volume.differs) == ("protected", "")


def test_a_delta_sync_does_not_end_a_difference(world: World) -> None:
    run = begun(world)
    answer(world, run, (0, 4096))
    answer(world, run, (0, 4096))
    completed(world)
    volume = world.catalogue.volumes["v1"]
    assert world.append(lost(volume, world.now))
    while not world.catalogue.wants_sync(volume):
        world.append(world.due()[0])
    rest = {"at": world.now, "source": "t", "hub_epoch": 0, "volume": "v1", "epoch": volume.epoch}
    world.append(ev.VolumeSyncStarted(id="ss", mode="delta", total_bytes=1, **rest))
    world.append(ev.VolumeSyncCompleted(id="sc", offset=1, **rest))
    assert volume.state == "failed"
    assert "differs" in volume.reason


def test_one_at_a_time_and_the_same_is_joined(world: World) -> None:
    run = begun(world)
    assert world.already(world.command(cmd.Verify, volume="v1", repair=False)) == {"verify": run.name}
    assert isinstance(world.rejected(world.command(cmd.Verify, volume="v1", repair=True)), ConflictError)
    other = world.send(world.command(cmd.CancelVerify, verify=run.name))
    assert isinstance(other, ev.VerifyFailed)
    assert run.ended
    assert world.already(world.command(cmd.CancelVerify, verify=run.name)) == {"verify": run.name}
    assert isinstance(world.rejected(world.command(cmd.CancelVerify, verify="none")), NotFoundError)
    assert not world.append(digested(run, world.now)), "late answers count for nothing"
    begun(world, repair=True)


def test_what_cannot_be_verified_is_refused() -> None:
    world = World()
    assert isinstance(world.rejected(world.command(cmd.Verify, volume="v1", repair=False)), NotFoundError)
    world.done(world.protect_command())
    volume = world.catalogue.volumes["v1"]
    command = world.command(cmd.Verify, volume="v1", repair=False, rate_bytes=0)
    assert "rate" in world.rejected(command).message
    world.append(lost(volume, world.now))
    error = world.rejected(world.command(cmd.Verify, volume="v1", repair=False))
    assert isinstance(error, ConflictError)
    assert error.fields["state"] == "gap"


def test_a_diskbox_that_does_not_know_digests_never_accepts(world: World) -> None:
    world.send(world.command(cmd.Verify, volume="v1", repair=False))
    world.now += 21 * SECOND
    error = [due for due in world.due() if isinstance(due, ev.VerifyFailed)]
    assert isinstance(from_json(error[0].error), UnavailableError)
    assert "did not take" in from_json(error[0].error).message


def test_every_end_of_capture_ends_it(world: World) -> None:
    begun(world)
    world.append(lost(world.catalogue.volumes["v1"], world.now))
    assert isinstance(failed(world), UnavailableError)
    run = begun(world)
    world.send(world.command(cmd.Resync, volume="v1"))
    assert isinstance(failed(world), UnavailableError)
    assert run.ended
    begun(world)
    world.send(world.command(cmd.Unprotect, volume="v1", purge=False))
    assert isinstance(failed(world), ConflictError)


def test_the_deadline_names_who_is_late(world: World) -> None:
    begun(world)
    world.now += 61 * SECOND
    (event,) = [due for due in world.due() if isinstance(due, ev.VerifyFailed)]
    error = from_json(event.error)
    assert isinstance(error, DeadlineError)
    assert "agent a1" in error.message


def seeding(world: World) -> Comparison:
    """A volume whose first sync compares, accepted by the diskbox."""
    world.send(world.protect_command(seed="/copy.raw"))
    while not (run := world.catalogue.comparison_of("v1")) or run.state != "digesting":
        world.append(world.due()[0])
    assert run.sync
    assert world.catalogue.volumes["v1"].to_compare
    return run


def test_a_seed_is_compared_and_only_what_differs_is_copied() -> None:
    world = World()
    run = seeding(world)
    assert "is syncing" in world.rejected(world.command(cmd.Verify, volume="v1", repair=False)).message
    assert isinstance(world.rejected(world.command(cmd.CancelVerify, verify=run.name)), NotFoundError)
    answer(world, run, (MIB, 65536))
    assert (run.state, run.extents) == ("copying", [[MIB, 65536]])
    events = world.settle()
    assert [type(event).__name__ for event in events] == ["VolumeSyncCompleted"]
    volume = world.catalogue.volumes["v1"]
    assert (volume.state, volume.to_compare, run.state) == ("protected", False, "completed")
    # The next sync copies what was written since.
    world.append(lost(volume, world.now))
    modes = [event.mode for event in world.settle() if isinstance(event, ev.VolumeSyncStarted)]
    assert modes == ["delta"]


def broken(run: Comparison, number: int) -> ev.VerifyFailed:
    """The diskbox's word that a round cannot be answered."""
    return ev.VerifyFailed(
        id=f"broken-{number}", at=1, source="diskbox/d1", hub_epoch=0, cause_id=run.event_id, verify=run.name,
        volume=run.volume, error=UnavailableError("restarted").to_json(),
    )  # fmt: skip


def test_a_seed_that_cannot_be_compared_is_compared_anew_and_at_last_copied() -> None:
    world = World()
    run = seeding(world)
    for number in (1, 2):
        world.append(digested(run, world.now))
        assert world.append(broken(run, number))
        assert (run.state, run.round, run.extents) == ("requested", number + 1, [])
        (accepted,) = [due for due in world.due() if isinstance(due, ev.ComparisonAccepted)]
        assert world.append(replace(accepted, id=f"accept-{number}"))
    assert world.append(broken(run, 3))
    assert run.ended
    modes = [event.mode for event in world.settle() if isinstance(event, ev.VolumeSyncStarted)]
    assert modes == ["full"]
    assert world.catalogue.volumes["v1"].state == "protected"


def test_a_seed_is_compared_in_the_next_epoch_if_capture_is_lost() -> None:
    world = World()
    run = seeding(world)
    answer(world, run, (MIB, 65536))
    volume = world.catalogue.volumes["v1"]
    world.append(lost(volume, world.now))
    events = world.settle()
    assert run.state == "failed"
    assert [event.mode for event in events if isinstance(event, ev.VolumeSyncStarted)] == ["compare"]
    assert volume.state == "protected"
    assert state_of(replay(world.log)) == state_of(world.catalogue)


def stopped(world: World) -> ev.VolumeStopped:
    """The diskbox's word that the journal diverged."""
    return ev.VolumeStopped(
        id="stopped", at=world.now, source="diskbox/d1", hub_epoch=0, cause_id="journal", volume="v1", offset=7,
        error=UnavailableError("the journal diverged").to_json(),
    )  # fmt: skip


def test_nothing_is_compared_with_a_recovery_volume_that_stopped() -> None:
    world = World()
    run = seeding(world)
    volume = world.catalogue.volumes["v1"]
    assert world.append(stopped(world))
    assert (run.state, run.extents, volume.to_compare) == ("failed", [], False)
    assert "diverged" in run.reason
    world.send(world.command(cmd.Resync, volume="v1"))
    events = world.settle()
    assert [event.mode for event in events if isinstance(event, ev.VolumeSyncStarted)] == ["full"]
    assert volume.synced_epoch == volume.epoch == 2
    assert state_of(replay(world.log)) == state_of(world.catalogue)


def test_a_comparison_waits_for_a_diskbox_that_is_lost() -> None:
    world = World()
    run = seeding(world)
    volume = world.catalogue.volumes["v1"]
    assert world.append(
        ev.DiskboxLost(
            id="l",
            at=world.now,
            source="hub/h",
            hub_epoch=0,
            diskbox=volume.diskbox,
            reason="silent",
            off=False,
        )
    )
    assert volume.stopped
    assert (run.state, volume.to_compare) == ("digesting", True)
    world.append(lost(volume, world.now))
    world.append(attached(volume, 2, world.now, "again"))
    assert (volume.epoch, volume.to_compare) == (2, True)


def test_an_agent_that_does_not_know_of_the_stop_hears_that_nothing_is_compared() -> None:
    world = World()
    world.send(world.protect_command(seed="/copy.raw"))
    while not isinstance(compare := world.due()[0], ev.VolumeSyncStarted):
        world.append(compare)
    assert compare.mode == "compare"
    assert world.append(stopped(world))
    assert world.append(compare)
    assert world.catalogue.comparisons[world.catalogue.volumes["v1"].attachment_id].state == "failed"
    events = world.settle()
    assert [event.mode for event in events if isinstance(event, ev.VolumeSyncStarted)] == ["full"]


EXTENTS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=30)


@given(extents=EXTENTS, limit=st.integers(1, 10))
def test_bounded_lists_lose_no_byte(extents: list[tuple[int, int]], limit: int) -> None:
    wanted = {at for start, length in extents for at in range(start, start + length)}
    exact = joined(extents)
    assert {at for start, length in exact for at in range(start, start + length)} == wanted
    assert total(exact) == len(wanted)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(exact))
    few = bounded(extents, limit)
    assert len(few) <= limit or len(few) == len(exact) <= limit
    assert wanted <= {at for start, length in few for at in range(start, start + length)}
    assert few == exact if len(exact) <= limit else len(few) == limit


def test_the_largest_list_fits_in_an_event() -> None:
    from rephub.core.codec import encode_control  # noqa: PLC0415 - the only test that encodes

    run = Comparison("r", "v", 1, repair=False, rate_bytes=None, deadline_at=0, requested_at=0, event_id="e")
    many = [(1 << 50, 1 << 40)] * EXTENTS_MAX
    assert len(encode_control(compared(run, 0, *many))) < 200_000
