"""Everything that was ever written can be read, and every schema is FULL_TRANSITIVE compatible.

The readers of old data are today's code; the writers of new data may be read by old code. So each schema of a
type must read, and be read by, every schema that the type ever had.
"""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from golden import make
from golden.compatibility import unreadable
from rephub.core.codec import REGISTRY, decode_control, decode_journal
from rephub.core.codec.registry import KINDS, fingerprint

FILES = sorted(make.ROOM.glob("*/*.json"))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def kept(kind: str, name: str) -> list[dict[str, Any]]:
    return [load(path)["schema"] for path in FILES if path.match(f"{kind}/{name}.*.json")]


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def as_of_today(expected: Any, found: Any) -> Any:
    """What was expected then, with the fields of today: new ones as they were found, those that are gone left out."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {
            name: as_of_today(expected[name], value) if name in expected else value
            for name, value in found.items()
        }
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [as_of_today(old, new) for old, new in zip(expected, found, strict=True)]
    return expected


@pytest.mark.parametrize("path", FILES, ids=named)
def test_golden_record_is_read(path: Path) -> None:
    for record in load(path)["records"]:
        value = bytes.fromhex(record["value"])
        decoded = (decode_journal if path.parent.name == "journal" else decode_control)(value)
        assert type(decoded).__name__ == path.name.partition(".")[0]
        found = make.plain(decoded)
        assert found == as_of_today(record["expected"], found)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_golden_file_is_whole(path: Path) -> None:
    document = load(path)
    assert path.name == f"{document['schema']['name']}.{fingerprint(document['schema']).hex()}.json"
    for record in document["records"]:
        assert bytes.fromhex(record["value"])[2:10] == fingerprint(document["schema"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_schema_has_golden_records(kind: str) -> None:
    missing = [
        name
        for name, schema in make.today(kind).items()
        if not (make.ROOM / kind / f"{name}.{fingerprint(schema).hex()}.json").exists()
    ]
    assert not missing, f"run `python tests/golden/make.py` for {missing}; docs/schemas.md says what else"


@pytest.mark.parametrize("kind", KINDS)
def test_no_type_disappears(kind: str) -> None:
    gone = {path.name.partition(".")[0] for path in FILES if path.parent.name == kind} - set(make.today(kind))
    assert not gone


@pytest.mark.parametrize("kind", KINDS)
def test_full_transitive_compatibility(kind: str) -> None:
    for name, schema in make.today(kind).items():
        for reader, writer in itertools.permutations([*kept(kind, name), schema], 2):
            assert unreadable(reader, writer, name) == []


@pytest.mark.parametrize("kind", KINDS)
def test_golden_records_are_read_with_every_schema(kind: str) -> None:
    """What an older or newer reader would do with them, by fastavro's own resolution."""
    for path in FILES:
        if path.parent.name != kind:
            continue
        document = load(path)
        writer = fastavro.parse_schema(document["schema"])
        for reader in kept(kind, document["schema"]["name"]):
            for record in document["records"]:
                datum = io.BytesIO(bytes.fromhex(record["value"])[10:])
                read = fastavro.schemaless_reader(datum, writer, fastavro.parse_schema(reader))
                assert set(read) == {field["name"] for field in reader["fields"]}


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_stable(kind: str) -> None:
    for entry in REGISTRY.entries(kind):
        path = make.path_of(entry)
        if entry.reader is None and path.exists():
            assert make.document(entry, load(path)["schema"]) == load(path)


FIELD = {"name": "a", "type": "long"}


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": list(fields)}


@pytest.mark.parametrize(
    ("reader", "writer", "readable"),
    [
        (record(FIELD), record(FIELD), True),
        (record(FIELD, {"name": "b", "type": "string", "default": ""}), record(FIELD), True),
        (record(FIELD, {"name": "b", "type": "string"}), record(FIELD), False),
        (record(FIELD), record(FIELD, {"name": "b", "type": "string"}), True),
        (record(FIELD), record({"name": "a", "type": "int"}), True),
        (record({"name": "a", "type": "int"}), record(FIELD), False),
        (record({"name": "a", "type": ["null", "long"]}), record(FIELD), True),
        (record(FIELD), record({"name": "a", "type": ["null", "long"]}), False),
        ({**record(FIELD), "name": "S"}, record(FIELD), False),
        (
            record({"name": "a", "type": {"type": "array", "items": "long"}}),
            record({"name": "a", "type": {"type": "array", "items": "string"}}),
            False,
        ),
        (
            record({"name": "a", "type": {"type": "fixed", "name": "F", "size": 4}}),
            record({"name": "a", "type": {"type": "fixed", "name": "F", "size": 8}}),
            False,
        ),
    ],
)
def test_the_check_itself(reader: dict[str, Any], writer: dict[str, Any], readable: bool) -> None:
    assert (unreadable(reader, writer) == []) is readable
