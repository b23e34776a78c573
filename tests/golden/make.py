"""Golden records: what was once written must be readable for ever.

Each file holds the schema a type had at some time, and records written with it: their bytes and what today's
code must make of them. Files are only ever added. After a schema was changed:

    python tests/golden/make.py            adds files for the new schemas
    python tests/golden/make.py --replace  also drops those of schemas that are gone: only before a release
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rephub.core.codec import REGISTRY, encode_control, encode_journal
from rephub.core.codec.registry import KINDS, Entry, fingerprint
from rephub.schemas import journal

ROOM = Path(__file__).resolve().parent
EDGES = {
    "int": [7, 2**31 - 1],
    "long": [1_764_000_000_123_456, 2**63 - 1],
    "double": [0.25, -1e300],
    "string": ["vol-1", "é ☂ \n \0"],
    "boolean": [True, False],
    "bytes": [b"data", b""],
}


def path_of(entry: Entry) -> Path:
    return ROOM / entry.kind / f"{entry.name}.{entry.prefix[2:].hex()}.json"


def sample(kind: str, avro: Any, variant: int) -> Any:
    """A value of an Avro type, as our dataclasses hold it; variant 1 is the odd one."""
    if isinstance(avro, str):
        return EDGES[avro][variant]
    if isinstance(avro, list):
        return None if variant else sample(kind, avro[1], 0)
    match avro["type"]:
        case "fixed":
            return bytes(range(avro["size"])) if not variant else b"\xff" * avro["size"]
        case "array":
            return () if variant else tuple(sample(kind, avro["items"], item) for item in (0, 1))
        case "map":
            return {} if variant else {key: sample(kind, avro["values"], 0) for key in ("vol-1", "vol-2")}
        case "record":
            fields = {field["name"]: sample(kind, field["type"], variant) for field in avro["fields"]}
            return getattr(KINDS[kind], avro["name"])(**fields)
    raise ValueError(f"no sample of {avro}")


def encode(record: Any) -> bytes:
    return encode_journal(record) if isinstance(record, journal.Record) else encode_control(record)


def plain(record: Any) -> Any:
    """A record as JSON can hold it; the crc is left out, because it is in the value."""
    if dataclasses.is_dataclass(record):
        return {
            f.name: plain(getattr(record, f.name)) for f in dataclasses.fields(record) if f.name != "crc32c"
        }
    if isinstance(record, tuple):
        return [plain(item) for item in record]
    if isinstance(record, bytes | memoryview):
        return bytes(record).hex()
    return record


def document(entry: Entry, schema: dict[str, Any]) -> dict[str, Any]:
    records = [sample(entry.kind, schema, variant) for variant in (0, 1)]
    return {
        "schema": schema,
        "records": [{"value": encode(record).hex(), "expected": plain(record)} for record in records],
    }


def today(kind: str) -> dict[str, dict[str, Any]]:
    """Today's schemas of a kind, by type."""
    room = ROOM.parent.parent / "schemas" / kind
    return {path.stem: json.loads(path.read_text()) for path in sorted(room.glob("*.avsc"))}


def main(arguments: list[str]) -> int:
    wanted = set()
    for kind in KINDS:
        for schema in today(kind).values():
            prefix = b"\xc3\x01" + fingerprint(schema)
            entry = next(entry for entry in REGISTRY.entries(kind) if entry.prefix == prefix)
            path = path_of(entry)
            wanted.add(path)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(document(entry, schema), indent=1, ensure_ascii=True) + "\n")
                print(f"made {path.relative_to(ROOM)}")
    if "--replace" in arguments:
        for path in sorted({*ROOM.glob("*/*.json")} - wanted):
            path.unlink()
            print(f"dropped {path.relative_to(ROOM)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
