"""Settings: order of sources, names in errors, paths that fit."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rephub.core.config import (
    STATE_DIR_BYTES_MAX,
    SUN_PATH_BYTES,
    check_state_dir_length,
    load_settings,
    load_with_origins,
    resolve_state_dir,
    socket_path,
)
from rephub.core.errors import UsageError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("REPHUB_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('[kafka]\nbootstrap = "file:1"\n[agent]\nworkers = 2\nbuffer_bytes = "8MiB"\n')
    return path


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load_settings()
    assert settings.kafka.bootstrap == "127.0.0.1:9092"
    assert settings.agent.id == "agent1"
    assert settings.agent.buffer_bytes == 256 << 20
    assert settings.diskbox.capacity == 27
    assert (settings.agent.port, settings.agent.host) == (0, "127.0.0.1")


def test_the_page_lists_them_all() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()
    section = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    listed = {
        key
        for line in section.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    keys = {origin.key for origin in load_with_origins()[1]}
    for name in ("host", "port"):  # of every daemon
        assert f"….{name}" in listed
        listed.remove(f"….{name}")
        keys = {key for key in keys if key.partition(".")[2] != name}
    assert listed == keys


def test_argument_beats_environment_beats_file_beats_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(file).agent.workers == 2
    monkeypatch.setenv("REPHUB_AGENT__WORKERS", "3")
    settings, origins = load_with_origins(file, kafka={"bootstrap": "argument:1"})
    assert (settings.agent.workers, settings.kafka.bootstrap, settings.agent.buffer_bytes) == (
        3,
        "argument:1",
        8 << 20,
    )
    where = {one.key: one.origin for one in origins}
    assert where["agent.workers"] == "environment REPHUB_AGENT__WORKERS"
    assert where["kafka.bootstrap"] == "argument"
    assert where["agent.buffer_bytes"] == f"file {file}"
    assert where["hub.id"] == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agent]\nwrkers = 1\n", "agent.wrkers"),
        ("[agent]\nworkers = 0\n", "agent.workers"),
        ('[agent]\nid = "a b"\n', "agent.id"),
        ('[redis]\nurl = "http://x"\n', "redis.url"),
        ("[hub]\nport = 70000\n", "hub.port"),
        ("[typo]\nx = 1\n", "typo"),
        ("not toml", "not TOML"),
    ],
)
def test_a_wrong_file_names_the_key_and_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_an_error_not_a_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_settings(tmp_path / "none.toml")


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPHUB_DISKBOX__CAPACITY", "many")
    with pytest.raises(UsageError, match=r"diskbox.capacity \(environment REPHUB_DISKBOX__CAPACITY\)"):
        load_settings()


def test_state_directory_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert resolve_state_dir() == Path("/xdg/rephub")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", "/home/x")
    assert resolve_state_dir() == Path("/home/x/.local/state/rephub")
    monkeypatch.setenv("REPHUB_STATE_DIR", "/env")
    assert resolve_state_dir() == load_settings().state_dir == Path("/env")
    assert resolve_state_dir(Path("here")) == Path.cwd() / "here"


def test_every_allowed_socket_path_can_be_bound(tmp_path: Path) -> None:
    longest = Path("/" + "d" * (STATE_DIR_BYTES_MAX - 1))
    check_state_dir_length(longest)
    assert len(str(longest / "s" / ("n" * 32))) == SUN_PATH_BYTES
    with pytest.raises(UsageError, match="at most"):
        check_state_dir_length(Path(f"{longest}d"))
    with pytest.raises(UsageError, match="longer than 32"):
        socket_path(load_settings(state_dir=Path("/tmp/x")), "n" * 33)


def test_socket_directory_is_private(short_dir: Path) -> None:
    path = socket_path(load_settings(state_dir=short_dir), "a.sock")
    assert path == short_dir / "s" / "a.sock"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPHUB_PROVIDER__COMMAND", '["/hook", "{diskbox}"]')
    assert load_settings().provider.command == ("/hook", "{diskbox}")
    monkeypatch.setenv("REPHUB_PROVIDER__COMMAND", "/hook")
    with pytest.raises(UsageError, match="provider") as caught:
        load_settings()
    assert "JSON" in caught.value.hint


def test_a_provider_without_a_program_is_refused() -> None:
    with pytest.raises(UsageError, match=r"provider.command \(argument\).*no name"):
        load_settings(provider={"command": [""]})
