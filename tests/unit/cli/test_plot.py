"""The figure of `rephub plot`: what samples become, and that anything can be drawn."""

from __future__ import annotations

import builtins
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from rephub.cli.plot_figure import AlertSpan, draw, measured
from rephub.cli.since import parse_since
from rephub.core.errors import UnavailableError, UsageError
from rephub.core.units import rfc3339
from rephub.schemas.stats import CaptureSample

FROM = 1_800_000_000_000_000
SECOND = 1_000_000


def sample(at: int, **changes: Any) -> CaptureSample:
    fields = {
        "at": at, "source": "agent/a", "interval_us": SECOND, "volume": "web", "group": "g", "epoch": 1, "attached": True,
        "writes": 10, "written_bytes": 40_960, "unacked_bytes": 0, "dirty_bytes": 0, "acked_offset": 5, "rpo_us": 0,
        "ack_delays": (), "sampled_blocks": 2, "entropy_sum": 8.0, "packed_sum": 1.0, "random_blocks": 0,
        "turned_blocks": 0, "rewritten_blocks": 0,
    }  # fmt: skip
    return CaptureSample(**(fields | changes))


def test_rates_are_means_the_recovery_point_is_the_worst_entropy_is_by_block() -> None:
    samples = [
        sample(FROM + 1, writes=10, rpo_us=SECOND),
        sample(FROM + SECOND, writes=30, rpo_us=5 * SECOND, sampled_blocks=6, entropy_sum=48.0),
        sample(FROM + 9 * SECOND, rpo_us=None, sampled_blocks=0, entropy_sum=0.0),
    ]
    lines = measured(samples, FROM, FROM + 10 * SECOND, bins_max=5)
    np.testing.assert_allclose(lines.writes_per_second, [20, np.nan, np.nan, np.nan, 10])
    np.testing.assert_allclose(lines.rpo_seconds, [5, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(lines.entropy, [7, np.nan, np.nan, np.nan, np.nan])
    assert list(lines.at) == [FROM + (2 * number + 1) * SECOND for number in range(5)]


def test_samples_outside_do_not_count() -> None:
    lines = measured([sample(FROM - 1), sample(FROM + 11 * SECOND)], FROM, FROM + 10 * SECOND, bins_max=5)
    assert np.isnan(lines.writes_per_second).all()


def timeline(**changes: Any) -> dict[str, Any]:
    gap = {
        "first_offset": 5,
        "last_offset": 9,
        "from_at": None,
        "to_at": rfc3339(FROM + 3 * SECOND),
        "kind": "gap",
        "reason": "r",
    }
    good = {
        "first_offset": 10,
        "last_offset": 99,
        "from_at": rfc3339(FROM + 3 * SECOND),
        "to_at": None,
        "kind": "restorable",
        "reason": "",
    }
    mark = {
        "checkpoint": "before-update",
        "offset": 20,
        "captured_at": rfc3339(FROM + 5 * SECOND),
        "kind": "crash",
        "periodic": False,
    }
    periodic = mark | {"checkpoint": "p1", "periodic": True}
    return {"volume": "web", "ranges": [gap, good], "checkpoints": [mark, periodic], "epochs": []} | changes


def test_the_picture_names_what_it_shows() -> None:
    alerts = [AlertSpan("rpo", "critical", FROM - SECOND, FROM + 2 * SECOND), AlertSpan("old", "info", 0, 1)]
    text = draw(timeline(), [sample(FROM + SECOND)], alerts, FROM, FROM + 10 * SECOND, "svg").decode()
    assert ET.fromstring(text).tag.endswith("svg")
    for word in ("before-update", "rpo", "restorable", "gap", "entropy"):
        assert f"<!-- {word}" in text, word
    for word in ("p1", "old", "no samples"):
        assert f"<!-- {word} " not in text, word


def test_nothing_at_all_is_drawn_and_said() -> None:
    nothing = timeline(ranges=[], checkpoints=[])
    assert "<!-- no samples -->" in draw(nothing, [], [], FROM, FROM + 10 * SECOND, "svg").decode()
    assert draw(nothing, [], [], FROM, FROM + 1, "png").startswith(b"\x89PNG")


def test_the_same_is_the_same_file() -> None:
    pictures = {draw(timeline(), [sample(FROM)], [], FROM, FROM + 10 * SECOND, "svg") for _ in range(2)}
    assert len(pictures) == 1


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnavailableError) as caught:
        draw(timeline(), [], [], FROM, FROM + SECOND, "png")
    assert caught.value.hint == "pip install 'rephub[plot]'"


def test_since() -> None:
    assert parse_since("90s", 100 * SECOND) == 10 * SECOND
    assert parse_since("1970-01-01T00:00:01Z") == SECOND
    for bad in ("", "noon", "2026-01-01T00:00:00", "100d"):
        with pytest.raises(UsageError) as caught:
            parse_since(bad, 100 * SECOND)
        assert caught.value.hint
