"""Points and targets on the command line: exactly one, well-formed, or a usage error with a hint."""

from __future__ import annotations

from typing import Any

import pytest

from rephub.cli.points import Point, absolute, check_target, parse_point
from rephub.core.errors import UsageError
from rephub.projections.points import resolved


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ((0, None, None, False), Point("offset", "0")),
        ((None, "1970-01-01T00:00:01Z", None, False), Point("time", "1000000")),
        ((None, None, "c1", False), Point("checkpoint", "c1")),
        ((None, None, None, True), Point("latest", "")),
    ],
)
def test_one_point(given: Any, want: Point) -> None:
    assert parse_point(*given) == want


@pytest.mark.parametrize(
    "given",
    [
        (None, None, None, False),
        (1, None, None, True),
        (0, None, "c1", False),
        (1, "1970-01-01T00:00:01Z", "c", True),
        (None, "noon", None, False),
        (None, None, "a b", False),
    ],
)
def test_none_several_or_bad(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_point(*given)
    assert caught.value.hint


@pytest.mark.parametrize("given", [(None, None), ("v", "g"), ("-v", None), (None, "g g")])
def test_bad_targets(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        check_target(*given)
    assert caught.value.hint


def test_targets_in_words() -> None:
    assert (check_target("v", None), check_target(None, "g")) == ("volume v", "group g")


def test_resolved() -> None:
    item = {"offset": 3, "captured_at": 1_000_000, "checkpoint": None}
    assert resolved(item) == {"offset": 3, "captured_at": "1970-01-01T00:00:01Z", "checkpoint": None}
    assert resolved(item | {"captured_at": None})["captured_at"] is None


def test_paths_are_made_absolute_but_links_stay(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    assert absolute("link") == str(tmp_path / "link")
