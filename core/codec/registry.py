"""Every schema that a record may have been written with, found by its fingerprint.

Records are Avro single-object encoding: `C3 01`, the writer schema's CRC-64-AVRO fingerprint (8 bytes,
little-endian), the datum. Today's schemas are `schemas/<kind>/<Type>.avsc`; a schema that was ever used and
then changed stays in `schemas/history/<kind>/<Type>.<fingerprint>.avsc`, and what was written with it is
read into today's type by Avro's resolution rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import ModuleType
from typing import Any

import fastavro.schema
from crc32c import crc32c

from rephub.core.errors import IntegrityError
from rephub.schemas import alerts, commands, events, journal, stats

MARKER = b"\xc3\x01"
PREFIX_BYTES = 10
"""Marker and fingerprint."""

KINDS: dict[str, ModuleType] = {
    "journal": journal, "commands": commands, "events": events, "stats": stats, "alerts": alerts,
}  # fmt: skip

Schema = dict[str, Any]
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One schema that records are, or once were, written with."""

    kind: str
    name: str
    record: type[Any]
    """The dataclass that such a record becomes."""
    writer: Any
    """Parsed schema of the record as it was written."""
    reader: Any
    """Parsed schema of the dataclass; None where it is the writer's."""
    prefix: bytes
    """Marker and fingerprint: how such a record begins."""
    prefix_crc: int
    """CRC-32C of the fingerprint, from which the crc of journal records goes on."""
    from_avro: Convert
    to_avro: Convert


class Registry:
    """Schemas by fingerprint and by type."""

    def __init__(self) -> None:
        self._by_prefix: dict[bytes, Entry] = {}
        self._by_record: dict[type[Any], Entry] = {}
        self._schemas: dict[tuple[str, str], Schema] = {}

    @classmethod
    def load(cls, room: Traversable | None = None) -> Registry:
        """Today's schemas and their history, from the package `rephub.schemas` or another folder."""
        room = room or resources.files("rephub.schemas")
        registry = cls()
        for kind in KINDS:
            for schema in _schemas_in(room / kind):
                registry.add(kind, schema)
        for kind in KINDS:
            for schema in _schemas_in(room / "history" / kind):
                registry.add_history(kind, schema)
        return registry

    def add(self, kind: str, schema: Schema) -> Entry:
        """Register today's schema of a type."""
        name = schema["name"]
        record = getattr(KINDS[kind], name)
        self._schemas[kind, name] = schema
        entry = self._entry(kind, schema, reader=None)
        self._by_prefix[entry.prefix] = entry
        self._by_record[record] = entry
        return entry

    def add_history(self, kind: str, schema: Schema) -> Entry:
        """Register an earlier schema of a type that is registered already."""
        entry = self._entry(kind, schema, reader=self._schemas[kind, schema["name"]])
        self._by_prefix.setdefault(entry.prefix, entry)
        return self._by_prefix[entry.prefix]

    def by_record(self, record: type[Any]) -> Entry:
        """Today's schema of a dataclass of `rephub.schemas`."""
        return self._by_record[record]

    def by_value(self, value: bytes | memoryview) -> Entry:
        """The schema that an encoded record was written with.

        Raises:
            IntegrityError: no single-object encoding (reason `marker`, `truncated`), or nobody knows the
                schema (reason `schema`, field `fingerprint`).
        """
        prefix = bytes(value[:PREFIX_BYTES])
        entry = self._by_prefix.get(prefix)
        if entry is not None:
            return entry
        if len(prefix) < PREFIX_BYTES:
            raise IntegrityError("the record ends within its first 10 bytes", reason="truncated")
        if not prefix.startswith(MARKER):
            raise IntegrityError("the record is no Avro single-object encoding", reason="marker")
        raise IntegrityError(
            "the record was written with a schema that is not known here",
            hint="written by a newer version? update this daemon",
            reason="schema",
            fingerprint=prefix[2:].hex(),
        )

    def entries(self, kind: str) -> list[Entry]:
        """All of a kind, history included."""
        return [entry for entry in self._by_prefix.values() if entry.kind == kind]

    def _entry(self, kind: str, schema: Schema, reader: Schema | None) -> Entry:
        own = fingerprint(schema)
        names = [field["name"] for field in schema["fields"]]
        if "data" in names[:-1] and kind == "journal":
            raise ValueError(
                f"{schema['name']}: the payload is the last field, so that readers find it uncopied"
            )
        module = KINDS[kind]
        typed = reader or schema
        return Entry(
            kind=kind,
            name=schema["name"],
            record=getattr(module, schema["name"]),
            writer=fastavro.schema.parse_schema(schema),
            reader=None if reader is None else fastavro.schema.parse_schema(reader),
            prefix=MARKER + own,
            prefix_crc=crc32c(own),
            from_avro=_from_avro(typed, module) or _same,
            to_avro=_to_avro(typed) or _same,
        )


def fingerprint(schema: Schema) -> bytes:
    """CRC-64-AVRO of the schema's canonical form, 8 bytes, little-endian as in single-object encoding."""
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))


def _schemas_in(folder: Traversable) -> Iterable[Schema]:
    if not folder.is_dir():
        return []
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".avsc")), key=lambda p: p.name)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _finite(value: float) -> float:
    """A number that is one: NaN is unlike itself, and no JSON has it."""
    if not math.isfinite(value):
        raise ValueError(f"{value} where a number was due")
    return value


def _same(value: Any) -> Any:
    return value


def _from_avro(avro: Any, module: ModuleType) -> Convert | None:
    """What turns a datum of fastavro into our types; None where it is the datum itself."""
    if isinstance(avro, list):
        inner = _from_avro(avro[1], module)
        return None if inner is None else lambda value: None if value is None else inner(value)
    if not isinstance(avro, dict):
        return _finite if avro == "double" else None
    if avro["type"] == "array":
        item = _from_avro(avro["items"], module)
        return tuple if item is None else lambda values: tuple(item(value) for value in values)
    if avro["type"] == "map":
        value_of = _from_avro(avro["values"], module)
        return None if value_of is None else lambda values: {k: value_of(v) for k, v in values.items()}
    if avro["type"] != "record":
        return None
    record = getattr(module, avro["name"])
    converts = [(f["name"], convert) for f in avro["fields"] if (convert := _from_avro(f["type"], module))]

    def build(datum: dict[str, Any]) -> Any:
        for name, convert in converts:
            datum[name] = convert(datum[name])
        return record(**datum)

    return build


def _to_avro(avro: Any) -> Convert | None:
    """What turns our types into a datum for fastavro; None where it is the value itself."""
    if isinstance(avro, list):
        inner = _to_avro(avro[1])
        return None if inner is None else lambda value: None if value is None else inner(value)
    if not isinstance(avro, dict):
        return None
    if avro["type"] == "array":
        item = _to_avro(avro["items"])
        return list if item is None else lambda values: [item(value) for value in values]
    if avro["type"] == "map":
        value_of = _to_avro(avro["values"])
        return None if value_of is None else lambda values: {k: value_of(v) for k, v in values.items()}
    if avro["type"] != "record":
        return None
    fields = [(field["name"], _to_avro(field["type"])) for field in avro["fields"]]

    def take_apart(record: Any) -> dict[str, Any]:
        return {
            name: getattr(record, name) if convert is None else convert(getattr(record, name))
            for name, convert in fields
        }

    return take_apart


REGISTRY = Registry.load()
