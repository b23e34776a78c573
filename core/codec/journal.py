"""Journal events as bytes, with their end-to-end checksum.

    C3 01 | fingerprint (8) | crc32c (4, big-endian) | rest of the datum
            └── covered ───┘                          └── covered ─────┘

The crc is made once, at capture, and checked by everybody who reads the event. `Write` and `SyncData` are
encoded and decoded by hand because they are nearly all of a journal: `data` is the last field, so that the
payload is joined to its header (one copy) and read as a memoryview into the value (none).
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import fastavro
from crc32c import crc32c

from rephub.core.codec.control import read_datum
from rephub.core.codec.registry import PREFIX_BYTES, REGISTRY, Entry, Registry
from rephub.core.codec.varint import LONG_BITS_MAX, decode_long, encode_long
from rephub.core.errors import IntegrityError
from rephub.schemas import journal

DATA_BYTES_MAX = 1 << 20
"""Payload of one event; larger guest writes become several events, so that batches stay below Kafka's limit."""

OVERHEAD_BYTES_MAX = 128
"""Upper limit of an encoded Write, SyncData or Zero without its payload: 14 + 16 + 6 numbers of ≤ 10 bytes."""

_BODY = PREFIX_BYTES + 4
_ATTACHMENT_BYTES = 16
_CRC = struct.Struct(">I")
_HEADER = ["crc32c", "epoch", "attachment_id", "seq", "captured_at"]
_HOT = {
    journal.Write: [*_HEADER, "start", "flags", "data"],
    journal.SyncData: [*_HEADER, "start", "flags", "data"],
    journal.Zero: [*_HEADER, "start", "flags", "length", "unmap"],
}

Payload = bytes | bytearray | memoryview


class Header(NamedTuple):
    """What an event says without its data."""

    type: type[journal.Record]
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    start: int
    """First byte of the extent; 0 for events that change none."""
    length: int
    """Bytes of the extent; 0 for events that change none."""
    data_start: int
    """Index in the value at which `length` bytes of data begin; 0 where the event carries none."""


class WriteEncoder:
    """Encodes the frequent events of one attachment.

    Args:
        epoch: of the attachment.
        attachment_id: its 16 bytes.
    """

    def __init__(self, epoch: int, attachment_id: bytes, registry: Registry = REGISTRY) -> None:
        if len(attachment_id) != _ATTACHMENT_BYTES or epoch < 0:
            raise ValueError("an attachment id has 16 bytes, an epoch is not negative")
        self._who = encode_long(epoch) + attachment_id
        self._write = registry.by_record(journal.Write)
        self._sync_data = registry.by_record(journal.SyncData)
        self._zero = registry.by_record(journal.Zero)

    def write(self, seq: int, captured_at: int, start: int, flags: int, data: Payload) -> bytes:
        """An encoded `Write`; `data` is copied once."""
        return self._with_data(self._write, seq, captured_at, start, flags, data)

    def sync_data(self, seq: int, captured_at: int, start: int, flags: int, data: Payload) -> bytes:
        """An encoded `SyncData`; `data` is copied once."""
        return self._with_data(self._sync_data, seq, captured_at, start, flags, data)

    def zero(self, seq: int, captured_at: int, start: int, flags: int, length: int, *, unmap: bool) -> bytes:
        """An encoded `Zero`."""
        _check(seq | captured_at | start | flags | length)
        entry = self._zero
        body = b"".join(
            (
                self._who,
                encode_long(seq),
                encode_long(captured_at),
                encode_long(start),
                encode_long(flags),
                encode_long(length),
                b"\x01" if unmap else b"\x00",
            )
        )
        return b"".join((entry.prefix, _CRC.pack(crc32c(body, entry.prefix_crc)), body))

    def _with_data(
        self, entry: Entry, seq: int, captured_at: int, start: int, flags: int, data: Payload
    ) -> bytes:
        _check(seq | captured_at | start | flags)
        head = b"".join(
            (
                self._who,
                encode_long(seq),
                encode_long(captured_at),
                encode_long(start),
                encode_long(flags),
                encode_long(len(data)),
            )
        )
        crc = crc32c(data, crc32c(head, entry.prefix_crc))
        return b"".join((entry.prefix, _CRC.pack(crc), head, data))


def encode_journal(event: journal.Record, registry: Registry = REGISTRY) -> bytes:
    """Any event; its `crc32c` is computed here, what the field holds does not matter.

    Raises:
        ValueError, TypeError: a field has a value that its schema does not allow.
    """
    if isinstance(event, journal.Write | journal.SyncData):
        encoder = WriteEncoder(event.epoch, event.attachment_id, registry)
        hot = encoder.write if isinstance(event, journal.Write) else encoder.sync_data
        return hot(event.seq, event.captured_at, event.start, event.flags, event.data)
    entry = registry.by_record(type(event))
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, entry.writer, entry.to_avro(event) | {"crc32c": bytes(4)})
    body = buffer.getbuffer()[4:]
    return b"".join((entry.prefix, _CRC.pack(crc32c(body, entry.prefix_crc)), body))


