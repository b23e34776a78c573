"""The wire on a transport that keeps what it is given: slices, order, answers in any pieces, a broker that speaks nonsense."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest, FetchResponse_v4
from aiokafka.protocol.produce import ProduceRequest, ProduceResponse_v7
from hypothesis import given, settings
from hypothesis import strategies as st

from rephub.core.kafka.wire import RESPONSE_BYTES_MAX, SLICE_BYTES, STAGE_BYTES, Wire

PRODUCE = ProduceRequest(None, -1, 1000, [("t", [(0, b"")])])
FETCH = FetchRequest(100, 1, 1 << 20, 0, [("t", [(0, 7, 1 << 20)])])
VERSIONS = {0: (3, 7), 1: (4, 4)}


class Kept:
    """A transport that keeps what is written in each turn of the loop."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closing = False

    def writelines(self, pieces: list[bytes]) -> None:
        self.writes.append(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def set_protocol(self, protocol: Wire) -> None:
        self.protocol = protocol

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, _name: str) -> None:
        return None


def connected() -> tuple[Wire, Kept]:
    """A wire that took over from aiokafka."""
    transport = Kept()
    conn = SimpleNamespace(
        _versions=VERSIONS, _client_id="us", _correlation_id=40,
        _writer=SimpleNamespace(transport=transport), _reader=None,
        _read_task=SimpleNamespace(cancel=lambda: None),
    )  # fmt: skip
    return Wire(conn), transport


def frames(stream: bytes) -> list[bytes]:
    """What a broker would read."""
    found = []
    while stream:
        (size,) = struct.unpack_from(">i", stream)
        found.append(stream[4 : 4 + size])
        assert len(found[-1]) == size
        stream = stream[4 + size :]
    return found


def produced(correlation_id: int, offset: int) -> bytes:
    """An answer to PRODUCE, framed."""
    body = ProduceResponse_v7([("t", [(0, 0, offset, -1, 0)])], 0).encode()
    return struct.pack(">ii", 4 + len(body), correlation_id) + body


def fetched(correlation_id: int, records: bytes) -> bytes:
    """An answer to FETCH, framed."""
    body = FetchResponse_v4(0, [("t", [(0, 0, 9, 9, [], records)])]).encode()
    return struct.pack(">ii", 4 + len(body), correlation_id) + body


def receive(wire: Wire, data: bytes, cuts: list[int]) -> None:
    """Have a wire receive data in pieces of these lengths, again and again."""
    at, number = 0, 0
    while at < len(data) and wire.is_open:
        space = wire.get_buffer(-1)
        count = min(len(space), max(1, cuts[number % len(cuts)]), len(data) - at)
        space[:count] = data[at : at + count]
        wire.buffer_updated(count)
        at, number = at + count, number + 1


async def test_a_long_request_leaves_in_slices_and_others_have_their_turns() -> None:
    wire, transport = connected()
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    busy = asyncio.create_task(another())
    long = bytes(range(256)) * 4096
    wire.send(PRODUCE, (b"head", long))
    wire.send(PRODUCE, (b"short",))
    assert len(transport.writes) == 1
    while sum(map(len, transport.writes)) < len(long):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    busy.cancel()
    assert max(map(len, transport.writes)) <= SLICE_BYTES + 200
    assert turns >= len(long) // SLICE_BYTES - 1
    first, second = frames(b"".join(transport.writes))
    assert first.endswith(b"head" + long)
    assert second.endswith(b"short")
    # Api key and version, then the correlation id that counts on from aiokafka's.
    assert [struct.unpack_from(">hhi", frame) for frame in (first, second)] == [(0, 7, 41), (0, 7, 42)]


async def test_nothing_is_sent_once_it_is_given_up() -> None:
    wire, transport = connected()
    answer = wire.send(PRODUCE, (bytes(10 * SLICE_BYTES),))
    wire.abort()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(transport.writes) == 1
    with pytest.raises(kafka_errors.KafkaConnectionError):
        await answer
    with pytest.raises(kafka_errors.KafkaConnectionError):
        wire.send(PRODUCE)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, STAGE_BYTES), min_size=1, max_size=8),
    st.lists(st.integers(0, 3 * STAGE_BYTES), min_size=1, max_size=5),
)
def test_answers_come_in_any_pieces(cuts: list[int], lengths: list[int]) -> None:
    async def main() -> None:
        wire, _ = connected()
        data, wanted, answers = b"", [], []
        for number, length in enumerate(lengths):
            records = bytes([number + 1]) * length
            answers += [wire.send(FETCH), wire.send(PRODUCE)]
            data += fetched(41 + 2 * number, records) + produced(42 + 2 * number, number)
            wanted.append(records)
        receive(wire, data, cuts)
        for number, records in enumerate(wanted):
            fetch, produce = answers[2 * number].result(), answers[2 * number + 1].result()
            assert bytes(fetch.topics[0][1][0][-1]) == records
            assert produce.topics[0][1][0][2] == number

    asyncio.run(main())


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack(">i", 0),
        struct.pack(">i", -5),
        struct.pack(">i", RESPONSE_BYTES_MAX + 1),
        produced(99, 0),
        struct.pack(">ii", 4, 41),
        struct.pack(">iii", 8, 41, 1 << 30),
    ],
    ids=["empty", "negative", "endless", "another answer", "cut off", "a lie inside"],
)
async def test_a_broker_that_speaks_nonsense_is_left(nonsense: bytes) -> None:
    wire, transport = connected()
    first, second = wire.send(PRODUCE), wire.send(PRODUCE)
    receive(wire, nonsense, [3])
    assert transport.closing
    for answer in (first, second):
        with pytest.raises(kafka_errors.KafkaError):
            await answer


async def test_an_answer_that_nobody_asked_for() -> None:
    wire, transport = connected()
    answer = wire.send(PRODUCE)
    receive(wire, produced(41, 5) + produced(42, 6), [1000])
    assert (await answer).topics[0][1][0][2] == 5
    assert transport.closing
