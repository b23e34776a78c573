"""Named checkpoints in the catalogue: tags, deletion, expiry, and that their number stays bounded."""

from __future__ import annotations

from typing import Any

import pytest

from control_world import World, head
from rephub.core.errors import ConflictError, NotFoundError, UsageError
from rephub.projections import decide_checkpoint, fold_checkpoints
from rephub.projections.entities import Checkpoint
from rephub.projections.points import listed_in
from rephub.projections.timeline import Mark
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


@pytest.fixture
def world() -> World:
    found = World()
    found.protected("v1", group="g")
    found.protected("v2", group="g", node="n2")
    return found


def create(world: World, name: str = "c1", **changes: Any) -> cmd.CreateCheckpoint:
    fields = {"checkpoint": name, "group": "g", "quiesce": False}
    return world.command(cmd.CreateCheckpoint, **(fields | changes))


def delete(world: World, name: str = "c1") -> cmd.DeleteCheckpoint:
    return world.command(cmd.DeleteCheckpoint, checkpoint=name)


def expire(world: World, volume: str, name: str = "c1", offset: int = 100) -> bool:
    fields = head(ev.CheckpointExpired, f"{name}-expires", f"{volume}/{offset}", world.now, "diskbox/d1")
    return world.append(
        ev.CheckpointExpired(
            **fields, checkpoint=name, volume=volume, offset=offset, earliest_offset=offset + 1
        )
    )


def found(world: World, name: str = "c1") -> Checkpoint:
    return world.catalogue.checkpoints[name]


def test_tags_stay_with_it_in_order(world: World) -> None:
    world.done(create(world, tags={"release": "4.2", "by": "anna"}))
    assert list(found(world).tags.items()) == [("by", "anna"), ("release", "4.2")]
    world.done(create(world, "c2"))
    assert found(world, "c2").tags == {}


@pytest.mark.parametrize(
    "tags", [{"a b": "x"}, {"a": "two\nlines"}, {"a": "x" * 201}, {f"k{n}": "" for n in range(17)}]
)
def test_tags_that_are_not_fit(world: World, tags: dict[str, str]) -> None:
    assert isinstance(world.rejected(create(world, tags=tags)), UsageError)


def test_delete_forgets_the_name(world: World) -> None:
    world.done(create(world))
    world.done(delete(world))
    assert found(world).state == "deleted"
    assert world.already(delete(world)) == {"checkpoint": "c1"}
    point = {"point_kind": "checkpoint", "point_value": "c1"}
    start = world.command(cmd.StartFot, fot="f1", group="g", read_only=True, **point)
    assert isinstance(world.rejected(start), NotFoundError)
    world.done(create(world))
    assert found(world).state == "created", "the name may be used again"


def test_a_late_answer_is_not_that_of_the_next_one_of_its_name(world: World) -> None:
    def answer() -> ev.CheckpointCreated:
        fields = head(ev.CheckpointCreated, found(world).event_id, "c1", world.now, "agent/a1")
        made = {"kind": "crash", "offsets": {"v1": 1, "v2": 1}, "captured_at": 1}
        return ev.CheckpointCreated(**fields, checkpoint="c1", **made)

    world.send(create(world))
    late = answer()
    fields = head(ev.CheckpointFailed, found(world).event_id, "c1", world.now, "hub/h1")
    world.append(ev.CheckpointFailed(**fields, checkpoint="c1", error="{}"))
    world.send(create(world))
    assert not world.append(late)
    assert found(world).state == "requested"
    assert world.append(answer())
    assert found(world).state == "created"


def test_delete_of_what_is_not_there(world: World) -> None:
    assert isinstance(world.rejected(delete(world)), NotFoundError)
    world.send(create(world))
    assert isinstance(world.rejected(delete(world)), ConflictError), "it is being made"


def test_it_expires_with_the_last_volume_that_has_it(world: World) -> None:
    world.done(create(world))
    assert expire(world, "v1")
    assert (found(world).state, found(world).expired) == ("created", ["v1"])
    assert not expire(world, "v2", offset=7), "that was another of this name"
    assert expire(world, "v2")
    assert found(world).state == "expired"
    assert found(world).offsets == {"v1": 100, "v2": 100}, "to name the nearest point"
    world.done(create(world))
    assert (found(world).state, found(world).expired) == ("created", [])


def test_a_purged_volume_holds_no_checkpoint_back(world: World) -> None:
    world.done(create(world))
    expire(world, "v1")
    world.done(world.command(cmd.Unprotect, volume="v2", purge=True))
    assert found(world).state == "expired"


def test_what_ended_is_remembered_up_to_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_checkpoints, "ENDED_MAX", 2)
    for name in ("c1", "c2", "c3", "c4"):
        world.done(create(world, name))
    for name in ("c1", "c2", "c3"):
        world.done(delete(world, name))
    assert list(world.catalogue.checkpoints) == ["c2", "c3", "c4"]


def test_there_may_not_be_too_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide_checkpoint, "CHECKPOINTS_MAX", 1)
    world.done(create(world))
    assert isinstance(world.rejected(create(world, "c2")), ConflictError)
    world.done(delete(world))
    world.done(create(world, "c2"))


@pytest.mark.parametrize(
    ("state", "offset", "loosely", "strictly"),
    [
        ("created", 100, True, True),
        ("expired", 100, True, True),
        ("created", 7, False, False),
        ("failed", 100, False, False),
        ("deleted", 100, False, False),
        ("requested", 100, False, False),
        ("unknown", 100, True, False),
    ],
)
def test_the_catalogue_says_which_marker_is_a_checkpoint(
    world: World, state: str, offset: int, loosely: bool, strictly: bool
) -> None:
    world.done(create(world))
    found(world).state = state
    known = {} if state == "unknown" else world.catalogue.checkpoints
    mark = Mark(offset, "c1", 0, "crash", periodic=False, group="g")
    assert listed_in(known, strictly=False)("v1", mark) is loosely
    assert listed_in(known, strictly=True)("v1", mark) is strictly
    periodic = Mark(offset, "auto-1", 0, "crash", periodic=True, group="g")
    assert listed_in(known, strictly=True)("v1", periodic)
