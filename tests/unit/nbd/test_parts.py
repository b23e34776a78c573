"""Small pure parts: extents, URIs, export info, the receive buffer, the memory export."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.errors import UsageError
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.extents import coalesce
from rephub.core.nbd.memory import BLOCK_BYTES, MemoryExport
from rephub.core.nbd.receiving import ReceiveBuffer
from rephub.core.nbd.uri import NbdAddress, parse_uri, tcp_uri, unix_uri

EXTENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=12)


def spread(extents) -> list[int]:
    return [flags for length, flags in extents for _ in range(length)]


@given(EXTENTS, st.integers(0, 40), st.integers(1, 12))
def test_coalesce_keeps_every_byte_it_covers(extents, length, count_max):
    joined = coalesce(extents, length, count_max)
    assert len(joined) <= count_max
    assert all(size > 0 for size, _ in joined)
    assert all(a[1] != b[1] for a, b in pairwise(joined))
    bytewise = spread(extents)[:length]
    assert spread(joined) == bytewise[: len(spread(joined))]
    if len(joined) < count_max:
        assert spread(joined) == bytewise


@given(st.text(min_size=0, max_size=20).filter(lambda text: "\0" not in text))
def test_uris_survive(name):
    assert parse_uri(unix_uri("/run/a b/ü?x.sock", name)) == NbdAddress(
        name, path=parse_uri(unix_uri("/run/a b/ü?x.sock", name)).path
    )
    assert str(parse_uri(unix_uri("/run/a b/ü?x.sock", name)).path) == "/run/a b/ü?x.sock"
    assert parse_uri(tcp_uri("::1", 10, name)) == NbdAddress(name, host="::1", port=10)
    assert parse_uri(tcp_uri("host", 10, name)) == NbdAddress(name, host="host", port=10)


def test_uris_as_the_contract_has_them():
    assert unix_uri("/s/f1", "vol1") == "nbd+unix:///vol1?socket=/s/f1"
    assert parse_uri("nbd://host") == NbdAddress("", host="host", port=10809)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "vol",
        "nbd+unix:///x",
        "nbds://h/x",
        "nbd:///x",
        "nbd://h:x/",
        "nbd+unix://h/x?socket=/a",
        "file:///x",
        "nbd+unix:///x?socket=/run/a%00b",
        "nbd://host/a%00b",
    ],
)
def test_uris_that_are_refused(uri):
    with pytest.raises(UsageError):
        parse_uri(uri)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_block": 3},
        {"min_block": 0},
        {"min_block": 1 << 17},
        {"min_block": 4096, "preferred_block": 512},
        {"max_block": 0},
        {"max_block": (32 << 20) + 1},
        {"min_block": 512, "max_block": 1000},
        {"size_bytes": -1},
        {"size_bytes": 1 << 63},
        {"name": "n" * 4097},
        {"name": "a\0"},
        {"description": "ü" * 2049},
    ],
)
def test_export_info_that_may_not_travel(fields):
    with pytest.raises(ValueError):
        ExportInfo(**({"name": "a", "size_bytes": 1} | fields))


def test_the_buffer_grows_compacts_diverts_and_discards():
    buffer = ReceiveBuffer(8)
    assert buffer.feed(b"abcdefghij") == 8
    buffer.first = 6
    buffer.compact()
    assert bytes(buffer.view[: buffer.end]) == b"gh"
    buffer.grow(16)
    assert buffer.feed(b"ijklm") == 5
    buffer.first = 1
    target = memoryview(bytearray(4))
    buffer.divert(target)
    assert buffer.target_full
    assert bytes(target) == b"hijk"
    buffer.target = None
    assert bytes(buffer.view[buffer.first : buffer.end]) == b"lm"
    target = memoryview(bytearray(6))
    buffer.divert(target)
    assert not buffer.target_full
    assert len(buffer.writable()) == 4
    assert buffer.feed(b"nopqrst") == 4
    assert buffer.target_full
    buffer.discard()
    assert len(buffer.writable()) == 16


SIZE = 6 * BLOCK_BYTES + 100
OPERATION = st.tuples(
    st.sampled_from(["write", "zero", "unmap", "trim"]), st.integers(0, SIZE - 1), st.integers(1, SIZE)
)


@given(st.lists(OPERATION, max_size=12), st.integers(0, SIZE - 1), st.integers(1, SIZE))
async def test_the_memory_export_equals_a_bytearray(operations, start, wanted):
    export = MemoryExport(ExportInfo("m", SIZE, block_status=True))
    model = bytearray(SIZE)
    for number, (what, first, length) in enumerate(operations):
        end = min(SIZE, first + length)
        model[first:end] = (bytes([number + 1]) if what == "write" else b"\0") * (end - first)
        if what == "write":
            await export.write(first, bytes([number + 1]) * (end - first), fua=False)
        elif what == "trim":
            await export.trim(first, end - first)
        else:
            await export.zero(first, end - first, unmap=what == "unmap", fua=True)
    end = min(SIZE, start + wanted)
    assert await export.read(start, end - start) == model[start:end]
    status = spread(await export.block_status(start, end - start))
    assert len(status) == end - start
    assert not any(byte for byte, flags in zip(model[start:end], status, strict=True) if flags)


async def test_a_huge_zero_of_the_memory_export_is_quick_and_exact():
    export = MemoryExport(ExportInfo("m", 1 << 40, block_status=True))
    await export.write(10, b"x" * 9000, fua=False)
    await export.write(1 << 39, b"y" * 9000, fua=False)
    await export.zero(100, (1 << 39) - 100 + 5, unmap=True, fua=False)
    assert await export.read(0, 200) == bytes(10) + b"x" * 90 + bytes(100)
    assert await export.read((1 << 39) - 4, 12) == bytes(9) + b"yyy"
    assert export.stored_bytes == 4 * BLOCK_BYTES
