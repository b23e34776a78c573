"""When the bitmaps of a pause can be relied on, from what QEMU says of the node."""

from __future__ import annotations

from typing import Any

import pytest

from rephub.agent.attach import PREFIX
from rephub.agent.bitmaps import fault, names_of, record_name

RECORD = record_name("disk0", 4)
OWN = names_of(RECORD)
WANTED = {"name": RECORD, "persistent": True, "image": "/d.qcow2", "epoch": 4, "offset": 9}


def nodes(**changes: Any) -> list[dict[str, Any]]:
    """The node, with each bitmap as it should be but for what is changed in the record."""
    record = {"name": OWN.record, "recording": True, "busy": False, "persistent": True} | changes
    guard = {"name": OWN.guard, "recording": False, "busy": False, "persistent": True}
    nameless = {"recording": True, "busy": True, "persistent": False}
    node = {
        "node-name": "disk0",
        "image": {"filename": "/d.qcow2"},
        "dirty-bitmaps": [nameless, guard, record],
    }
    return [{"node-name": "other"}, node]


def test_bitmaps_that_saw_everything() -> None:
    assert fault(nodes(), "disk0", WANTED) == ""
    assert fault(nodes(inconsistent=False), "disk0", WANTED) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "rephub-b-x-3"}, "missing: QEMU was not ended cleanly"),
        ({"inconsistent": True, "recording": False}, "inconsistent"),
        ({"recording": False}, "disabled by somebody"),
    ],
)
def test_bitmaps_that_did_not(changes: dict[str, Any], why: str) -> None:
    assert why in fault(nodes(**changes), "disk0", WANTED)


def test_another_node_or_image_or_qemu() -> None:
    assert "no node gone" in fault(nodes(), "gone", WANTED)
    assert "in /d.qcow2 now, and were in /e" in fault(nodes(), "disk0", WANTED | {"image": "/e"})
    volatile = WANTED | {"persistent": False}
    assert "started anew" in fault(nodes(name="x"), "disk0", volatile)
    enabled = nodes()
    enabled[1]["dirty-bitmaps"][1]["recording"] = True
    assert "enabled by somebody" in fault(enabled, "disk0", WANTED)
    del enabled[1]["dirty-bitmaps"][1]
    assert "missing" in fault(enabled, "disk0", WANTED)


def test_names_fit_qemu_and_are_found_again() -> None:
    own = names_of(record_name("a-node-with-a-long-name", 10**9))
    every = [own.record, own.guard, own.copy, own.blank.target, own.blank.export]
    assert len(set(every)) == 5
    assert all(name.startswith(PREFIX) and len(name) <= 31 for name in every)
