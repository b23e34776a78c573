"""Commands, events, samples and alerts as bytes. No crc of their own: they carry no guest data, and Kafka has one."""

from __future__ import annotations

import io
from typing import Any

import fastavro

from rephub.core.codec.registry import PREFIX_BYTES, REGISTRY, Entry, Registry
from rephub.core.errors import IntegrityError
from rephub.schemas import alerts, commands, events, stats

ControlRecord = commands.Record | events.Record | stats.Record | alerts.Record
"""Of any topic but a journal."""

DECODE_ERRORS = (ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError)
"""What fastavro lets out when a datum is not of its schema (UnicodeDecodeError is a ValueError)."""


def encode_control(record: ControlRecord, registry: Registry = REGISTRY) -> bytes:
    """Avro single-object encoding with today's schema.

    Raises:
        ValueError, TypeError: a field has a value that its schema does not allow.
    """
    entry = registry.by_record(type(record))
    buffer = io.BytesIO()
    buffer.write(entry.prefix)
    fastavro.schemaless_writer(buffer, entry.writer, entry.to_avro(record))
    return buffer.getvalue()


def decode_control(value: bytes, registry: Registry = REGISTRY) -> ControlRecord:
    """The typed command, event, sample or alert.

    Raises:
        IntegrityError: field `reason` is `marker`, `schema`, `kind`, `malformed`, `truncated` or `trailing`.
    """
    entry = registry.by_value(value)
    if entry.kind == "journal":
        raise IntegrityError(f"a {entry.name} belongs in a journal", reason="kind", type=entry.name)
    record: ControlRecord = read_datum(entry, value, PREFIX_BYTES)
    return record


def read_datum(entry: Entry, value: bytes | memoryview, at: int) -> Any:
    """The datum that starts at index `at` and ends with the value, as today's type.

    Raises:
        IntegrityError: reason `malformed`, `truncated` or `trailing`.
    """
    buffer = io.BytesIO(value)
    buffer.seek(at)
    try:
        record = entry.from_avro(fastavro.schemaless_reader(buffer, entry.writer, entry.reader))
    except EOFError as exc:
        raise IntegrityError(f"a {entry.name} is cut off", reason="truncated", type=entry.name) from exc
    except DECODE_ERRORS as exc:
        raise IntegrityError(
            f"a {entry.name} does not follow its schema: {exc}", reason="malformed", type=entry.name
        ) from exc
    if buffer.tell() != len(value):
        raise IntegrityError(
            f"{len(value) - buffer.tell()} bytes follow a {entry.name}", reason="trailing", type=entry.name
        )
    return record
