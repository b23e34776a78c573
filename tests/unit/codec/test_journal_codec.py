"""Journal events as bytes: round trips, the crc rule, and that nothing broken gets through."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import fastavro
import pytest
from crc32c import crc32c
from hypothesis import example, given
from hypothesis import strategies as st

from golden import make
from rephub.core.codec import (
    DATA_BYTES_MAX,
    OVERHEAD_BYTES_MAX,
    REGISTRY,
    WriteEncoder,
    check,
    decode_journal,
    encode_control,
    encode_journal,
    peek,
)
from rephub.core.codec.varint import decode_long, encode_long
from rephub.core.errors import IntegrityError
from rephub.schemas import commands, journal

LONGS = st.integers(0, 2**63 - 1)
BYTES_OF = {"Crc32c": st.just(bytes(4)), "AttachmentId": st.binary(min_size=16, max_size=16)}
VALUES = {
    "long": LONGS,
    "int": st.integers(0, 2**31 - 1),
    "string": st.text(max_size=20),
    "boolean": st.booleans(),
    "bytes": st.binary(max_size=300),
}


def of_type(avro: Any) -> st.SearchStrategy[Any]:
    return VALUES[avro] if isinstance(avro, str) else BYTES_OF[avro["name"]]


def events_of(name: str, schema: dict[str, Any]) -> st.SearchStrategy[journal.Record]:
    fields = {field["name"]: of_type(field["type"]) for field in schema["fields"]}
    return st.builds(getattr(journal, name), **fields)


EVENTS = st.one_of([events_of(name, schema) for name, schema in make.today("journal").items()])
WRITE = journal.Write(
    crc32c=b"",
    epoch=3,
    attachment_id=bytes(range(16)),
    seq=70,
    captured_at=1_764_000_000_000_000,
    start=4096,
    flags=1,
    data=b"some data",
)


def reason(value: bytes) -> str:
    with pytest.raises(IntegrityError) as caught:
        decode_journal(value)
    return str(caught.value.fields["reason"])


@given(LONGS)
@example(0)
@example(63)
@example(64)
@example(8191)
@example(8192)
@example(2**20 - 1)
@example(2**63 - 1)
def test_longs_are_avro_longs(number: int) -> None:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, "long", number)
    assert encode_long(number) == buffer.getvalue()
    assert decode_long(buffer.getvalue() + b"\xff", 0) == (number, len(buffer.getvalue()))


def test_a_long_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(IntegrityError):
        decode_long(b"\xff" * 20, 0)


@given(EVENTS)
def test_round_trip(event: journal.Record) -> None:
    value = encode_journal(event)
    check(value)
    decoded = decode_journal(value)
    assert type(decoded) is type(event)
    assert make.plain(decoded) == make.plain(event)
    assert decoded.crc32c == value[10:14]
    assert len(value) <= OVERHEAD_BYTES_MAX + len(getattr(event, "data", b"")) + 200


@given(EVENTS)
def test_the_value_is_one_valid_avro_datum(event: journal.Record) -> None:
    value = encode_journal(event)
    schema = REGISTRY.by_record(type(event)).writer
    buffer = io.BytesIO(value[10:])
    datum = fastavro.schemaless_reader(buffer, schema, None)
    assert buffer.read() == b""
    assert {name: make.plain(field) for name, field in datum.items() if name != "crc32c"} == make.plain(event)


@given(EVENTS)
def test_the_crc_covers_the_fingerprint_and_all_that_follows_it(event: journal.Record) -> None:
    value = encode_journal(event)
    assert struct.unpack_from(">I", value, 10)[0] == crc32c(value[14:], crc32c(value[2:10]))


@given(EVENTS)
def test_peek_agrees_with_decode(event: journal.Record) -> None:
    value = encode_journal(event)
    header = peek(value)
    assert header[:5] == (type(event), event.epoch, event.attachment_id, event.seq, event.captured_at)
    data = getattr(event, "data", None)
    changes = not isinstance(event, journal.Digest)
    assert header.start == (getattr(event, "start", 0) if changes else 0)
    if data is not None:
        assert value[header.data_start :] == data
        assert header.length == len(data)
    else:
        assert (header.length, header.data_start) == (getattr(event, "length", 0) if changes else 0, 0)


@given(EVENTS, st.data())
def test_any_flipped_bit_is_detected(event: journal.Record, data: st.DataObject) -> None:
    value = bytearray(encode_journal(event))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        decode_journal(bytes(value))
    with pytest.raises(IntegrityError):
        check(bytes(value))


def test_each_flipped_bit_of_one_event_is_detected() -> None:
    value = encode_journal(WRITE)
    for bit in range(8 * len(value)):
        broken = bytearray(value)
        broken[bit // 8] ^= 1 << bit % 8
        assert reason(bytes(broken)) == ("marker" if bit < 16 else "schema" if bit < 80 else "crc")


@given(EVENTS, st.data())
def test_cut_or_extended_values_are_detected(event: journal.Record, data: st.DataObject) -> None:
    value = encode_journal(event)
    assert reason(value[: data.draw(st.integers(0, len(value) - 1))]) in {"truncated", "crc"}
    assert reason(value + data.draw(st.binary(min_size=1, max_size=40))) == "crc"


@given(st.binary(max_size=200))
def test_garbage_is_nothing_but_an_integrity_error(garbage: bytes) -> None:
    assert reason(garbage) in {"truncated", "marker", "schema"}


@given(st.sampled_from(REGISTRY.entries("journal")), st.binary(max_size=120))
def test_a_right_crc_over_garbage_is_refused_or_decoded(entry: Any, body: bytes) -> None:
    """Nobody writes this, but a bug might: it must come out as our error, not as the library's."""
    value = entry.prefix + struct.pack(">I", crc32c(body, entry.prefix_crc)) + body
    with contextlib.suppress(IntegrityError):
        assert isinstance(decode_journal(value), entry.record)


