"""How `rephub` answers and fails, as its caller sees it: exit code, stdout, stderr."""

from __future__ import annotations

import json
import sys
import types

import click
import pytest

from rephub.cli import main
from rephub.cli.output import Cli, verb, verb_group
from rephub.core.errors import PointNotAvailableError


@verb()
@click.argument("how")
@click.option("--yes", is_flag=True)
def probe(cli: Cli, how: str, yes: bool) -> int | None:
    """A verb that does what it is told."""
    if how == "answer":
        cli.progress("working")
        cli.emit({"a": 1, "state_dir": str(cli.state_dir)}, "a is 1")
    elif how == "point":
        raise PointNotAvailableError("offset 5 is before\nthe floor", hint="use 7", nearest_offset=7)
    elif how == "bug":
        raise ZeroDivisionError("oops")
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "confirm":
        cli.confirm("promote v?", yes=yes)
        cli.emit({"done": True})
    elif how == "code":
        return 3
    return None


several = verb_group("several", "More.")


@verb(group=several)
async def one(cli: Cli) -> None:
    """A verb of the second level, as a coroutine."""
    cli.emit({"one": 1})


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("probe_module")
    module.probe, module.several = probe, several  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_module", module)
    monkeypatch.setitem(main.VERBS, "probe", ("probe_module:probe", "Test."))
    monkeypatch.setitem(main.VERBS, "several", ("probe_module:several", "Test."))
    monkeypatch.delenv("REPHUB_DEBUG", raising=False)


def test_data_on_stdout_the_rest_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["probe", "answer"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("a is 1\n", "working\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe", "answer", "--json", "--state-dir", "/x"],
        ["--json", "--state-dir", "/x", "probe", "answer"],
        ["--state-dir", "/y", "probe", "--json", "--state-dir", "/x", "answer"],
    ],
)
def test_json_and_state_dir_before_or_after_the_verb(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"a": 1, "state_dir": "/x"}


def test_an_error_is_two_lines_and_its_class_decides_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["probe", "point"]) == 9
    assert capsys.readouterr() == ("", "error: offset 5 is before the floor\nhint: use 7\n")


def test_an_error_as_json_is_one_document_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["probe", "point", "--json"]) == 9
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {
        "class": "PointNotAvailableError",
        "message": "offset 5 is before\nthe floor",
        "hint": "use 7",
        "nearest_offset": 7,
    }
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["probe"], ["probe", "answer", "--nope"], ["probe", "a", "b"], ["--nope"], ["several", "x"]],
)
def test_wrong_usage_is_2_in_both_forms(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "--help" in err
    assert main.run([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["class"] == "UsageError"
    assert err == ""


def test_a_bug_is_one_line_and_a_traceback_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.run(["probe", "bug"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "error: unexpected ZeroDivisionError: oops"
    assert "Traceback" not in err
    monkeypatch.setenv("REPHUB_DEBUG", "1")
    assert main.run(["probe", "bug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["probe", "interrupt"]) == 130
    capsys.readouterr()


def test_no_yes_and_no_terminal_is_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: PTH123, SIM115
    assert main.run(["probe", "confirm"]) == 2
    assert "--yes" in capsys.readouterr().err
    sys.stdin.close()
    assert main.run(["probe", "confirm", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"done": True}


def test_a_verb_may_return_its_code() -> None:
    assert main.run(["probe", "code"]) == 3


def test_verbs_of_the_second_level_may_be_coroutines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["several", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"one": 1}


def test_help_needs_no_verb_to_be_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main.VERBS, "broken", ("no.such.module:x", "Never imported."))
    assert main.run(["--help"]) == 0
    assert "Never imported." in capsys.readouterr().out


@pytest.mark.parametrize("name", list(main.VERBS))
def test_every_registered_verb_exists_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: rephub {name}" in text
    assert "--json" in text or "Commands:" in text
