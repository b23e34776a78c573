"""Our record batches against aiokafka's builder and parser; damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.errors import IntegrityError
from rephub.core.kafka.batch import COMPRESSIONS, HEADER_BYTES, decode_batches, encode_batch

values_ = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(0, 9000).map(lambda size: b"\x81" * size)),
    min_size=1,
    max_size=40,
)
compressions = st.sampled_from([None, "gzip", "lz4", "zstd"])


def built(values: list[bytes], base_offset: int, compression: str | None = None, **kinds: object) -> bytes:
    """A batch of aiokafka's, at an offset."""
    builder = DefaultRecordBatchBuilder(2, COMPRESSIONS[compression], 0, -1, -1, -1, 1 << 24)
    for number, value in enumerate(values):
        key, headers = kinds.get("key"), kinds.get("headers", [])
        assert builder.append(number, 1000 + number * 7, key, value, headers) is not None
    return base_offset.to_bytes(8, "big") + bytes(builder.build())[8:]


def decoded(data: bytes) -> list[tuple[int, bytes]]:
    offsets, records = decode_batches(data)
    return [(offset, bytes(record.value)) for offset, record in zip(offsets.tolist(), records, strict=True)]


@given(values_, st.integers(0, 1 << 40), st.integers(0, (1 << 31) - 1), compressions)
def test_aiokafka_reads_what_we_write(values, producer, sequence, compression) -> None:
    data = b"".join(encode_batch(values, (producer, 3), sequence, COMPRESSIONS[compression]))
    batch = DefaultRecordBatch(data)
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (producer, 3, sequence)
    assert [(record.offset, record.value) for record in batch] == list(enumerate(values))


@given(st.lists(st.tuples(values_, compressions), min_size=1, max_size=4), st.integers(0, 1 << 50))
def test_we_read_what_aiokafka_writes(batches, base_offset) -> None:
    """Several batches, compressed or not, one after the other."""
    data, expected = b"", []
    for values, compression in batches:
        data += built(values, base_offset, compression, key=b"k" * (len(values) % 3), headers=[("h", b"x")])
        expected += enumerate(values, base_offset)
        base_offset += len(values)
    assert decoded(data) == expected


@given(values_, st.integers(0, 200))
def test_a_batch_that_is_cut_off_is_left_out(values, missing) -> None:
    whole = built(values, 7)
    second = built(values, 7 + len(values))
    assert decoded(whole + second[: max(0, len(second) - 1 - missing)]) == list(enumerate(values, 7))


@given(st.lists(st.just(b"value" * 9), min_size=1, max_size=40), st.integers(0), st.integers(0, 255))
def test_damage_is_an_error_or_another_value_and_never_more(values, place, byte) -> None:
    """Each value carries a crc of its own: damage must not crash the parser, that is all."""
    data = bytearray(built(values, 7))
    data[HEADER_BYTES + place % (len(data) - HEADER_BYTES)] = byte
    try:
        offsets, records = decode_batches(bytes(data))
    except IntegrityError:
        return
    assert len(offsets) == len(records) == len(values)
    assert (records.starts <= records.ends).all()
    assert not len(records) or records.ends.max() <= len(data)


@pytest.mark.parametrize("magic", [0, 1, 3])
def test_other_formats_are_refused(magic) -> None:
    data = bytearray(built([b"v"], 0))
    data[16] = magic
    with pytest.raises(IntegrityError):
        decode_batches(bytes(data))


def test_null_values_are_empty() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 0, b"key", None, [])
    assert decoded(bytes(builder.build())) == [(0, b"")]


def test_nothing_is_nothing() -> None:
    offsets, records = decode_batches(b"")
    assert offsets.dtype == np.int64
    assert not len(offsets)
    assert not records
