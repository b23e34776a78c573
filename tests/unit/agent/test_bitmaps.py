"""When a chain of bitmaps can be relied on, from what QEMU says of the node."""

from __future__ import annotations

from typing import Any

import pytest

from rephub.agent.attach import PREFIX
from rephub.agent.bitmaps import chain_name, chain_of, fault, parse_record, record_name, records_of

BASE = chain_name("disk0", "0123456789abcdef" * 2)
OWN = chain_of(BASE)
OLDER, NEWEST = record_name(BASE, 9, 40), record_name(BASE, 10, 77)
WANTED = {"name": BASE, "persistent": True, "image": "/d.qcow2", "epoch": 4, "offset": 9, "based": True}


def nodes(changed: str = "", **changes: Any) -> list[dict[str, Any]]:
    """The node, with each bitmap as it should be but for what is changed in one."""
    nameless = {"recording": True, "busy": True, "persistent": False}
    bitmaps = [
        nameless,
        {"name": OWN.guard, "recording": False, "busy": False, "persistent": True},
        {"name": NEWEST, "recording": True, "busy": False, "persistent": True},
        {"name": OLDER, "recording": False, "busy": False, "persistent": True},
    ]
    bitmaps = [item | changes if item.get("name") == changed else item for item in bitmaps]
    node = {"node-name": "disk0", "image": {"filename": "/d.qcow2"}, "dirty-bitmaps": bitmaps}
    return [{"node-name": "other"}, node]


def without(*names: str) -> list[dict[str, Any]]:
    found = nodes()
    found[1]["dirty-bitmaps"] = [item for item in found[1]["dirty-bitmaps"] if item.get("name") not in names]
    return found


def test_bitmaps_that_saw_everything() -> None:
    assert fault(nodes(), "disk0", WANTED) == ""
    assert fault(nodes(NEWEST, inconsistent=False), "disk0", WANTED) == ""
    assert fault(without(OLDER), "disk0", WANTED) == "", "its content was acked"
    # Between the two steps of a rotation both record.
    assert fault(nodes(OLDER, recording=True), "disk0", WANTED) == ""


@pytest.mark.parametrize(
    ("changed", "changes", "why"),
    [
        (NEWEST, {"name": "rephub-b-x-3"}, "disabled by somebody"),
        (NEWEST, {"inconsistent": True, "recording": False}, "inconsistent"),
        (OLDER, {"inconsistent": True}, "inconsistent"),
        (NEWEST, {"recording": False}, "disabled by somebody"),
        (OWN.guard, {"recording": True}, "enabled by somebody"),
        (OWN.guard, {"inconsistent": True}, "inconsistent"),
    ],
)
def test_bitmaps_that_did_not(changed: str, changes: dict[str, Any], why: str) -> None:
    assert why in fault(nodes(changed, **changes), "disk0", WANTED)


def test_another_node_or_image_or_qemu() -> None:
    assert "no node gone" in fault(nodes(), "gone", WANTED)
    assert "in /d.qcow2 now, and were in /e" in fault(nodes(), "disk0", WANTED | {"image": "/e"})
    assert "missing: QEMU was not ended cleanly" in fault(without(OLDER, NEWEST), "disk0", WANTED)
    volatile = WANTED | {"persistent": False}
    assert "started anew" in fault(without(OLDER, NEWEST, OWN.guard), "disk0", volatile)
    assert "missing" in fault(without(OWN.guard), "disk0", WANTED)


def test_records_are_ordered_by_number_and_say_what_was_acked() -> None:
    records = records_of(nodes()[1], BASE)
    assert [(record.number, record.offset) for record in records] == [(9, 40), (10, 77)]
    assert records_of(nodes()[0], BASE) == []


@pytest.mark.parametrize(
    "name", ["", "other", BASE + ".1", BASE + ".x.1", BASE + ".1.2.3", BASE + "0.1.2", "x" + BASE + ".1.2"]
)
def test_names_of_others_are_none_of_the_chain(name: str) -> None:
    assert parse_record(BASE, name) is None


def test_an_older_agents_pause_has_one_record_of_the_chains_own_name() -> None:
    record = parse_record(BASE, BASE)
    assert record is not None
    assert (record.number, record.offset) == (0, -1)


def test_names_fit_qemu_and_are_found_again() -> None:
    own = chain_of(chain_name("a-node-with-a-long-name", "f" * 32))
    every = [own.base, own.guard, own.copy, own.blank.target, own.blank.export]
    assert len(set(every)) == 5
    assert all(name.startswith(PREFIX) and len(name) <= 31 for name in every)
