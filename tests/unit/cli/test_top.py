"""`rephub top`: frames of any width, order of the rows, keys; and the verb without a hub or a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from rephub.cli.main import run
from rephub.cli.top import apply_keys
from rephub.cli.top_frame import SORTS, Look, Traces, frame, sorted_volumes, sparkline

NOW = 1_800_000_000_000_000
KEYS = {one.key: one for one in SORTS}


def entry(name: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "volume": name, "group": "shop", "state": "protected", "rpo_seconds": 0.0, "window_seconds": 3600.0,
        "dirty_bytes": 0, "lag_bytes": 0,
    }  # fmt: skip
    return fields | changes


def series(writes: list[float], at: int = NOW, **changes: Any) -> dict[str, list[Any]]:
    count = len(writes)
    columns = {
        "at": [at - (count - 1 - number) * 1_000_000 for number in range(count)],
        "writes_per_second": writes,
        "written_bytes_per_second": [value * 4096 for value in writes],
        "lag_events": [0] * count,
        "entropy": [None] * count,
    }
    return columns | changes


def alert(number: int, **changes: Any) -> dict[str, Any]:
    return {"severity": "warning", "text": f"alert {number}", "subject": "web"} | changes


def part(name: str) -> dict[str, Any]:
    return {"name": name, "cpu_share": 0.125, "rss_bytes": 64 << 20, "disk_free_bytes": 5 << 30}


def site(count: int, **changes: Any) -> dict[str, Any]:
    names = [f"vol{number:03d}" for number in range(count)]
    fields = {
        "at": NOW,
        "volumes": [entry(name) for name in names],
        "series": {name: series([1.0, 2.0, float(number)]) for number, name in enumerate(names)},
        "parts": [part("agent/agent1"), part("diskbox/diskbox1")],
        "alerts": [],
        "fots": [],
    }
    return fields | changes


def lines(
    document: dict[str, Any], width: int, height: int | None, look: Look | None = None, **options: Any
) -> list[str]:
    traces = Traces()
    traces.take(document["series"])
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    console.print(frame(document, traces, look or Look(), width, height, **options))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("height", [6, 12, 24, 60])
@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_a_frame_fits_any_terminal(width: int, height: int, count: int) -> None:
    document = site(count, alerts=[alert(number) for number in range(12)])
    document["parts"] = [part(f"diskbox/diskbox{number}") for number in range(30)]
    shown = lines(document, width, height)
    assert len(shown) <= height
    assert max(cell_len(line) for line in shown) <= width


def test_forty_columns_have_what_matters_most() -> None:
    document = site(1)
    document["volumes"] = [entry("web", state="gap", rpo_seconds=75.0)]
    title, row = lines(document, 40, 24)[1:3]
    assert title.split() == ["VOLUME", "STATE", "RPO"]
    assert row.split() == ["web", "gap", "75", "s"]


def test_two_hundred_volumes_scroll_and_what_is_hidden_is_counted() -> None:
    look = Look()
    shown = lines(site(200), 100, 24, look)
    rows = [line for line in shown if line.startswith("vol")]
    assert rows[0].startswith("vol000")
    assert f"… {200 - len(rows)} more volumes" in "\n".join(shown)
    look.first_row = 10_000
    rows = [line for line in lines(site(200), 100, 24, look) if line.startswith("vol")]
    assert rows[-1].startswith("vol199")
    assert look.first_row == 200 - len(rows)


def test_without_a_height_all_is_there() -> None:
    document = site(200, alerts=[alert(number) for number in range(12)])
    text = "\n".join(lines(document, 200, None))
    assert all(f"vol{number:03d}" in text for number in range(200))
    assert all(f"alert {number}" in text for number in range(12))
    assert "more" not in text


def test_values_of_a_second_and_their_trace() -> None:
    document = site(1)
    document["series"] = {"vol000": series([0, 4, 8], entropy=[7.5, None, 7.99])}
    row = next(line for line in lines(document, 200, None) if line.startswith("vol000"))
    assert " 8 " in row
    assert " 8.0 " in row
    assert row.rstrip().endswith("▁▅█")


def test_what_nobody_knows_is_a_question_mark_and_old_values_are_not_shown_as_new() -> None:
    document = site(1)
    document["volumes"] = [
        entry("web", rpo_seconds=None, dirty_bytes=None, lag_bytes=None, window_seconds=None)
    ]
    document["series"] = {"web": series([7.0], at=NOW - 60_000_000)}
    row = next(line for line in lines(document, 100, None) if line.startswith("web"))
    assert row.split()[2:9] == ["?"] * 7


def test_foreign_text_is_neither_markup_nor_a_control_sequence() -> None:
    document = site(1, alerts=[alert(1, text="[red]x[/red] \x1b[2J\nnext")])
    shown = lines(document, 100, None)
    assert shown[1] == "warning: [red]x[/red] [2J next"


def test_a_silent_hub_is_said_in_place_of_the_head() -> None:
    assert lines(site(1), 60, 24, problem="the hub has been silent for 3.0 s")[0].startswith(
        "the hub has been"
    )


def test_order() -> None:
    document = site(
        0, volumes=[entry("a", rpo_seconds=1.0), entry("b", rpo_seconds=None), entry("c", rpo_seconds=9.0)]
    )
    traces, look = Traces(), Look()

    def order(keys: str) -> str:
        assert apply_keys(look, keys) is False
        return "".join(row["volume"] for row, _ in sorted_volumes(document, traces, look))

    assert order("") == "abc"
    assert order("r") == "cab"
    assert order("R") == "acb", "what is not known stays last"
    assert order("n") == "cba"


def test_keys() -> None:
    look = Look()
    assert apply_keys(look, "\x1b[B\x1b[B\x1b[A") is False
    assert look.first_row == 1
    assert apply_keys(look, "w?\x00") is False
    assert (look.sort, look.first_row) == (KEYS["w"], 0)
    assert apply_keys(look, "xq") is True


def test_traces_take_overlapping_looks_once_and_forget_what_is_gone() -> None:
    traces = Traces()
    traces.take({"a": series([1, 2, 3]), "b": series([1])})
    traces.take({"a": series([2, 3, 4], at=NOW + 1_000_000)})
    assert traces.last("a", "writes_per_second", 10) == [1, 2, 3, 4]
    assert traces.last("b", "writes_per_second", 10) == []


def test_sparklines() -> None:
    assert sparkline([0, 0, None], 5) == "  ▁▁ "
    assert sparkline([1, 2, 4, 8], 3) == "▃▅█"
    assert sparkline([], 3) == "   "


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    document = {
        "bootstrap": "127.0.0.1:9",
        "redis": "",
        "web": "http://127.0.0.1:9",
        "state_dir": str(tmp_path),
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(document | {"pids": {}, "urls": {}, "config": ""}))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["top", "--once"], 6),
        (["top", "--sort", "luck"], 2),
        (["events", "--since", "soon"], 2),
        (["events", "--since", "1h", "--from-offset", "3"], 2),
        (["events", "--volume", "a/b"], 2),
        (["events", "--from-offset", "-1"], 2),
        (["plot", "a/b"], 2),
        (["plot", "web", "--out", "x.gif"], 2),
        (["plot", "web", "--since", "2999-01-01T00:00:00Z"], 2),
        (["plot", "web"], 6),
    ],
)
def test_exit_codes_without_services(
    dead: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json", "--state-dir", str(dead)]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"]
    assert error["hint"]


def test_no_terminal_is_said(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--state-dir", str(dead)]) == 2
    assert "--once" in capsys.readouterr().err
