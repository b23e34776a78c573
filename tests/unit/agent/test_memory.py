"""How much a sync copies, by what is known from before the attachment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rephub.agent.memory import decide
from rephub.projections.catalogue import Volume

CHAIN = {"name": "b", "persistent": True, "image": "/d", "epoch": 3, "offset": 7, "based": True}
VOLUME = Volume(
    name="v", group="v", agent="a", diskbox="d", qmp="/q", node="n", size_bytes=1 << 20, ack="async",
    overload="throttle", history_seconds=1, history_bytes=1, recovery=None, seed=None, epoch=3,
    attached_before=True, whole=True, sync_mode="full", bitmap=CHAIN,
)  # fmt: skip
UNBASED = CHAIN | {"based": False}


@pytest.mark.parametrize(
    ("changes", "fault", "cursor", "mode", "why"),
    [
        ({}, "", 0, "delta", ""),
        ({}, "killed", 0, "compare", "killed"),
        ({"bitmap": {}}, "", 0, "compare", "nothing in QEMU tells"),
        ({"differs": "verify: 3 bytes"}, "", 0, "compare", "verify: 3 bytes"),
        ({"to_compare": True}, "", 0, "compare", ""),
        ({"to_compare": True, "whole": False, "bitmap": {}}, "", 0, "compare", ""),
        ({"stopped": "poison"}, "", 0, "full", "has stopped"),
        ({"resync_id": "r"}, "", 0, "full", ""),
        # The first sync.
        ({"whole": False, "bitmap": {}}, "", 0, "full", ""),
        ({"whole": False, "bitmap": UNBASED}, "", 5, "continued", ""),
        ({"whole": False, "bitmap": UNBASED}, "", 0, "full", ""),
        ({"whole": False, "bitmap": UNBASED}, "killed", 5, "full", "killed"),
        ({"whole": False, "bitmap": UNBASED, "sync_mode": "continued"}, "", 5, "continued", ""),
        # One that was interrupted later.
        ({"bitmap": UNBASED}, "", 5, "continued", ""),
        ({"bitmap": UNBASED, "sync_mode": "compare"}, "", 5, "compare", "not completed"),
        ({"bitmap": UNBASED, "sync_mode": "delta"}, "", 5, "compare", "not completed"),
        ({"bitmap": UNBASED}, "", 0, "compare", "not completed"),
    ],
)
def test_the_less_is_known_the_more_is_copied(
    changes: dict[str, Any], fault: str, cursor: int, mode: str, why: str
) -> None:
    found, reason = decide(replace(VOLUME, **changes), fault, cursor)
    assert found == mode
    assert (why in reason) if why else not reason
