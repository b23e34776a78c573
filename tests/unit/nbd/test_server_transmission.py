"""The transmission phase, the server's side: who is refused and why, limits, and that the stream stays in step."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import ExportInfo, Request
from unit.nbd.wire import ServerSession, answers, request, session, write

SIZE = 1 << 20
INFO = ExportInfo("a", SIZE, block_status=True)
MIB = 1 << 20


def only(found: ServerSession, cookie: int = 1) -> int:
    """Errno of the one answer."""
    replies = answers(bytes(found.sent))
    assert list(replies) == [cookie]
    return replies[cookie].errno


REFUSED = {
    "unknown command": (INFO, request(99, 1), 22),
    "cache": (INFO, request(5, 1, 0, 512), 22),
    "resize": (INFO, request(8, 1, 0, 512), 22),
    "unknown flag": (INFO, request(nbd.CMD_READ, 1, 0, 512, flags=1 << 7), 22),
    "no-hole on write": (INFO, write(1, 0, b"x", nbd.CMD_FLAG_NO_HOLE), 22),
    "df on write": (INFO, write(1, 0, b"x", nbd.CMD_FLAG_DF), 22),
    "req-one on read": (INFO, request(nbd.CMD_READ, 1, 0, 512, flags=nbd.CMD_FLAG_REQ_ONE), 22),
    "fast zero": (INFO, request(nbd.CMD_WRITE_ZEROES, 1, 0, 512, flags=nbd.CMD_FLAG_FAST_ZERO), 95),
    "payload length flag": (INFO, request(nbd.CMD_BLOCK_STATUS, 1, 0, 512, flags=1 << 5), 22),
    "flush with extent": (INFO, request(nbd.CMD_FLUSH, 1, 0, 1), 22),
    "read of nothing": (INFO, request(nbd.CMD_READ, 1), 22),
    "write of nothing": (INFO, write(1, 0, b""), 22),
    "zero of nothing": (INFO, request(nbd.CMD_WRITE_ZEROES, 1), 22),
    "status of nothing": (INFO, request(nbd.CMD_BLOCK_STATUS, 1), 22),
    "read beyond the end": (INFO, request(nbd.CMD_READ, 1, SIZE - 1, 2), 22),
    "read far beyond": (INFO, request(nbd.CMD_READ, 1, (1 << 64) - 1, 512), 22),
    "read of 2**32-1": (ExportInfo("a", 1 << 40), request(nbd.CMD_READ, 1, 0, (1 << 32) - 1), 22),
    "read of 32 MiB and one": (ExportInfo("a", 1 << 40), request(nbd.CMD_READ, 1, 0, 32 * MIB + 1), 22),
    "write beyond the end": (INFO, write(1, SIZE - 1, b"xx"), 28),
    "write wraps": (INFO, write(1, (1 << 64) - 1, b"xx"), 28),
    "zero beyond the end": (INFO, request(nbd.CMD_WRITE_ZEROES, 1, 0, SIZE + 1), 28),
    "trim beyond the end": (INFO, request(nbd.CMD_TRIM, 1, 0, SIZE + 1), 22),
    "status beyond the end": (INFO, request(nbd.CMD_BLOCK_STATUS, 1, SIZE, 1), 22),
    "write, read-only": (ExportInfo("a", SIZE, read_only=True), write(1, 0, b"x" * 99), 1),
    "write beyond, read-only": (ExportInfo("a", SIZE, read_only=True), write(1, SIZE, b"x" * 99), 1),
    "trim, read-only": (ExportInfo("a", SIZE, read_only=True), request(nbd.CMD_TRIM, 1, 0, 512), 1),
    "zero, read-only": (ExportInfo("a", SIZE, read_only=True), request(nbd.CMD_WRITE_ZEROES, 1, 0, 512), 1),
    "unaligned start": (ExportInfo("a", SIZE, min_block=512), write(1, 1, b"x" * 512), 22),
    "unaligned length": (ExportInfo("a", SIZE, min_block=512), request(nbd.CMD_READ, 1, 0, 511), 22),
    "no fua": (ExportInfo("a", SIZE, can_fua=False), write(1, 0, b"x", nbd.CMD_FLAG_FUA), 22),
    "no trim": (ExportInfo("a", SIZE, can_trim=False), request(nbd.CMD_TRIM, 1, 0, 512), 22),
    "no zero": (ExportInfo("a", SIZE, can_zero=False), request(nbd.CMD_WRITE_ZEROES, 1, 0, 512), 22),
    "no flush": (ExportInfo("a", SIZE, can_flush=False), request(nbd.CMD_FLUSH, 1), 22),
    "no status": (ExportInfo("a", SIZE), request(nbd.CMD_BLOCK_STATUS, 1, 0, 512), 22),
    "beyond max_block": (ExportInfo("a", SIZE, max_block=4096), write(1, 0, b"x" * 4097), 22),
}


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_request_has_its_errno_and_the_stream_stays_in_step(case, structured):
    info, data, expected = REFUSED[case]
    found = session(info, structured=structured).receive(data)
    assert only(found) == expected
    assert found.disk.seen == []
    found.receive(request(nbd.CMD_READ, 2, 0, 512))
    assert answers(bytes(found.sent), {2: 512})[2].data == bytes(512)


def test_df_needs_structured_replies():
    asked = request(nbd.CMD_READ, 1, 0, 512, flags=nbd.CMD_FLAG_DF)
    assert only(session(INFO).receive(asked)) == 0
    assert only(session(INFO, structured=False).receive(asked)) == 22


@pytest.mark.parametrize("command", [nbd.CMD_READ, nbd.CMD_FLUSH, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
def test_fua_is_accepted_on_all_commands(command):
    length = 0 if command == nbd.CMD_FLUSH else 512
    found = session(INFO).receive(request(command, 1, 0, length, flags=nbd.CMD_FLAG_FUA))
    assert only(found) == 0
    assert found.disk.seen[0].flags == nbd.CMD_FLAG_FUA


def test_fast_zero_where_it_is_offered():
    info = ExportInfo("a", SIZE, can_fast_zero=True)
    flags = nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE
    assert only(session(info).receive(request(nbd.CMD_WRITE_ZEROES, 1, 0, 512, flags=flags))) == 0


def test_a_write_of_32_mib_is_accepted_and_one_byte_more_refused():
    info = ExportInfo("a", 64 * MIB)
    payload = bytes(range(256)) * (MIB // 8)
    found = session(info).receive(write(1, 5, payload) + write(2, 0, payload + b"x") + request(3, 3))
    replies = answers(bytes(found.sent))
    assert {cookie: answer.errno for cookie, answer in replies.items()} == {1: 0, 2: 22, 3: 0}
    assert found.disk.content[5 : 5 + 32 * MIB] == payload
    assert found.disk.content[:5] == bytes(5)


def test_the_payload_of_a_refused_write_takes_no_memory():
    """4 GiB - 1 announced: nothing is kept but the buffer; the answer comes at the end of the payload."""
    found = session(INFO).receive(request(nbd.CMD_WRITE, 1, 0, (1 << 32) - 1))
    piece = bytes(MIB)
    for _ in range(64):
        found.receive(piece)
    assert found.buffer.target is None
    assert len(found.buffer.view) == MIB
    assert found.sent == b""


def test_requests_stop_at_the_limit_of_bytes_in_flight():
    waiting: list[Request] = []
    found = session(ExportInfo("a", 1 << 40), handle=lambda _, items: waiting.extend(items))
    found.receive(b"".join(request(nbd.CMD_READ, n, 0, 8 * MIB) for n in range(1, 9)))
    assert [item.cookie for item in waiting] == [1, 2, 3, 4]
    assert found.transmission.blocked
    found.transmission.reply(2, errno.EIO)
    found.pump()
    assert [item.cookie for item in waiting] == [1, 2, 3, 4, 5]
    assert found.transmission.in_flight_bytes == 32 * MIB


def test_requests_stop_at_the_limit_of_requests_in_flight():
    waiting: list[Request] = []
    found = session(INFO, handle=lambda _, items: waiting.extend(items))
    found.receive(b"".join(request(nbd.CMD_FLUSH, n) for n in range(3000)))
    assert len(waiting) == nbd.IN_FLIGHT_REQUESTS_MAX
    for item in waiting[:10]:
        found.transmission.reply(item.cookie)
    found.pump()
    assert len(waiting) == nbd.IN_FLIGHT_REQUESTS_MAX + 10


def test_block_status_counts_so_that_few_are_in_flight():
    waiting: list[Request] = []
    found = session(INFO, handle=lambda _, items: waiting.extend(items))
    found.receive(b"".join(request(nbd.CMD_BLOCK_STATUS, n, 0, 512) for n in range(100)))
    assert len(waiting) == 32


def test_goodbye_waits_for_what_is_in_flight():
    waiting: list[Request] = []
    found = session(INFO, handle=lambda _, items: waiting.extend(items))
    found.receive(request(nbd.CMD_READ, 1, 0, 4) + request(nbd.CMD_DISC, 2) + request(nbd.CMD_FLUSH, 3))
    assert not found.closed
    found.transmission.reply_data(1, 0, [b"abcd"])
    found.pump()
    assert found.closed
    assert found.error is None
    assert answers(bytes(found.sent))[1].data == b"abcd"
    assert [item.cookie for item in waiting] == [1]


def test_a_bad_magic_ends_the_connection_after_what_came_before():
    found = session(INFO).receive(write(1, 0, b"x") + request(nbd.CMD_FLUSH, 2, magic=7) + write(3, 0, b"y"))
    assert found.error is not None
    assert found.closed
    assert [item.cookie for item in found.disk.seen] == [1]


def test_a_cookie_that_is_in_flight_ends_the_connection():
    found = session(INFO, handle=lambda *_: None)
    found.receive(request(nbd.CMD_FLUSH, 7) + request(nbd.CMD_FLUSH, 7))
    assert "ambiguous" in found.error.message


def test_a_cookie_may_be_used_again_once_answered():
    found = session(INFO)
    for _ in range(3):
        found.receive(request(nbd.CMD_FLUSH, 7))
        assert only(found, 7) == 0
        found.sent.clear()


def test_wrong_answers_of_a_handler_raise_and_send_nothing():
    found = session(INFO, handle=lambda *_: None)
    found.receive(request(nbd.CMD_READ, 1, 0, 4) + request(nbd.CMD_BLOCK_STATUS, 2, 0, 4))
    with pytest.raises(ValueError, match="3 bytes"):
        found.transmission.reply_data(1, 0, [b"abc"])
    with pytest.raises(ValueError, match="0 extents"):
        found.transmission.reply_extents(2, [])
    with pytest.raises(KeyError):
        found.transmission.reply(3)
    assert found.transmission.out == []
    found.transmission.reply(1, errno.EIO)
    with pytest.raises(KeyError):
        found.transmission.reply(1)


@pytest.mark.parametrize(
    ("host", "wire"),
    [
        (errno.EROFS, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.ETIMEDOUT, 5),
    ],
)
def test_host_errnos_are_mapped(host, wire):
    found = session(INFO, handle=lambda s, items: s.transmission.reply(items[0].cookie, host))
    assert only(found.receive(request(nbd.CMD_FLUSH, 1))) == wire


COMMANDS = st.one_of(
    st.tuples(
        st.just(nbd.CMD_WRITE), st.integers(0, SIZE), st.sampled_from([0, 1, 511, 4096, 16383, 20000, 70000])
    ),
    st.tuples(
        st.sampled_from([0, 3, 4, 5, 6, 7, 99]), st.integers(0, SIZE), st.sampled_from([0, 1, 512, 20000])
    ),
)


def stream_of(commands) -> bytes:
    data = bytearray()
    for cookie, ((command, start, length), flags) in enumerate(commands):
        payload = bytes([cookie % 251 + 1]) * length if command == nbd.CMD_WRITE else b""
        data += request(command, cookie, start, length, payload, flags)
    return bytes(data)


@given(
    st.lists(st.tuples(COMMANDS, st.sampled_from([0, 0, 0, 1, 2, 8])), min_size=1, max_size=12),
    st.lists(st.integers(1, 30000), max_size=40),
    st.sampled_from([b"", request(nbd.CMD_DISC, 1000), b"\0" * 28]),
)
def test_any_fragmentation_gives_the_same_result(commands, cuts, end):
    """Same requests, same disk, same answers, however the stream was cut."""
    stream = stream_of(commands) + end
    whole = session(INFO).receive(stream)
    pieces = session(INFO)
    at = 0
    for cut in cuts:
        pieces.receive(stream[at : at + cut])
        at += cut
    pieces.receive(stream[at:])
    reads = {n: length for n, ((command, _, length), _) in enumerate(commands) if command == nbd.CMD_READ}
    assert pieces.disk.seen == whole.disk.seen
    assert pieces.disk.content == whole.disk.content
    assert answers(bytes(pieces.sent), reads) == answers(bytes(whole.sent), reads)
    assert (pieces.closed, pieces.error is None) == (whole.closed, whole.error is None)
    assert whole.closed == bool(end)


def test_byte_by_byte_gives_the_same_result():
    commands = [((nbd.CMD_WRITE, 10, 17000), 0), ((nbd.CMD_WRITE, SIZE, 300), 0), ((nbd.CMD_READ, 5, 40), 0)]
    stream = stream_of(commands)
    whole, bytewise = session(INFO).receive(stream), session(INFO)
    for byte in stream:
        bytewise.receive(bytes([byte]))
    assert bytewise.disk.content == whole.disk.content
    assert answers(bytes(bytewise.sent)) == answers(bytes(whole.sent))
