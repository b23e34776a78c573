"""Each promise of the project has tests, and docs/promises.md says which."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMISES = 15


def named() -> dict[int, list[str]]:
    """Tests by number of the promise."""
    rows = re.findall(r"^\| (\d+) [^|]+\|([^|]+)\|$", (ROOT / "docs/promises.md").read_text(), re.MULTILINE)
    return {int(number): re.findall(r"`([^`]+)`", tests) for number, tests in rows}


def test_each_promise_has_tests_that_exist() -> None:
    found = named()
    assert sorted(found) == list(range(1, PROMISES + 1))
    for number, tests in found.items():
        assert tests, number
        for test in tests:
            path, _, name = test.partition("::")
            source = (ROOT / path).read_text()
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), test
