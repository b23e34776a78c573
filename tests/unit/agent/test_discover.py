"""What QEMU's answers say about its volumes; what cannot be protected is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from rephub.agent.attach import check_node, names
from rephub.agent.discover import Answers, describe
from rephub.agent.vm import Vm
from rephub.core.errors import ConflictError


def node(name: str, *, driver: str = "qcow2", read_only: bool = False) -> dict[str, Any]:
    return {"node-name": name, "drv": driver, "ro": read_only, "image": {"virtual-size": 4096}}


OURS = names("disk0", 3)

ANSWERS = Answers(
    nodes=[
        node("disk0"),
        node("file0", driver="file"),
        node("#block123"),
        node("#block456", driver="file"),
        node("cd", read_only=True),
        node(OURS.filter, driver="mirror_top"),
        {"node-name": OURS.target, "drv": "nbd", "ro": False, "image": {"virtual-size": 4096}},
    ],
    devices=[
        {
            "device": "",
            "qdev": "/machine/peripheral/vd0/virtio-backend",
            "inserted": {"node-name": OURS.filter},
        },
        {
            "device": "drive1",
            "qdev": "/machine/peripheral-anon/device[1]",
            "inserted": {"node-name": "#block123"},
        },
        {"device": "empty", "qdev": "/x"},
    ],
    graph={
        "nodes": [{"id": 1, "name": OURS.filter}, {"id": 2, "name": "disk0"}, {"id": 3, "name": ""}],
        "edges": [
            {"parent": 1, "child": 2, "name": "backing"},
            {"parent": 3, "child": 1, "name": "root"},
        ],
    },
    iothreads={"/machine/peripheral/vd0/virtio-backend": "io0"},
)


def test_volumes_with_their_devices_behind_our_own_filter() -> None:
    found = {info.node: info for info in describe(ANSWERS)}
    assert set(found) == {"disk0", "file0", "#block123", "cd"}
    assert (found["disk0"].device, found["disk0"].iothread) == ("vd0", "io0")
    assert found["#block123"].device == "drive1"
    assert found["cd"].read_only


def vm(major: int) -> Vm:
    made = Vm("/q", lambda _vm: None)
    made.version = (major, 2, 0)
    return made


def test_what_cannot_be_protected_is_refused() -> None:
    found = {info.node: info for info in describe(ANSWERS)}
    check_node(vm(10), found["disk0"])
    check_node(vm(7), found["#block123"])
    with pytest.raises(ConflictError, match="read-only"):
        check_node(vm(10), found["cd"])
    with pytest.raises(ConflictError, match=r"iothread.*7\.2"):
        check_node(vm(7), found["disk0"])
    ANSWERS.iothreads["/machine/peripheral/vd0/virtio-backend"] = "mapping"
    with pytest.raises(ConflictError, match="iothread-vq-mapping"):
        check_node(vm(10), describe(ANSWERS)[2])


def test_names_fit_into_qemu() -> None:
    own = names("n" * 31, 10**9)
    assert all(len(name) <= 31 for name in (own.target, own.filter))
    assert len({own.target, own.filter, own.job, own.export}) == 4
