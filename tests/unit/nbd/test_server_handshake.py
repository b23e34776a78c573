"""Fixed newstyle negotiation, the server's side: what is offered, and every way to ask wrongly."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.options import option
from unit.nbd.wire import HELLO, STRUCTURED, ServerSession, answers, go, option_replies, request, set_context

A = ExportInfo("a", 1 << 20, description="the first", block_status=True)
B = ExportInfo("b", 2 << 20, read_only=True)


def opened() -> ServerSession:
    return ServerSession(A, B).receive(HELLO)


def reply_types(found: ServerSession) -> list[int]:
    return [reply_type for _, reply_type, _ in option_replies(bytes(found.greetings))]


def test_go_tells_size_flags_block_sizes_name_and_description():
    found = opened().receive(go("a", nbd.OPT_GO, nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE))
    replies = option_replies(bytes(found.greetings))
    assert [reply_type for _, reply_type, _ in replies] == [nbd.REP_INFO] * 4 + [nbd.REP_ACK]
    infos = {payload[:2]: payload[2:] for _, _, payload in replies[:-1]}
    size, flags = struct.unpack(">QH", infos[b"\0\0"])
    assert size == A.size_bytes
    assert flags == 1 | 4 | 8 | 32 | 64
    assert struct.unpack(">III", infos[b"\0\3"]) == (1, 4096, 32 << 20)
    assert infos[b"\0\1"] == b"a"
    assert infos[b"\0\2"] == b"the first"
    assert found.transmission is not None


def test_flags_follow_the_export_and_structured_replies():
    assert B.transmission_flags(structured=False) == 1 | 2 | 4 | 8
    full = ExportInfo("c", 1, can_fast_zero=True, multi_conn=True)
    assert full.transmission_flags(structured=True) == 1 | 4 | 8 | 32 | 64 | 128 | 256 | 2048
    none = ExportInfo("d", 1, can_trim=False, can_zero=False, can_flush=False, can_fua=False)
    assert none.transmission_flags(structured=False) == 1


def test_info_leaves_the_handshake_open():
    found = opened().receive(go("b", nbd.OPT_INFO) + go("a", nbd.OPT_INFO))
    assert found.transmission is None
    assert reply_types(found) == [nbd.REP_INFO, nbd.REP_INFO, nbd.REP_ACK] * 2


def test_list_names_every_export():
    found = opened().receive(option(nbd.OPT_LIST))
    replies = option_replies(bytes(found.greetings))
    assert [payload for _, kind, payload in replies if kind == nbd.REP_SERVER] == [
        b"\0\0\0\1athe first",
        b"\0\0\0\1b",
    ]
    assert replies[-1][1] == nbd.REP_ACK


@pytest.mark.parametrize("flags", [0, nbd.FLAG_NO_ZEROES])
def test_export_name(flags):
    found = ServerSession(A).receive(nbd.CLIENT_FLAGS.pack(flags) + option(nbd.OPT_EXPORT_NAME, b"a"))
    answer = bytes(found.greetings)[nbd.GREETING.size :]
    assert answer[:10] == struct.pack(">QH", A.size_bytes, A.transmission_flags(structured=False))
    assert answer[10:] == (b"" if flags else bytes(124))
    assert found.transmission is not None


def test_abort_is_acknowledged_and_closes():
    found = opened().receive(option(nbd.OPT_ABORT))
    assert found.closed
    assert found.error is None
    assert reply_types(found) == [nbd.REP_ACK]


def test_exports_may_come_and_go_during_the_handshake():
    found = opened().receive(go("late"))
    assert reply_types(found) == [nbd.REP_ERR_UNKNOWN]
    found.exports["late"] = (ExportInfo("late", 512), found)
    del found.exports["a"]
    assert reply_types(found.receive(go("a") + go("late")))[-1] == nbd.REP_ACK
    assert found.transmission is not None


# Contexts


@pytest.mark.parametrize(
    ("kind", "queries", "selected"),
    [
        (nbd.OPT_SET_META_CONTEXT, ["base:allocation"], True),
        (nbd.OPT_SET_META_CONTEXT, ["qemu:x", "base:allocation"], True),
        (nbd.OPT_SET_META_CONTEXT, ["base:"], False),
        (nbd.OPT_SET_META_CONTEXT, [], False),
        (nbd.OPT_SET_META_CONTEXT, ["qemu:dirty-bitmap:b0"], False),
        (nbd.OPT_LIST_META_CONTEXT, [], True),
        (nbd.OPT_LIST_META_CONTEXT, ["base:"], True),
        (nbd.OPT_LIST_META_CONTEXT, ["qemu:"], False),
    ],
)
def test_context_queries(kind, queries, selected):
    found = opened().receive(STRUCTURED + set_context("a", *queries, kind=kind))
    expected = [nbd.REP_ACK] + [nbd.REP_META_CONTEXT] * selected + [nbd.REP_ACK]
    assert reply_types(found) == expected
    found.receive(go("a") + request(nbd.CMD_BLOCK_STATUS, 1, 0, 4096))
    chosen = selected and kind == nbd.OPT_SET_META_CONTEXT
    assert answers(bytes(found.sent))[1].errno == (0 if chosen else 22)


def test_contexts_need_structured_replies():
    assert reply_types(opened().receive(set_context("a", "base:allocation"))) == [nbd.REP_ERR_INVALID]


def test_an_export_without_block_status_has_no_context():
    found = opened().receive(STRUCTURED + set_context("b", "base:allocation"))
    assert reply_types(found) == [nbd.REP_ACK, nbd.REP_ACK]


@pytest.mark.parametrize(
    "then",
    [
        set_context("a"),
        set_context("nope", "base:allocation"),
        option(nbd.OPT_SET_META_CONTEXT, b"\0\0\0\1"),
        set_context("b", "base:allocation"),
    ],
)
def test_a_later_selection_replaces_even_when_it_fails(then):
    found = opened().receive(STRUCTURED + set_context("a", "base:allocation") + then + go("a"))
    assert answers(bytes(found.receive(request(nbd.CMD_BLOCK_STATUS, 9, 0, 1)).sent))[9].errno == 22


def test_a_context_counts_only_for_the_export_it_was_selected_for():
    other = ExportInfo("c", 1 << 20, block_status=True)
    asked = request(nbd.CMD_BLOCK_STATUS, 1, 0, 1)
    for name, expected in (("a", 22), ("c", 0)):
        found = ServerSession(A, other).receive(HELLO + STRUCTURED + set_context("c", "base:allocation"))
        assert answers(bytes(found.receive(go(name) + asked).sent))[1].errno == expected


# Wrong questions: an error reply, and the handshake goes on

BAD_OPTIONS = {
    "unknown option": (option(77, b"x" * 99), nbd.REP_ERR_UNSUP),
    "tls": (option(5), nbd.REP_ERR_UNSUP),
    "extended headers": (option(11), nbd.REP_ERR_UNSUP),
    "list with data": (option(nbd.OPT_LIST, b"x"), nbd.REP_ERR_INVALID),
    "structured with data": (option(nbd.OPT_STRUCTURED_REPLY, b"x"), nbd.REP_ERR_INVALID),
    "unknown export": (go("nope"), nbd.REP_ERR_UNKNOWN),
    "empty name": (go(""), nbd.REP_ERR_UNKNOWN),
    "go empty": (option(nbd.OPT_GO), nbd.REP_ERR_INVALID),
    "name length 2**32-1": (option(nbd.OPT_GO, b"\xff\xff\xff\xffa\0\0"), nbd.REP_ERR_INVALID),
    "name longer than option": (option(nbd.OPT_GO, b"\0\0\0\2a\0\0"), nbd.REP_ERR_INVALID),
    "name beyond 4096": (go("n" * 4097), nbd.REP_ERR_TOO_BIG),
    "infos missing": (option(nbd.OPT_INFO, b"\0\0\0\1a\0\2\0\0"), nbd.REP_ERR_INVALID),
    "infos too many": (option(nbd.OPT_INFO, b"\0\0\0\1a\0\0\0\0"), nbd.REP_ERR_INVALID),
    "NUL in name": (option(nbd.OPT_GO, b"\0\0\0\2a\0\0\0"), nbd.REP_ERR_INVALID),
    "not UTF-8": (option(nbd.OPT_GO, b"\0\0\0\1\xff\0\0"), nbd.REP_ERR_INVALID),
    "context query cut": (option(nbd.OPT_SET_META_CONTEXT, b"\0\0\0\1a\0\0\0\1"), nbd.REP_ERR_INVALID),
    "2**32-1 queries": (option(nbd.OPT_SET_META_CONTEXT, b"\0\0\0\1a\xff\xff\xff\xff"), nbd.REP_ERR_INVALID),
    "257 queries": (set_context("a", *["base:allocation"] * 257), nbd.REP_ERR_TOO_BIG),
    "context query too long": (set_context("a", "q" * 4097), nbd.REP_ERR_TOO_BIG),
    "64 KiB of rubbish": (option(nbd.OPT_GO, b"\1" * 65536), nbd.REP_ERR_INVALID),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_answered_and_the_handshake_goes_on(case):
    data, expected = BAD_OPTIONS[case]
    found = opened().receive(STRUCTURED + data)
    assert reply_types(found) == [nbd.REP_ACK, expected]
    assert found.receive(go("a")).transmission is not None


def test_the_longest_name_works():
    name = "ü" * 2048
    found = ServerSession(ExportInfo(name, 1)).receive(HELLO + go(name, nbd.OPT_GO, nbd.INFO_NAME))
    assert found.transmission is not None


# Wrong streams: the connection ends

BROKEN = {
    "client flags": nbd.CLIENT_FLAGS.pack(4),
    "option magic": HELLO + b"X" * 16,
    "option of 64 KiB and one": HELLO + nbd.OPTION_HEADER.pack(nbd.OPTION_MAGIC, 77, 65537),
    "option of 2**31": HELLO + nbd.OPTION_HEADER.pack(nbd.OPTION_MAGIC, nbd.OPT_GO, 1 << 31),
    "unknown EXPORT_NAME": HELLO + option(nbd.OPT_EXPORT_NAME, b"nope"),
    "EXPORT_NAME beyond 4096": HELLO + option(nbd.OPT_EXPORT_NAME, b"n" * 4097),
    "EXPORT_NAME with NUL": HELLO + option(nbd.OPT_EXPORT_NAME, b"a\0"),
    "65 options": HELLO + option(nbd.OPT_LIST) * 65,
    "options after GO": HELLO + go("a") + option(nbd.OPT_LIST) + bytes(64),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_stream_ends_the_connection(case):
    found = ServerSession(A).receive(BROKEN[case])
    assert found.closed
    assert found.error is not None


CONVERSATION = (
    HELLO
    + STRUCTURED
    + option(nbd.OPT_LIST)
    + BAD_OPTIONS["NUL in name"][0]
    + set_context("a", "base:allocation")
    + go("b", nbd.OPT_INFO)
    + go("a")
    + request(nbd.CMD_FLUSH, 1)
    + request(nbd.CMD_DISC, 2)
)


def test_every_cut_of_a_handshake_gives_the_same_answers():
    """Two pieces, cut at each byte; the first alone must never fail or finish early."""
    whole = ServerSession(A, B).receive(CONVERSATION)
    assert whole.closed
    for cut in range(len(CONVERSATION)):
        found = ServerSession(A, B).receive(CONVERSATION[:cut])
        assert not found.closed
        found.receive(CONVERSATION[cut:])
        assert (found.greetings, found.sent, found.closed) == (whole.greetings, whole.sent, True)


@given(st.binary(max_size=300))
def test_rubbish_after_the_hello_never_does_more_than_close(rubbish):
    found = ServerSession(A).receive(HELLO).receive(rubbish)
    assert found.closed or found.error is None


@given(st.sampled_from([1, 3, 6, 7, 8, 9, 10, 11, 99]), st.binary(max_size=80))
def test_any_data_in_any_option_is_answered_or_closes(kind, data):
    found = ServerSession(A).receive(HELLO + STRUCTURED).receive(option(kind, data))
    assert found.closed or found.transmission or len(reply_types(found)) >= 2
