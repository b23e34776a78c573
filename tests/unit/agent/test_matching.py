"""Which node of a VM that came back is the volume, and when none is taken for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rephub.agent.matching import choose, match
from rephub.core.errors import ConflictError, NotFoundError
from rephub.projections.catalogue import Volume
from rephub.schemas.events import NodeInfo


def node(name: str, device: str = "", size_bytes: int = 4096) -> NodeInfo:
    return NodeInfo(node=name, device=device, size_bytes=size_bytes, driver="raw", read_only=False)


def volume(node: str, name: str = "v1", **fields: Any) -> Volume:
    terms = {"ack": "async", "overload": "throttle", "history_seconds": 1, "history_bytes": 1}
    made = Volume(
        name=name, group=name, agent="a", diskbox="d", qmp="/q", node=node, size_bytes=4096,
        recovery=None, seed=None, **terms,
    )  # fmt: skip
    return replace(made, **fields)


BY_NODE = volume("disk0", device="vd0")
BY_DEVICE = volume("libvirt-1-format", by_device="vd0", device="vd0")


def test_the_same_node_is_nothing_to_speak_of() -> None:
    for one, name in ((BY_NODE, "disk0"), (BY_DEVICE, "libvirt-1-format")):
        found = match(one, (node(name, "vd0"), node("other", "vd1")))
        assert (found.info.node, found.why, found.guessed) == (name, "", False)
    # Taken out of its device for now.
    assert match(BY_NODE, (node("disk0"),)).why == ""
    assert match(BY_DEVICE, (node("libvirt-1-format"),)).why == ""


def test_before_the_first_attach_a_device_may_stand_for_the_node() -> None:
    nodes = (node("disk0", "vd0"), node("vd1", "vd2"), node("disk1", "vd1"))
    assert match(volume("vd0"), nodes).info.node == "disk0"
    assert match(volume("vd1"), nodes).info.node == "vd1", "a node's name comes first"
    for unknown in ("nope", ""):
        with pytest.raises(NotFoundError, match=f"'{unknown}'"):
            match(volume(unknown), nodes)


def test_named_by_device_it_is_found_by_device() -> None:
    """Also where its old name is another disk's by now, and whatever its size."""
    nodes = (node("libvirt-1-format", "vd1"), node("libvirt-2-format", "vd0", 8192))
    found = match(BY_DEVICE, nodes)
    assert found.info.node == "libvirt-2-format"
    assert found.why == "device vd0 has node libvirt-2-format now, and had libvirt-1-format"
    with pytest.raises(NotFoundError, match=r"no device 'vd0'.*libvirt-1-format is in device vd1 now"):
        match(BY_DEVICE, nodes[:1])


def test_a_generated_name_is_none() -> None:
    made_up = volume("#block123", device="drive0")
    nodes = (node("#block123", "drive1"), node("#block456", "drive0"))
    assert match(made_up, nodes).info.node == "#block456"


def test_a_node_that_is_gone_is_found_in_its_device() -> None:
    found = match(BY_NODE, (node("new", "vd0"), node("other", "vd1")))
    assert (found.info.node, found.guessed) == ("new", True)
    assert found.why == "node disk0 is gone, and its device vd0 has node new now"


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((node("new", "vd0", 8192),), "no node 'disk0'.* 8192 bytes instead of 4096"),
        ((node("new", "vd1"),), "no node or device 'disk0'"),
        ((node("new"),), "no node or device 'disk0'"),
        ((node("new", "vd0"), node("newer", "vd0")), "no node or device 'disk0'"),
        ((), "no node or device 'disk0'"),
    ],
)
def test_what_is_not_taken_for_it(nodes: tuple[NodeInfo, ...], why: str) -> None:
    with pytest.raises(NotFoundError, match=why) as caught:
        match(BY_NODE, nodes)
    assert caught.value.hint.startswith("it has: ")
    # Never attached, so that no device is known.
    with pytest.raises(NotFoundError):
        match(replace(BY_NODE, device=""), (node("new", "vd0"),))


def test_a_named_node_in_another_device_is_taken_and_said() -> None:
    found = match(BY_NODE, (node("disk0", "vd1"), node("new", "vd0")))
    assert (found.info.node, found.why) == ("disk0", "node disk0 is in device vd1 now, and was in vd0")


def test_two_volumes_whose_names_were_swapped_find_their_own() -> None:
    first = volume("libvirt-1-format", "v1", by_device="vd0")
    second = volume("libvirt-2-format", "v2", by_device="vd1")
    nodes = (node("libvirt-1-format", "vd1"), node("libvirt-2-format", "vd0"))
    assert choose(first, [first, second], nodes).info.node == "libvirt-2-format"
    assert choose(second, [first, second], nodes).info.node == "libvirt-1-format"
    # While the other one is attached under the name, its filter is there: it must not be cleaned away.
    with pytest.raises(ConflictError, match="volume v2"):
        choose(first, [replace(second, attached=True)], nodes)


def test_a_guess_gives_way_to_who_was_named() -> None:
    named = volume("new", "v2")
    nodes = (node("new", "vd0"),)
    with pytest.raises(ConflictError, match=r"node new is that of volume v2 \(node disk0 is gone"):
        choose(BY_NODE, [named], nodes)
    assert choose(named, [BY_NODE], nodes).info.node == "new"
    assert choose(BY_NODE, [BY_NODE, volume("else", "v3", device="vd9")], nodes).info.node == "new"
