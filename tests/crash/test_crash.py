"""A minute of `crash.py`; `make crash` runs it for longer."""

from __future__ import annotations

import pytest

from crash.crash import crash

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(600)]

SECONDS = 60.0
SEED = 20261125


def test_nothing_is_lost_whatever_dies() -> None:
    line = crash(SECONDS, SEED)
    assert "points right" in line
    print(line)
