"""Kafka's record batches, format 2, without what we never use: keys, headers, timestamps of clients, transactions.

Spec: Kafka documentation, "Record Batch" (KIP-98). Why not aiokafka's builder and parser: they copy each value two to four
times and compute the crc in software; measured in docs/data-path.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from aiokafka import codec as compressors
from crc32c import crc32c

from rephub.core.arrays import Int64s
from rephub.core.codec.varint import decode_long, decode_longs, encode_long
from rephub.core.errors import IntegrityError
from rephub.core.journal.port import Payload, StoredRecords

COMPRESSIONS: Final = {None: 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""Names → numbers in a batch's attributes."""
HEADER_BYTES: Final = 61
COLUMNS_MIN: Final = 16
"""Fewer records are decoded one by one: numpy costs some 50 µs a batch, however small."""

_NONE = np.empty(0, np.int64)

_COMPRESS: dict[int, Any] = {
    1: compressors.gzip_encode,
    2: compressors.snappy_encode,
    3: compressors.lz4_encode,
    4: compressors.zstd_encode,
}
_DECOMPRESS: dict[int, Any] = {
    1: compressors.gzip_decode,
    2: compressors.snappy_decode,
    3: compressors.lz4_decode,
    4: compressors.zstd_decode,
}
_COMPRESSION_BITS = 0x07
_CONTROL_BIT = 0x20
_MAGIC = 2
_FRAME = struct.Struct(">qiibI")
"""Base offset, length of what follows it, leader epoch, magic, crc of what follows."""
_BODY = struct.Struct(">hiqqqhii")
"""Attributes, last offset delta, first and last timestamp, producer id and epoch, base sequence, number of records."""
_LENGTH_FROM = 12
"""A batch's length counts from here."""
_NO_KEY, _NO_HEADERS = b"\x01", b"\x00"
_START = b"\x00\x00"
"""Attributes and timestamp delta of a record."""


def encode_batch(
    values: Sequence[Payload], producer: tuple[int, int], base_sequence: int, compression: int = 0
) -> tuple[bytes, bytes]:
    """One batch of an idempotent producer, as its header and its records; each value is copied once.

    Args:
        values: of the records, at least one.
        producer: its id and epoch.
        base_sequence: of the first record.
        compression: number of the codec.
    """
    pieces: list[Payload] = []
    for number, value in enumerate(values):
        pieces += (_framing(number, len(value)), value)
    records = b"".join((*pieces, _NO_HEADERS))
    if compression:
        records = _COMPRESS[compression](records)
    last = len(values) - 1
    body = _BODY.pack(compression, last, 0, 0, *producer, base_sequence, len(values))
    frame = _FRAME.pack(
        0, HEADER_BYTES - _LENGTH_FROM + len(records), -1, _MAGIC, crc32c(records, crc32c(body))
    )
    return frame + body, records


@lru_cache(maxsize=4096)
def _framing(number: int, length: int) -> bytes:
    """What lies between the value of the record before and the value of this one."""
    delta, value_bytes = encode_long(number), encode_long(length)
    size = len(_START) + len(delta) + len(_NO_KEY) + len(value_bytes) + length + len(_NO_HEADERS)
    before = _NO_HEADERS if number else b""
    return before + encode_long(size) + _START + delta + _NO_KEY + value_bytes