def decode_journal(value: bytes | memoryview, registry: Registry = REGISTRY) -> journal.Record:
    """The typed event; `data` is a memoryview into the value.

    Raises:
        IntegrityError: must not be used; field `reason` is `marker`, `schema`, `kind`, `crc`, `truncated`,
            `trailing` or `malformed`.
    """
    entry = _checked(value, registry)
    record = entry.record
    if entry.reader is not None or (record is not journal.Write and record is not journal.SyncData):
        if entry.reader is None:
            _header(entry, value)  # fastavro cuts numbers of more than 64 bits; readers must not disagree
        event: journal.Record = read_datum(entry, value, PREFIX_BYTES)
        return event
    header, flags = _header(entry, value)
    return record(  # type: ignore[no-any-return]
        crc32c=bytes(value[PREFIX_BYTES:_BODY]),
        epoch=header.epoch,
        attachment_id=header.attachment_id,
        seq=header.seq,
        captured_at=header.captured_at,
        start=header.start,
        flags=flags,
        data=memoryview(value)[header.data_start :],
    )


def check(value: bytes | memoryview, registry: Registry = REGISTRY) -> None:
    """Check schema and crc alone: as cheap as reading the bytes once.

    Raises:
        IntegrityError: reason `marker`, `schema`, `kind`, `truncated` or `crc`.
    """
    _checked(value, registry)


def peek(value: bytes | memoryview, registry: Registry = REGISTRY) -> Header:
    """The header alone, **without** looking at the crc: for values that were checked before.

    Raises:
        IntegrityError: as `decode_journal`, apart from `crc`.
    """
    entry = _journal_entry(value, registry)
    if entry.reader is None:
        return _header(entry, value)[0]
    event = read_datum(entry, value, PREFIX_BYTES)
    data = getattr(event, "data", None)
    changes = entry.record in _HOT
    return Header(
        entry.record,
        event.epoch,
        event.attachment_id,
        event.seq,
        event.captured_at,
        event.start if changes else 0,
        len(data) if data is not None else event.length if changes else 0,
        len(value) - len(data) if data is not None else 0,
    )


def _journal_entry(value: bytes | memoryview, registry: Registry) -> Entry:
    entry = registry.by_value(value)
    if entry.kind != "journal":
        raise IntegrityError(f"a {entry.name} is no journal event", reason="kind", type=entry.name)
    if len(value) < _BODY:
        raise IntegrityError(f"a {entry.name} ends before its crc does", reason="truncated", type=entry.name)
    return entry


def _checked(value: bytes | memoryview, registry: Registry) -> Entry:
    entry = _journal_entry(value, registry)
    made = crc32c(memoryview(value)[_BODY:], entry.prefix_crc)
    kept = _CRC.unpack_from(value, PREFIX_BYTES)[0]
    if made != kept:
        raise IntegrityError(
            f"the crc of a {entry.name} is wrong",
            reason="crc",
            type=entry.name,
            expected=f"{kept:08x}",
            found=f"{made:08x}",
            value_bytes=len(value),
        )
    return entry


def _header(entry: Entry, value: bytes | memoryview) -> tuple[Header, int]:
    """Header and flags of an event that was written with today's schema."""
    record = entry.record
    flags = start = length = data_start = 0
    try:
        epoch, at = decode_long(value, _BODY)
        attachment_id = bytes(value[at : at + _ATTACHMENT_BYTES])
        seq, at = decode_long(value, at + _ATTACHMENT_BYTES)
        captured_at, at = decode_long(value, at)
        if record in _HOT:
            start, at = decode_long(value, at)
            flags, at = decode_long(value, at)
            length, at = decode_long(value, at)
    except IndexError as exc:
        raise IntegrityError(f"a {entry.name} is cut off", reason="truncated", type=entry.name) from exc
    if record is journal.Write or record is journal.SyncData:
        data_start = at
        if length != len(value) - at:
            reason = "truncated" if length > len(value) - at else "trailing"
            raise IntegrityError(
                f"a {entry.name} has {len(value) - at} bytes of data and says {length}",
                reason=reason,
                type=entry.name,
            )
    return Header(record, epoch, attachment_id, seq, captured_at, start, length, data_start), flags


def _check(bits: int) -> None:
    """Refuse numbers that are negative or too large, by the bitwise or of all of them."""
    if bits >> LONG_BITS_MAX:
        raise ValueError("a field of an event is negative or has more than 63 bits")


def _check_layout(registry: Registry) -> None:
    """The hand-made paths above fit the schemas; somebody who changes a schema learns it at import."""
    for entry in registry.entries("journal"):
        names = [field["name"] for field in entry.writer["fields"]]
        wanted: list[str] = _HOT.get(entry.record, names)
        if entry.reader is None and (names[: len(_HEADER)] != _HEADER or names != wanted):
            raise AssertionError(f"core/codec/journal.py does not fit the schema of {entry.name}")


_check_layout(REGISTRY)
