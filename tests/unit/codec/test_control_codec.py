"""Commands and events as bytes, the registry of schemas and its history."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import fastavro
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from golden import make
from rephub.core.codec import (
    REGISTRY,
    Registry,
    decode_control,
    decode_journal,
    encode_control,
    encode_journal,
    peek,
)
from rephub.core.codec.registry import KINDS, fingerprint
from rephub.core.control.ids import command_id, event_id
from rephub.core.errors import IntegrityError
from rephub.schemas import events, journal

VALUES = {
    "long": st.integers(-(2**63), 2**63 - 1),
    "int": st.integers(-(2**31), 2**31 - 1),
    "string": st.text(max_size=10),
    "boolean": st.booleans(),
    "bytes": st.binary(max_size=10),
    "double": st.floats(allow_nan=False, allow_infinity=False),
}


def of_type(kind: str, avro: Any) -> st.SearchStrategy[Any]:
    if isinstance(avro, str):
        return VALUES[avro]
    if isinstance(avro, list):
        return st.none() | of_type(kind, avro[1])
    if avro["type"] == "array":
        return st.lists(of_type(kind, avro["items"]), max_size=3).map(tuple)
    if avro["type"] == "map":
        return st.dictionaries(st.text(max_size=5), of_type(kind, avro["values"]), max_size=3)
    return records_of(kind, avro)


def records_of(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    fields = {field["name"]: of_type(kind, field["type"]) for field in schema["fields"]}
    return st.builds(getattr(KINDS[kind], schema["name"]), **fields)


RECORDS = st.one_of(
    [records_of(kind, schema) for kind in ("commands", "events") for schema in make.today(kind).values()]
)


@given(RECORDS)
def test_round_trip(record: Any) -> None:
    assert decode_control(encode_control(record)) == record


@given(RECORDS, st.data())
def test_cut_or_extended_values_are_refused(record: Any, data: st.DataObject) -> None:
    value = encode_control(record)
    for broken in (value[: data.draw(st.integers(0, len(value) - 1))], value + b"x"):
        with pytest.raises(IntegrityError):
            decode_control(broken)


@given(st.sampled_from(REGISTRY.entries("events")), st.binary(max_size=120))
def test_garbage_is_our_error_or_a_record(entry: Any, body: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        assert isinstance(decode_control(entry.prefix + body), entry.record)


def test_a_journal_event_is_no_control_record() -> None:
    event = journal.Resized(crc32c=b"", epoch=1, attachment_id=bytes(16), seq=1, captured_at=1, size_bytes=1)
    with pytest.raises(IntegrityError) as caught:
        decode_control(encode_journal(event))
    assert caught.value.fields["reason"] == "kind"


def test_an_unknown_schema_names_its_fingerprint() -> None:
    with pytest.raises(IntegrityError) as caught:
        decode_control(b"\xc3\x01" + bytes(range(8)) + b"x")
    assert caught.value.fields == {"reason": "schema", "fingerprint": "0001020304050607"}


def test_fingerprint_is_the_specs() -> None:
    """Avro 1.12: the 64-bit Rabin fingerprint of `"int"` is 7275d51a3f395c8f; little-endian on the wire."""
    assert fingerprint("int") == bytes.fromhex("7275d51a3f395c8f")[::-1]


def test_no_two_schemas_share_a_fingerprint() -> None:
    schemas = [schema for kind in KINDS for schema in make.today(kind).values()]
    assert len({fingerprint(schema) for schema in schemas}) == len(schemas)


def earlier(kind: str, name: str, *, without: str = "", more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A schema that a type might have had before."""
    schema = json.loads(json.dumps(make.today(kind)[name]))
    schema["fields"] = [field for field in schema["fields"] if field["name"] != without]
    schema["fields"] += [more] if more else []
    return schema


def as_room(folder: Path, history: dict[tuple[str, str], dict[str, Any]]) -> Registry:
    """A registry from a folder with today's schemas and a history."""
    for kind in KINDS:
        (folder / kind).mkdir()
        for name, schema in make.today(kind).items():
            (folder / kind / f"{name}.avsc").write_text(json.dumps(schema))
    for (kind, name), schema in history.items():
        (folder / "history" / kind).mkdir(parents=True, exist_ok=True)
        path = folder / "history" / kind / f"{name}.{fingerprint(schema).hex()}.avsc"
        path.write_text(json.dumps(schema))
    return Registry.load(folder)


def test_records_of_an_earlier_schema_are_read(tmp_path: Path) -> None:
    old = earlier("events", "HubStarted", without="command_id", more={"name": "gone", "type": "string"})
    value = _written(old, {"id": "i", "at": 1, "source": "s", "hub_epoch": 2, "hub": "hub1", "gone": "x"})
    with pytest.raises(IntegrityError):
        decode_control(value)
    registry = as_room(tmp_path, {("events", "HubStarted"): old})
    expected = events.HubStarted(id="i", at=1, source="s", hub_epoch=2, hub="hub1")
    assert decode_control(value, registry) == expected
    assert encode_control(expected, registry) == encode_control(expected)


def test_journal_events_of_an_earlier_schema_are_read(tmp_path: Path) -> None:
    old_write = earlier("journal", "Write", more={"name": "gone", "type": "string"})
    old_write["fields"].insert(-2, old_write["fields"].pop())  # the payload stays the last
    old_zero = earlier("journal", "Zero", more={"name": "gone", "type": "string"})
    registry = as_room(tmp_path, {("journal", "Write"): old_write, ("journal", "Zero"): old_zero})
    head = {"crc32c": bytes(4), "epoch": 1, "attachment_id": bytes(16), "seq": 2, "captured_at": 3}
    value = _with_crc(_written(old_write, head | {"start": 4, "flags": 0, "data": b"data", "gone": "x"}))
    event = decode_journal(value, registry)
    assert (event.start, bytes(event.data)) == (4, b"data")
    assert peek(value, registry).length == 4
    header = peek(value, registry)
    assert value[header.data_start : header.data_start + header.length] == b"data"
    zero = {"start": 4, "flags": 2, "length": 512, "unmap": True, "gone": "x"}
    value = _with_crc(_written(old_zero, head | zero))
    assert decode_journal(value, registry).length == 512
    assert peek(value, registry)[4:] == (3, 4, 512, 0)
    with pytest.raises(IntegrityError):
        decode_journal(value[:-1] + bytes([value[-1] ^ 1]), registry)


def test_a_payload_that_is_not_the_last_field_is_refused() -> None:
    schema = earlier("journal", "Write", more={"name": "more", "type": "string"})
    with pytest.raises(ValueError, match="last field"):
        Registry().add("journal", schema)


def _written(schema: dict[str, Any], datum: dict[str, Any]) -> bytes:
    buffer = io.BytesIO(b"\xc3\x01" + fingerprint(schema))
    buffer.seek(10)
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), datum)
    return buffer.getvalue()


def _with_crc(value: bytes) -> bytes:
    return value[:10] + struct.pack(">I", crc32c(value[14:], crc32c(value[2:10]))) + value[14:]


def test_event_ids_follow_from_their_cause() -> None:
    assert event_id("cause", "FilterAttached", "vol1") == event_id("cause", "FilterAttached", "vol1")
    ids = {event_id(*parts) for parts in [("c", "T", "s"), ("d", "T", "s"), ("c", "U", "s"), ("c", "T", "t")]}
    assert len(ids) == 4
    # Kept: a changed rule would make every repeat of an old event look new.
    assert event_id("cause", "FilterAttached", "vol1") == "dddf3680-39c2-5c15-a3b0-91d4b217a778"
    assert command_id() != command_id()