def decode_batches(data: Payload) -> tuple[Int64s, StoredRecords]:
    """The whole batches in a fetch's answer; one that is cut off at the end is left out.

    The batch's crc is not looked at: every value carries its own.

    Returns:
        Offsets, ascending; the values, which lie in `data` itself unless a batch is compressed. Their own offsets mean
        nothing.

    Raises:
        IntegrityError: this is no batch of format 2, or its records are broken.
    """
    view = memoryview(data)
    offsets, starts, ends = [_NONE], [_NONE], [_NONE]
    buffers: list[memoryview] = [view]
    at = 0
    while len(view) - at >= HEADER_BYTES:
        base_offset, length, _, magic, _ = _FRAME.unpack_from(view, at)
        end = at + _LENGTH_FROM + length
        if magic != _MAGIC or length < HEADER_BYTES - _LENGTH_FROM:
            raise IntegrityError(f"a batch of format {magic} with {length} bytes")
        if end > len(view):
            break
        attributes, _, _, _, _, _, _, count = _BODY.unpack_from(view, at + _FRAME.size)
        first, at = at + HEADER_BYTES, end
        if attributes & _CONTROL_BIT:
            continue
        records, shift = view[:end], 0
        if attributes & _COMPRESSION_BITS:
            records = _decompressed(attributes & _COMPRESSION_BITS, view[first:end])
            first, shift = 0, sum(map(len, buffers))
            buffers.append(records)
        try:
            deltas, begins, stops = _records(records, first, count)
        except IndexError as exc:
            raise IntegrityError("a record that is cut off") from exc
        offsets.append(deltas + base_offset)
        starts.append(begins + shift)
        ends.append(stops + shift)
    buffer = view if len(buffers) == 1 else memoryview(b"".join(buffers))
    records_of = StoredRecords(0, buffer, np.concatenate(starts), np.concatenate(ends))
    return np.concatenate(offsets), records_of


def _decompressed(compression: int, records: memoryview) -> memoryview:
    decompress = _DECOMPRESS.get(compression)
    if decompress is None:
        raise IntegrityError(f"compression {compression} is not known")
    try:
        return memoryview(decompress(bytes(records)))
    except Exception as exc:  # each codec has errors of its own
        raise IntegrityError(f"a compressed batch cannot be read: {exc}") from exc


def _records(records: memoryview, at: int, count: int) -> tuple[Int64s, Int64s, Int64s]:
    """Offset deltas, begins and ends of the values of a batch whose records begin at `at`. Raises IndexError or IntegrityError."""
    bodies, next_ = _bodies(records, at, count)
    if len(bodies) < COLUMNS_MIN:
        return _columns([_record(records, body, end) for body, end in zip(bodies, next_, strict=True)])
    data, ends = np.frombuffer(records, np.uint8), np.array(next_, np.int64)
    # Attributes come first, then a timestamp delta that other producers may set.
    _, field = decode_longs(data, np.array(bodies, np.int64) + 1)
    deltas, field = decode_longs(data, field)
    key_bytes, field = decode_longs(data, field)
    lengths, field = decode_longs(data, field + _checked(key_bytes, len(records)))
    lengths = _checked(lengths, len(records))
    if (field + lengths > ends).any():
        raise IntegrityError("a value that is longer than its record")
    return deltas, field, field + lengths


def _checked(lengths: Int64s, length_max: int) -> Int64s:
    """Lengths that can be added to an index; null has none. Raises IntegrityError: one cannot be."""
    if (lengths > length_max).any():
        raise IntegrityError("a key or a value that is longer than its batch")
    return np.maximum(lengths, 0)


def _bodies(records: memoryview, at: int, count: int) -> tuple[list[int], list[int]]:
    """Where the records of a batch begin, behind their lengths, and where they end."""
    bodies, ends = [], []
    for _ in range(count):
        low, high = records[at], records[at + 1]
        if low > 0x7F and high <= 0x7F and not low & 1:
            size, at = (low & 0x7F | high << 7) >> 1, at + 2
        else:
            size, at = decode_long(records, at)
        bodies.append(at)
        at += size
        ends.append(at)
        if size <= 0:
            raise IntegrityError(f"a record of {size} bytes")
    if at != len(records):
        raise IntegrityError(f"the records of a batch end at {at} of {len(records)} bytes")
    return bodies, ends


def _record(records: memoryview, body: int, end: int) -> tuple[int, int, int]:
    """As `_records`, of one."""
    _, at = decode_long(records, body + 1)
    delta, at = decode_long(records, at)
    key_bytes, at = decode_long(records, at)
    length, at = decode_long(records, at + max(0, key_bytes))
    if at + max(0, length) > end:
        raise IntegrityError(f"a value of {length} bytes that is longer than its record")
    return delta, at, at + max(0, length)


def _columns(rows: list[tuple[int, int, int]]) -> tuple[Int64s, Int64s, Int64s]:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
