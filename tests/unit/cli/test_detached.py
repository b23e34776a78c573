"""Options of `up` on their way to the detached supervisor."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from rephub.cli import detached
from rephub.cli.plan import UpOptions

SAID: dict[str, Any] = {
    "state_dir": Path("/s"),
    "config": Path("/c.toml"),
    "bootstrap": "b:1",
    "redis": "unix:///r",
    "compose": True,
    "restart": False,
    "monitor": False,
}


@pytest.mark.parametrize("options", [UpOptions(**SAID), UpOptions(Path("/s"))], ids=["all", "none"])
def test_every_option_arrives(options: UpOptions) -> None:
    assert detached._from_json(detached._as_json(options)) == options


def test_every_option_is_looked_at_in_this_test() -> None:
    default = UpOptions(Path("/"))
    assert {field.name for field in fields(UpOptions)} == set(SAID)
    assert all(getattr(default, name) != value for name, value in SAID.items())