def test_a_length_that_lies_is_named() -> None:
    def lying(says: int) -> bytes:
        head = encode_journal(WRITE)[14 : -len(WRITE.data) - 1] + encode_long(says) + WRITE.data
        entry = REGISTRY.by_record(journal.Write)
        return entry.prefix + struct.pack(">I", crc32c(head, entry.prefix_crc)) + head

    assert decode_journal(lying(9)).data == WRITE.data
    assert reason(lying(8)) == "trailing"
    assert reason(lying(10)) == "truncated"


def test_a_command_is_no_journal_event() -> None:
    command = commands.StopFot(id="c", at=1, source="s", deadline_at=2, fot="f")
    assert reason(encode_control(command)) == "kind"


def test_data_is_not_copied() -> None:
    value = encode_journal(WRITE)
    assert decode_journal(value).data.obj is value
    view = memoryview(bytearray(b"..") + value)[2:]
    assert decode_journal(view).data.obj is view.obj


@given(LONGS, LONGS, LONGS, LONGS, LONGS, st.booleans())
def test_the_zero_encoder_agrees_with_fastavro(
    epoch: int, seq: int, captured_at: int, start: int, length: int, unmap: bool
) -> None:
    event = journal.Zero(
        crc32c=b"",
        epoch=epoch,
        attachment_id=bytes(16),
        seq=seq,
        captured_at=captured_at,
        start=start,
        flags=2,
        length=length,
        unmap=unmap,
    )
    encoder = WriteEncoder(epoch, bytes(16))
    assert encoder.zero(seq, captured_at, start, 2, length, unmap=unmap) == encode_journal(event)


def test_encoder_takes_any_buffer_of_full_size() -> None:
    encoder = WriteEncoder(2**63 - 1, bytes(16))
    data = bytearray(DATA_BYTES_MAX)
    values = {
        encoder.write(2**63 - 1, 2**63 - 1, 2**63 - 1, 2**31 - 1, buffer)
        for buffer in (data, bytes(data), memoryview(data))
    }
    assert len(values) == 1
    assert len(values.pop()) <= DATA_BYTES_MAX + OVERHEAD_BYTES_MAX


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, -1, 0), (0, 0, 0, -1), (2**63, 0, 0, 0)]
)
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int, int, int]) -> None:
    encoder = WriteEncoder(1, bytes(16))
    with pytest.raises(ValueError, match="63 bits"):
        encoder.write(*numbers, b"")
    with pytest.raises(ValueError, match="63 bits"):
        encoder.zero(*numbers, 1, unmap=False)


@pytest.mark.parametrize(("epoch", "attachment_id"), [(-1, bytes(16)), (1, bytes(15)), (1, b"")])
def test_an_encoder_needs_an_attachment(epoch: int, attachment_id: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        WriteEncoder(epoch, attachment_id)


TOO_LONG = {
    "70 bits in 10 bytes": b"\xff" * 9 + b"\x7f",
    "11 bytes": b"\x80" * 10 + b"\x01",
}


@pytest.mark.parametrize("case", TOO_LONG)
@pytest.mark.parametrize("record", [journal.Write, journal.Zero, journal.SyncStarted])
def test_a_number_of_more_than_64_bits_is_refused_by_every_reader(record, case):
    """fastavro cuts it to 64: two readers of one event disagreed."""
    entry = REGISTRY.by_record(record)
    body = TOO_LONG[case] + bytes(100)  # the epoch comes first
    value = entry.prefix + crc32c(body, entry.prefix_crc).to_bytes(4, "big") + body
    for read in (decode_journal, peek):
        with pytest.raises(IntegrityError, match="64 bits"):
            read(value)
