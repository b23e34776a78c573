"""The client's protocol against servers that are different, old, or wrong."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.errors import NotFoundError, ProtocolError, RephubError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import REPLIES_MAX, ClientHandshake, ServerOffer
from rephub.core.nbd.client_transmission import ClientTransmission
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer

GREETING = nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 3)
STRUCT, SET, GO = nbd.OPT_STRUCTURED_REPLY, nbd.OPT_SET_META_CONTEXT, nbd.OPT_GO


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return nbd.OPTION_REPLY_HEADER.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


EXPORT_INFO = reply(GO, nbd.REP_INFO, struct.pack(">HQH", 0, 4096, 3))


def shake(data: bytes, contexts=("base:allocation",)) -> tuple[ServerOffer | None, ClientHandshake]:
    buffer = ReceiveBuffer()
    handshake = ClientHandshake("vol", contexts, buffer)
    assert buffer.feed(data) == len(data)
    return handshake.advance(), handshake


def test_a_server_without_structured_replies():
    offer, _ = shake(
        GREETING + reply(STRUCT, nbd.REP_ERR_UNSUP, b"no") + EXPORT_INFO + reply(GO, nbd.REP_ACK)
    )
    assert offer == ServerOffer(4096, 3, structured=False, contexts={})
    assert offer.read_only


def test_a_server_without_contexts_or_that_refuses_them():
    for answer in (reply(SET, nbd.REP_ACK), reply(SET, nbd.REP_ERR_UNSUP), reply(SET, nbd.REP_ERR_INVALID)):
        offer, _ = shake(
            GREETING + reply(STRUCT, nbd.REP_ACK) + answer + EXPORT_INFO + reply(GO, nbd.REP_ACK)
        )
        assert offer.structured
        assert offer.contexts == {}


def test_contexts_by_name():
    offer, handshake = shake(
        GREETING
        + reply(STRUCT, nbd.REP_ACK)
        + reply(SET, nbd.REP_META_CONTEXT, b"\0\0\0\7base:allocation")
        + reply(SET, nbd.REP_META_CONTEXT, b"\0\0\0\5qemu:dirty-bitmap:b0")
        + reply(SET, nbd.REP_ACK)
        + EXPORT_INFO
        + reply(GO, nbd.REP_INFO, b"\0\x63unknown info")
        + reply(GO, nbd.REP_INFO, struct.pack(">HIII", 3, 512, 65536, 1 << 31))
        + reply(GO, nbd.REP_ACK),
        contexts=("base:allocation", "qemu:dirty-bitmap:b0"),
    )
    assert offer.contexts == {"base:allocation": 7, "qemu:dirty-bitmap:b0": 5}
    assert (offer.min_block, offer.preferred_block, offer.max_block) == (512, 65536, 32 << 20)
    assert b"qemu:dirty-bitmap:b0" in b"".join(handshake.out)


@pytest.mark.parametrize("flags", [1, 3])
def test_a_server_without_go_gets_export_name(flags):
    greeting = nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, flags)
    offer, handshake = shake(
        greeting
        + reply(STRUCT, nbd.REP_ERR_UNSUP)
        + reply(GO, nbd.REP_ERR_UNSUP)
        + struct.pack(">QH", 8192, 5)
        + (bytes(124) if flags == 1 else b"")
    )
    assert (offer.size_bytes, offer.flags) == (8192, 5)
    assert b"".join(handshake.out).endswith(nbd.OPTION_HEADER.pack(nbd.OPTION_MAGIC, 1, 3) + b"vol")


START = GREETING + reply(STRUCT, nbd.REP_ACK)
REFUSALS = [
    (START + reply(SET, nbd.REP_ERR_UNKNOWN), NotFoundError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ERR_UNKNOWN, b"gone"), NotFoundError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ERR_TLS_REQD), UnavailableError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ERR_SHUTDOWN), UnavailableError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ERR_POLICY, b"\xff"), UnavailableError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ERR_BLOCK_SIZE_REQD), ProtocolError),
    (b"SSH-2.0-OpenSSH_9.2p1 Debian", ProtocolError),
    (nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OLDSTYLE_MAGIC, 0), ProtocolError),
    (nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 0), ProtocolError),
    (GREETING + bytes(20), ProtocolError),
    (GREETING + reply(GO, nbd.REP_ACK), ProtocolError),
    (GREETING + nbd.OPTION_REPLY_HEADER.pack(nbd.OPTION_REPLY_MAGIC, STRUCT, 1, 1 << 31), ProtocolError),
    (START + reply(SET, nbd.REP_META_CONTEXT, b"\0") + reply(SET, nbd.REP_ACK), ProtocolError),
    (START + reply(SET, nbd.REP_META_CONTEXT, b"\0\0\0\1\xff") + reply(SET, nbd.REP_ACK), ProtocolError),
    (START + reply(SET, nbd.REP_META_CONTEXT, b"\0\0\0\1x") * REPLIES_MAX, ProtocolError),
    (START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_ACK), ProtocolError),
    (
        START + reply(SET, nbd.REP_ACK) + reply(GO, nbd.REP_INFO, b"\0\0short") + reply(GO, nbd.REP_ACK),
        ProtocolError,
    ),
    (
        START
        + reply(SET, nbd.REP_ACK)
        + EXPORT_INFO
        + reply(GO, nbd.REP_INFO, struct.pack(">HIII", 3, 3, 3, 3))
        + reply(GO, nbd.REP_ACK),
        ProtocolError,
    ),
]


IMPOSSIBLE = {
    "a minimum block beyond 64 KiB": reply(
        GO, nbd.REP_INFO, struct.pack(">HIII", 3, 1 << 26, 1 << 26, 1 << 27)
    ),
    "a minimum block of 2**31": reply(
        GO, nbd.REP_INFO, struct.pack(">HIII", 3, 1 << 31, 1 << 31, (1 << 32) - 1)
    ),
    "a size of 2**63": reply(GO, nbd.REP_INFO, struct.pack(">HQH", 0, 1 << 63, 1)),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_offer_that_cannot_be_is_refused(case):
    """With a minimum of 64 MiB nothing was left of the maximum, and each read and write failed with a ValueError."""
    with pytest.raises(ProtocolError):
        shake(START + reply(SET, nbd.REP_ACK) + EXPORT_INFO + IMPOSSIBLE[case] + reply(GO, nbd.REP_ACK))


def test_export_name_with_a_size_of_2_to_the_63_is_refused():
    refused = reply(STRUCT, nbd.REP_ERR_UNSUP) + reply(GO, nbd.REP_ERR_UNSUP)
    with pytest.raises(ProtocolError, match="bytes"):
        shake(GREETING + refused + struct.pack(">QH", 1 << 63, 1))


@pytest.mark.parametrize(
    "contexts",
    [
        [b"\0\0\0\1qemu:other"],
        [b"\0\0\0\1base:allocation", b"\0\0\0\2base:allocation"],
        [b"\0\0\0\1base:allocation", b"\0\0\0\1qemu:b"],
    ],
)
def test_contexts_that_were_not_asked_for_or_share_a_number_are_refused(contexts):
    given = b"".join(reply(SET, nbd.REP_META_CONTEXT, context) for context in contexts)
    with pytest.raises(ProtocolError, match="not asked for"):
        shake(START + given + reply(SET, nbd.REP_ACK), contexts=("base:allocation", "qemu:b"))


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_a_server_that_refuses_or_is_none(case):
    data, expected = REFUSALS[case]
    with pytest.raises(expected) as caught:
        shake(data)
    assert type(caught.value) is expected
    assert caught.value.message


# Transmission


class Talk:
    """A client in transmission, and what a server says."""

    def __init__(self, *, structured: bool = True) -> None:
        self.buffer = ReceiveBuffer(BUFFER_BYTES)
        offer = ServerOffer(1 << 30, 1, structured=structured, contexts={"base:allocation": 1, "qemu:b": 2})
        self.client = ClientTransmission(offer, self.buffer)

    def hear(self, data: bytes):
        done = []
        while data:
            data = data[self.buffer.feed(data) :]
            done += self.client.finished()
        return done


def chunk(kind: int, cookie: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    return nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, last, kind, cookie, len(payload)) + payload


def data_chunk(cookie: int, start: int, data: bytes, *, last: bool = False) -> bytes:
    return chunk(nbd.REPLY_OFFSET_DATA, cookie, struct.pack(">Q", start) + data, last=last)


def hole_chunk(cookie: int, start: int, length: int, *, last: bool = False) -> bytes:
    return chunk(nbd.REPLY_OFFSET_HOLE, cookie, struct.pack(">QI", start, length), last=last)


def simple(cookie: int, wire_errno: int = 0) -> bytes:
    return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, wire_errno, cookie)


def test_a_read_in_pieces_with_holes_in_any_order_interleaved():
    talk = Talk()
    one = talk.client.request(nbd.CMD_READ, 1000, 100_000)
    two = talk.client.request(nbd.CMD_READ, 0, 4)
    done = talk.hear(
        data_chunk(1, 71_000, b"c" * 30_000)
        + hole_chunk(1, 21_000, 50_000)
        + data_chunk(2, 0, b"wxyz", last=True)
        + data_chunk(1, 1000, b"a" * 20_000)
        + chunk(nbd.REPLY_NONE, 1)
    )
    assert done == [two, one]
    assert one.data == b"a" * 20_000 + bytes(50_000) + b"c" * 30_000
    assert two.data == b"wxyz"


def test_simple_replies_carry_data_where_structured_ones_were_not_negotiated():
    talk = Talk(structured=False)
    pending = talk.client.request(nbd.CMD_READ, 0, 50_000)
    bad = talk.client.request(nbd.CMD_READ, 0, 50_000)
    assert talk.hear(simple(2, 5) + simple(1) + b"x" * 50_000) == [bad, pending]
    assert bad.errno == errno.EIO
    assert pending.data == b"x" * 50_000


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (nbd.REPLY_ERROR, struct.pack(">IH", 28, 4) + b"full"),
        (nbd.REPLY_ERROR_OFFSET, struct.pack(">IH", 28, 4) + b"full" + bytes(8)),
        (nbd.REPLY_ERROR_BIT + 99, struct.pack(">IH", 28, 4) + b"full, and something new"),
    ],
)
def test_error_chunks(kind, payload):
    talk = Talk()
    pending = talk.client.request(nbd.CMD_READ, 0, 100)
    assert talk.hear(data_chunk(1, 0, b"x" * 10) + chunk(kind, 1, payload, last=False)) == []
    assert talk.hear(chunk(nbd.REPLY_NONE, 1)) == [pending]
    assert (pending.errno, pending.message) == (errno.ENOSPC, "full")


def test_the_first_of_several_errors_counts():
    talk = Talk()
    pending = talk.client.request(nbd.CMD_READ, 0, 100)
    first = chunk(nbd.REPLY_ERROR_OFFSET, 1, struct.pack(">IHQ", 28, 0, 5), last=False)
    talk.hear(first + chunk(nbd.REPLY_ERROR_OFFSET, 1, struct.pack(">IHQ", 5, 0, 50)))
    assert pending.errno == errno.ENOSPC


def test_an_unknown_errno_counts_as_einval():
    talk = Talk()
    pending = talk.client.request(nbd.CMD_FLUSH, 0, 0)
    talk.hear(simple(1, 4711))
    assert pending.errno == errno.EINVAL


@pytest.mark.parametrize("count", [1, 3, 131_072])
def test_block_status_of_two_contexts(count):
    """131,072 descriptors are what QEMU sends at most: a payload beyond our buffer."""
    talk = Talk()
    pending = talk.client.request(nbd.CMD_BLOCK_STATUS, 0, 1 << 20)
    extents = b"".join(struct.pack(">II", 4, n & 1) for n in range(count))
    done = talk.hear(
        chunk(nbd.REPLY_BLOCK_STATUS, 1, struct.pack(">I", 2) + extents, last=False)
        + chunk(nbd.REPLY_BLOCK_STATUS, 1, struct.pack(">III", 1, 1 << 20, 3))
    )
    assert done == [pending]
    assert pending.extents[1] == [(1 << 20, 3)]
    assert pending.extents[2] == [(4, n & 1) for n in range(count)]


def test_of_a_huge_block_status_1_mib_is_looked_at():
    """16 MiB of descriptors would be 2 million tuples; the client asks again for the rest."""
    talk = Talk()
    pending = talk.client.request(nbd.CMD_BLOCK_STATUS, 0, 1 << 30)
    extents = struct.pack(">IIII", 512, 0, 512, 3) * (1 << 19)
    assert talk.hear(chunk(nbd.REPLY_BLOCK_STATUS, 1, struct.pack(">I", 1) + extents)) == [pending]
    assert len(pending.extents[1]) == 131_072


WRONG = {
    "magic": bytes(32),
    "nobody asked (simple)": simple(9),
    "nobody asked (chunk)": chunk(nbd.REPLY_NONE, 9),
    "simple reply to a read": simple(1),
    "data before the start": data_chunk(1, 999, b"x"),
    "data beyond the end": data_chunk(1, 1099, b"xx"),
    "data far beyond": data_chunk(1, (1 << 64) - 1, b"xx"),
    "no data": data_chunk(1, 1000, b""),
    "data too short for an offset": chunk(nbd.REPLY_OFFSET_DATA, 1, b"1234567890")[:24] + bytes(20),
    "data for a write": data_chunk(2, 1000, b"x"),
    "too little data": data_chunk(1, 1000, b"x" * 99, last=True),
    "nothing at all": chunk(nbd.REPLY_NONE, 1),
    "overlap": data_chunk(1, 1000, b"x" * 60) + data_chunk(1, 1050, b"x" * 50, last=True),
    "overlap that adds up": data_chunk(1, 1000, b"x" * 50) + data_chunk(1, 1000, b"x" * 50, last=True),
    "hole outside": hole_chunk(1, 1000, 101),
    "empty hole": hole_chunk(1, 1000, 0),
    "malformed hole": chunk(nbd.REPLY_OFFSET_HOLE, 1, bytes(11)),
    "none that is not last": chunk(nbd.REPLY_NONE, 1, last=False),
    "none with payload": chunk(nbd.REPLY_NONE, 1, b"x"),
    "unknown type": chunk(77, 1, b"x"),
    "status for a read": chunk(nbd.REPLY_BLOCK_STATUS, 1, struct.pack(">III", 1, 100, 0)),
    "status cut": chunk(nbd.REPLY_BLOCK_STATUS, 3, struct.pack(">II", 1, 100)),
    "status without extents": chunk(nbd.REPLY_BLOCK_STATUS, 3, struct.pack(">I", 1)),
    "status with an empty extent": chunk(nbd.REPLY_BLOCK_STATUS, 3, struct.pack(">III", 1, 0, 0)),
    "context that was not selected": chunk(nbd.REPLY_BLOCK_STATUS, 3, struct.pack(">III", 9, 9, 0)),
    "context twice": chunk(nbd.REPLY_BLOCK_STATUS, 3, struct.pack(">III", 1, 9, 0), last=False) * 2,
    "error cut": chunk(nbd.REPLY_ERROR, 1, b"12345"),
    "error of 0": chunk(nbd.REPLY_ERROR, 1, struct.pack(">IH", 0, 0)),
    "error message too long": chunk(nbd.REPLY_ERROR, 1, struct.pack(">IH", 5, 3) + b"ab"),
    "error offset without offset": chunk(nbd.REPLY_ERROR_OFFSET, 1, struct.pack(">IH", 5, 8) + b"12345678"),
    "chunk of 4 GiB": nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, nbd.REPLY_BLOCK_STATUS, 3, (1 << 32) - 1),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_server_that_breaks_the_protocol_is_caught(case):
    talk = Talk()
    talk.client.request(nbd.CMD_READ, 1000, 100)
    talk.client.request(nbd.CMD_WRITE, 1000, 1, data=b"x")
    talk.client.request(nbd.CMD_BLOCK_STATUS, 0, 4096)
    with pytest.raises(ProtocolError):
        talk.hear(WRONG[case])


def test_structured_replies_that_were_not_negotiated_are_caught():
    talk = Talk(structured=False)
    talk.client.request(nbd.CMD_FLUSH, 0, 0)
    with pytest.raises(ProtocolError):
        talk.hear(chunk(nbd.REPLY_NONE, 1))


@given(st.binary(max_size=400), st.booleans())
def test_rubbish_never_does_more_than_a_protocol_error(rubbish, structured):
    talk = Talk(structured=structured)
    talk.client.request(nbd.CMD_READ, 0, 100)
    magic = nbd.STRUCTURED_REPLY_MAGIC.to_bytes(4, "big") + rubbish[:4] + (1).to_bytes(8, "big")
    for data in (rubbish, magic + rubbish[4:]):
        try:
            talk.hear(data)
        except ProtocolError:
            break


@given(st.binary(max_size=200))
def test_rubbish_in_a_handshake_is_an_error_of_ours(rubbish):
    with contextlib.suppress(RephubError):
        assert shake(GREETING + rubbish)[0] is None
