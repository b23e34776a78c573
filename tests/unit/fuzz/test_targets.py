"""The fuzz targets on what was found once, on blindly mutated inputs, and state files with every bit flipped once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fuzz import run, state_files
from fuzz.targets import TARGETS
from rephub.consumers.diskbox import position
from rephub.consumers.hub import snapshot
from rephub.core.errors import StorageError
from rephub.projections.catalogue import Catalogue

FOUND = sorted((Path(run.__file__).parent / "found").glob("*[0-9a-f]"))
MUTATIONS = 300


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_stays_fixed(path: Path) -> None:
    run.replay(path)


@pytest.mark.parametrize("name", TARGETS)
def test_only_errors_of_ours_come_out(name: str) -> None:
    target = TARGETS[name]
    for data in itertools.islice(run.mutations(target.seeds, 4711), len(target.seeds) + MUTATIONS):
        target.run(data)


def test_a_target_that_fails_is_named_with_the_input_that_replays_it(tmp_path, monkeypatch, capsys) -> None:
    """The judge is judged: a target with a bug in it."""

    def buggy(data: bytes) -> None:
        assert b"\xff" not in data

    monkeypatch.setitem(TARGETS, "buggy", TARGETS["bitmap"]._replace(run=buggy, seeds=[b"seed"]))
    monkeypatch.setattr(run, "OUT", tmp_path)
    with pytest.raises(AssertionError):
        run.blind("buggy", 60, 1)
    (kept,) = tmp_path.iterdir()
    assert f"Test unit written to {kept}" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        run.replay(kept)


def flipped(content: bytes):
    """The content with each bit flipped once, and cut at each byte."""
    for at in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            yield bytes(damaged)
        yield content[:at]


def test_no_flipped_bit_and_no_cut_moves_a_position(tmp_path: Path) -> None:
    """All there are. Without the checksum hundreds gave another offset, epoch or size, without a word."""
    good = state_files.POSITION.to_json()
    refused = 0
    for content in flipped(good):
        (tmp_path / position.FILE).write_bytes(content)
        try:
            assert position.load_position(tmp_path) == state_files.POSITION
        except StorageError:
            refused += 1
    assert refused > len(good) * 8


def test_no_flipped_bit_and_no_cut_changes_what_the_hub_knows(tmp_path: Path) -> None:
    snapshot.save(tmp_path, state_files.CATALOGUE)
    path = tmp_path / snapshot.FILE
    good, expected = path.read_bytes(), {state_files.CATALOGUE.to_json(), Catalogue().to_json()}
    for content in flipped(good):
        path.write_bytes(content)
        assert snapshot.load(tmp_path).to_json() in expected
    path.write_bytes(good)
    assert snapshot.load(tmp_path).to_json() == state_files.CATALOGUE.to_json()


def test_a_position_of_format_1_is_still_read(tmp_path: Path) -> None:
    """As the version before wrote it: without a checksum."""
    lines = state_files.POSITION.to_json().decode().replace('"format": 2', '"format": 1').splitlines()
    (tmp_path / position.FILE).write_text("\n".join(line for line in lines if "crc32c" not in line))
    assert position.load_position(tmp_path) == state_files.POSITION


DEEP = b"[" * 100_000
SHAPES = [
    b"",
    b"5",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"\xff\xfe",
    b"1e999",
    b"NaN",
    DEEP,
    b'{"a":' * 50_000,
    b"[1, null]",
]


@pytest.mark.parametrize("name", state_files.READERS)
def test_json_of_another_shape_is_an_error_of_ours_or_the_default(name: str, tmp_path: Path) -> None:
    """AttributeError, RecursionError, TypeError and OverflowError came out of several of them."""
    for content in SHAPES:
        state_files.READERS[name](tmp_path, content)


def test_a_lock_whose_pid_is_infinite_is_held_by_somebody_unknown(tmp_path: Path) -> None:
    state_files.READERS["lock"](tmp_path, b'{"pid": 1e999, "started_at": Infinity}')


def test_ports_that_no_socket_has_are_replaced(tmp_path: Path) -> None:
    for port in (b"99999", b"-1", b"true", b'"80"', b"1e3", b"[1]", b"10000000000000000000000"):
        state_files.READERS["ports"](tmp_path, b'{"hub": ' + port + b', "other": ' + port + b"}")
