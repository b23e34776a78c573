"""The history of volumes, changed while they are protected."""

from __future__ import annotations

from typing import Any

import pytest

from control_world import World
from rephub.core.errors import ConflictError, NotFoundError, UsageError
from rephub.core.units import parse_history_change
from rephub.schemas import commands as cmd


@pytest.fixture
def world() -> World:
    found = World()
    found.protected("v1", group="g")
    found.protected("v2", group="g", node="n2")
    return found


def kept(world: World) -> list[tuple[int, int]]:
    volumes = world.catalogue.volumes
    return [(volumes[name].history_seconds, volumes[name].history_bytes) for name in ("v1", "v2")]


def set_history(world: World, **fields: Any) -> cmd.SetHistory:
    return world.command(cmd.SetHistory, **fields)


def test_what_is_left_out_stays(world: World) -> None:
    world.done(set_history(world, volume="v1", history_seconds=3600))
    assert kept(world) == [(3600, 20 << 30), (86400, 20 << 30)]
    world.done(set_history(world, group="g", history_bytes=1 << 30))
    assert kept(world) == [(3600, 1 << 30), (86400, 1 << 30)]
    answer = world.already(set_history(world, group="g", history_bytes=1 << 30))
    assert [item["history_seconds"] for item in answer["volumes"]] == [3600, 86400]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"volume": "v1"}, UsageError),
        ({"volume": "v1", "history_seconds": 0}, UsageError),
        ({"volume": "v1", "history_bytes": -1}, UsageError),
        ({"history_bytes": 1}, UsageError),
        ({"volume": "nobody", "history_bytes": 1}, NotFoundError),
    ],
)
def test_what_cannot_be_is_refused(world: World, fields: dict[str, Any], kind: type) -> None:
    assert isinstance(world.rejected(set_history(world, **fields)), kind)


def test_not_of_a_promoted_volume(world: World) -> None:
    point = {"point_kind": "latest", "point_value": ""}
    world.done(world.command(cmd.Promote, volume="v1", dry_run=False, **point))
    assert isinstance(world.rejected(set_history(world, volume="v1", history_bytes=1)), ConflictError)


def test_the_text_of_a_change() -> None:
    assert parse_history_change("48h") == (172_800, None)
    assert parse_history_change("40GiB") == (None, 40 << 30)
    assert parse_history_change("1h,1GiB") == (3600, 1 << 30)
    with pytest.raises(UsageError):
        parse_history_change("0s")
