"""Our client's protocol against our server's, back to back over a fake link that cuts and delays at will."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.errors import NotFoundError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import ClientHandshake
from rephub.core.nbd.client_transmission import ClientTransmission, Pending
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer
from unit.nbd.wire import ServerSession

SIZE = 200_000


class Link:
    """Client and server joined; bytes cross in random pieces, answers leave in random order."""

    def __init__(self, seed: int, info: ExportInfo, export: str | None = None, contexts=("base:allocation",)):
        self.random = random.Random(seed)
        self.waiting = []
        self.server = ServerSession(info, handle=lambda _, items: self.waiting.extend(items))
        self.buffer = ReceiveBuffer()
        self.handshake = ClientHandshake(info.name if export is None else export, contexts, self.buffer)
        self.client: ClientTransmission | None = None
        self.done: dict[int, Pending] = {}
        self._to_client = bytearray()
        while self.client is None:
            self._cross(self.handshake.out)

    def _cross(self, out) -> None:
        """Carry what is there in both directions, a piece at a time."""
        data = b"".join(out)
        out.clear()
        while data:
            cut = self.random.choice([1, 7, 28, 300, 1 << 20])
            self.server.receive(data[:cut])
            data = data[cut:]
        self._to_client += self.server.greetings + self.server.sent
        self.server.greetings.clear()
        self.server.sent.clear()
        while self._to_client:
            cut = self.random.choice([1, 7, 20, 300, 1 << 20])
            count = self.buffer.feed(bytes(self._to_client[:cut]))
            del self._to_client[:count]
            if self.client is None:
                offer = self.handshake.advance()
                if offer is not None:
                    self.buffer.grow(BUFFER_BYTES)
                    self.client = ClientTransmission(offer, self.buffer)
                    self.offer = offer
            else:
                self.done |= {pending.cookie: pending for pending in self.client.finished()}

    def turn(self) -> None:
        """Carry requests over, perform some of those waiting, carry answers back."""
        self._cross(self.client.out)
        self.random.shuffle(self.waiting)
        for _ in range(self.random.randint(0, len(self.waiting))):
            self.server.perform([self.waiting.pop()])
        self.server.pump()
        self._cross(self.client.out)

    def settle(self) -> None:
        while self.client.pending:
            self.turn()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("block_status", [False, True])
def test_the_client_learns_what_the_server_offers(read_only, block_status):
    info = ExportInfo(
        "ä b/c", SIZE, read_only=read_only, block_status=block_status, min_block=512, max_block=1 << 20
    )
    offer = Link(1, info).offer
    assert (offer.size_bytes, offer.read_only, offer.structured) == (SIZE, read_only, True)
    assert (offer.min_block, offer.preferred_block, offer.max_block) == (512, 4096, 1 << 20)
    assert list(offer.contexts) == ["base:allocation"] * block_status


def test_an_unknown_export_is_not_found():
    with pytest.raises(NotFoundError, match="'other'"):
        Link(1, ExportInfo("a", SIZE), "other")
    with pytest.raises(NotFoundError, match="'other'"):
        Link(1, ExportInfo("a", SIZE), "other", contexts=())


OPERATION = st.tuples(
    st.sampled_from([nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM, nbd.CMD_BLOCK_STATUS]),
    st.integers(0, SIZE - 1),
    st.sampled_from([1, 3, 512, 4096, 16384, 40000, SIZE]),
)


@given(st.integers(0, 1 << 32), st.lists(OPERATION, max_size=20))
def test_one_at_a_time_equals_a_bytearray(seed, operations):
    link = Link(seed, ExportInfo("a", SIZE, block_status=True))
    model = bytearray(SIZE)
    for number, (command, start, wanted) in enumerate(operations):
        length = min(wanted, SIZE - start)
        end = start + length
        data = bytes([number + 1]) * length if command == nbd.CMD_WRITE else None
        pending = link.client.request(command, start, length, data=data)
        link.settle()
        assert link.done[pending.cookie] is pending
        assert pending.errno == 0
        if command == nbd.CMD_READ:
            assert pending.data == model[start:end]
        elif command == nbd.CMD_BLOCK_STATUS:
            assert b"".join(bytes([flags]) * size for size, flags in pending.extents[1]) == bytes(
                0 if byte else 3 for byte in model[start:end]
            ), "block status differs"
        else:
            model[start:end] = data or bytes(length)
    assert link.server.disk.content == model


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 24), min_size=1, max_size=40))
def test_pipelined_answers_in_any_order_find_their_requests(seed, slots):
    """Each slot is written at most once by us, so the order does not matter; reads of others see zeroes or it."""
    link = Link(seed, ExportInfo("a", SIZE))
    step = SIZE // 25
    reads, written = [], set()
    for slot in slots:
        if slot in written:
            reads.append((slot, link.client.request(nbd.CMD_READ, slot * step, step)))
        else:
            written.add(slot)
            link.client.request(nbd.CMD_WRITE, slot * step, step, data=bytes([slot + 1]) * step)
        if link.random.random() < 0.3:
            link.turn()
    bad = link.client.request(nbd.CMD_READ, SIZE, 1)
    link.settle()
    assert bad.errno == 22
    for slot, pending in reads:
        assert bytes(pending.data) in {bytes(step), bytes([slot + 1]) * step}
    for slot in written:
        assert link.server.disk.content[slot * step : (slot + 1) * step] == bytes([slot + 1]) * step


def test_goodbye_closes_without_error():
    link = Link(3, ExportInfo("a", SIZE))
    link.client.request(nbd.CMD_FLUSH, 0, 0)
    link.settle()
    link.client.disconnect()
    link.turn()
    assert link.server.closed
    assert link.server.error is None
