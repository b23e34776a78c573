"""What is fuzzed: each target takes bytes, and lets nothing out but by a bug.

A target catches exactly the errors that its subject documents. Any other exception, an assertion, a hang or memory beyond
the limit is a finding. `SEEDS` are valid inputs to begin with. `run.py` drives them with coverage feedback,
`tests/unit/fuzz/test_targets.py` replays what was found once.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c

from fuzz import state_files
from journal_model import JournalModel
from rephub.agent.guest_agent import GuestAgent
from rephub.core.bitmap.redis import regions_of
from rephub.core.codec.control import decode_control, encode_control
from rephub.core.codec.journal import check, decode_journal, encode_journal, peek
from rephub.core.codec.registry import PREFIX_BYTES, REGISTRY
from rephub.core.errors import IntegrityError, ProtocolError, RephubError, UnavailableError, UsageError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd.client_handshake import ClientHandshake, ServerOffer
from rephub.core.nbd.client_transmission import ClientTransmission
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.receiving import BUFFER_BYTES, ReceiveBuffer
from rephub.core.nbd.uri import parse_uri
from rephub.projections.catalogue import Catalogue
from rephub.projections.head import Head
from rephub.projections.journal_fold import FoldState, JournalFold, fresh_state
from rephub.projections.section import HEADER, decoded, encoded
from rephub.schemas import events, journal
from unit.nbd.wire import HELLO, STRUCTURED, ServerSession, go, request, session, set_context, write

SIZE = 1 << 16
INFO = ExportInfo("vol", SIZE, description="a volume", block_status=True)
GOLDEN = Path(__file__).parent.parent / "golden"


class Target(NamedTuple):
    """One thing to fuzz."""

    run: Callable[[bytes], Any]
    seeds: list[bytes]


# NBD


def _pieces(data: bytes) -> list[bytes]:
    """The input cut as its first byte says: fragmentation must not matter."""
    if not data:
        return []
    cut = data[0] or len(data)
    return [data[at : at + cut] for at in range(1, len(data), cut)]


def _converse(server: ServerSession, data: bytes) -> None:
    for piece in _pieces(data):
        server.receive(piece)
        if server.closed:
            break
    transmission = server.transmission
    assert len(server.buffer.view) <= BUFFER_BYTES
    assert (
        transmission is None
        or transmission.in_flight_bytes <= nbd.IN_FLIGHT_BYTES_MAX + nbd.PAYLOAD_BYTES_MAX
    )
    assert all(item.start + item.length <= SIZE for item in server.disk.seen)
    server.buffer.release()  # the session is a cycle: its memory would wait for the garbage collector


def nbd_server_handshake(data: bytes) -> None:
    """A stranger before GO; `receive` keeps a ProtocolError as the server's shell does."""
    _converse(ServerSession(INFO).receive(HELLO), data)


def nbd_server_commands(data: bytes) -> None:
    """A stranger after GO."""
    structured = not data or bool(data[0] & 1)
    _converse(session(INFO, structured=structured), data)


def nbd_client_handshake(data: bytes) -> None:
    """A bad server, from its first byte on."""
    buffer = ReceiveBuffer()
    handshake = ClientHandshake("vol", (nbd.BASE_ALLOCATION, "qemu:dirty-bitmap:b"), buffer)
    with contextlib.suppress(RephubError):
        for piece in _pieces(data):
            rest = piece
            while rest:
                count = buffer.feed(rest)
                assert count, "the buffer is full and nothing is parsed"
                rest = rest[count:]
                offer = handshake.advance()
                if offer is not None:
                    assert 0 <= offer.size_bytes < 1 << 63
                    assert 0 < offer.min_block <= offer.max_block <= nbd.PAYLOAD_BYTES_MAX
                    return


def nbd_client_answers(data: bytes) -> None:
    """A bad server, after its handshake, asked for one of each."""
    buffer = ReceiveBuffer(BUFFER_BYTES)
    structured = not data or bool(data[0] & 1)
    contexts = {nbd.BASE_ALLOCATION: 1, "qemu:dirty-bitmap:b": 2}
    client = ClientTransmission(ServerOffer(SIZE, 1, structured=structured, contexts=contexts), buffer)
    client.request(nbd.CMD_READ, 0, 100)
    client.request(nbd.CMD_WRITE, 0, 1, data=b"x")
    client.request(nbd.CMD_BLOCK_STATUS, 0, SIZE)
    client.request(nbd.CMD_READ, 512, 64 << 10)
    with contextlib.suppress(ProtocolError):
        for piece in _pieces(data):
            rest = piece
            while rest:
                count = buffer.feed(rest)
                assert count, "the buffer is full and nothing is parsed"
                rest = rest[count:]
                for pending in client.finished():
                    assert pending.errno or pending.data is None or len(pending.data) == pending.length


def nbd_uri(data: bytes) -> None:
    """An NBD URI of an operator, or of an event."""
    with contextlib.suppress(UsageError):
        at = parse_uri(data.decode(errors="surrogateescape"))
        assert at.path is not None or at.host


# Journal and control log


def _with_prefix(kinds: tuple[str, ...], data: bytes) -> bytes | None:
    """The input as the datum of the schema that its first byte chooses; journal events get the crc that is due."""
    entries = [entry for kind in kinds for entry in REGISTRY.entries(kind)]
    if not data:
        return None
    entry, body = entries[data[0] % len(entries)], data[1:]
    if entry.kind == "journal":
        return entry.prefix + crc32c(body, entry.prefix_crc).to_bytes(4, "big") + body
    return entry.prefix + body


def journal_raw(data: bytes) -> None:
    """A record of the journal as it comes."""
    for read in (check, peek, decode_journal):
        with contextlib.suppress(IntegrityError):
            read(data)


def journal_event(data: bytes) -> None:
    """An event with a right crc: decoded, encoded again, folded from several states."""
    value = _with_prefix(("journal",), data)
    if value is None:
        return
    try:
        event = decode_journal(value)
    except IntegrityError as error:
        event = error
    else:
        head = peek(value)
        assert (head.epoch, head.seq) == (event.epoch, event.seq)
    attached = fresh_state(-1, SIZE, epoch=1)
    attached.attachment_id, attached.gap_first_offset = bytes(16).hex(), None
    for state in (fresh_state(-1, SIZE), fresh_state(-1, SIZE, joining=True), attached):
        fold = JournalFold(state)
        fold.feed(0, event)
        assert FoldState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def control_record(data: bytes) -> None:
    """A command or event, and what it does to the catalogue: the fold never stops."""
    value = _with_prefix(("commands", "events"), data)
    for candidate in (data, value or b""):
        try:
            record = decode_control(candidate)
        except IntegrityError:
            continue
        assert decode_control(encode_control(record)) == record
        if isinstance(record, events.RECORDS):
            catalogue = Catalogue()
            catalogue.apply(0, record)
            assert Catalogue.from_dict(json.loads(catalogue.to_json())).to_json() == catalogue.to_json()


# Redis, disk, guest


def bitmap(data: bytes) -> None:
    """The bits of a volume's regions, as some Redis has them."""
    regions = regions_of(data)
    if data and data[0] & 0x80:
        assert regions is not None
        assert len(regions) == int.from_bytes(data, "big").bit_count() - 1
        assert all(0 <= region < len(data) * 8 - 1 for region in regions)
    else:
        assert regions is None


def state_file(data: bytes) -> None:
    """A file of the state directory, chosen by the first byte, with the rest as its content."""
    if data:
        readers = list(state_files.READERS.values())
        with tempfile.TemporaryDirectory(dir=_FAST) as directory:
            readers[data[0] % len(readers)](Path(directory), data[1:])


def section(data: bytes) -> None:
    """A section of a diskbox's index, its crc put right: what is decoded is whole, and can be looked up in."""
    if len(data) < HEADER.size:
        return
    magic, _, length = HEADER.unpack_from(data)
    rest = data[HEADER.size :]
    with contextlib.suppress(ValueError):
        found = decoded(HEADER.pack(magic, crc32c(rest), length) + rest)
        assert found.first_offset <= found.last_offset
        if found.segment is not None:
            list(found.segment.rows(0, 1 << 30, -1, found.last_offset))


_FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


def guest_agent(data: bytes) -> None:
    """A line from inside a guest."""
    with contextlib.suppress(ProtocolError, UnavailableError):
        GuestAgent("/nowhere")._parse("guest-fsfreeze-freeze", data)


# Seeds


def _golden(*kinds: str) -> list[bytes]:
    """The golden records behind the index that chooses their schema; journal events without prefix and crc."""
    entries = [entry for kind in kinds for entry in REGISTRY.entries(kind)]
    found = []
    for path in sorted(path for kind in kinds for path in (GOLDEN / kind).glob("*.json")):
        for record in json.loads(path.read_text())["records"]:
            value = bytes.fromhex(record["value"])
            index = next(index for index, entry in enumerate(entries) if value.startswith(entry.prefix))
            body = PREFIX_BYTES + (4 if entries[index].kind == "journal" else 0)
            found.append(bytes([index]) + value[body:])
    return found


def _raw_events() -> list[bytes]:
    event = journal.Write(
        crc32c=bytes(4),
        epoch=1,
        attachment_id=bytes(16),
        seq=0,
        captured_at=1,
        start=0,
        flags=0,
        data=b"data",
    )
    return [encode_journal(event)]


def _state_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        good = state_files.good(Path(directory))
    return [bytes([index]) + good[name] for index, name in enumerate(state_files.READERS)]


def _sections() -> list[bytes]:
    model = JournalModel()
    head = Head(fresh_state(-1, model.size), -1)
    found = []
    model.start_epoch()
    for _ in range(2):
        model.checkpoint("c")
        model.some_writes(3)
        for offset in range(head.offset + 1, len(model.values)):
            head.take(offset, decode_journal(model.values[offset]), len(model.values[offset]))
        cut = head.cut()
        assert cut is not None
        found.append(encoded(cut))
    return found


def _server_says() -> bytes:
    asked = HELLO + STRUCTURED + set_context("vol", nbd.BASE_ALLOCATION)
    return bytes(ServerSession(INFO).receive(asked + go("vol", nbd.OPT_GO, nbd.INFO_BLOCK_SIZE)).greetings)


def _chunk(kind: int, cookie: int, payload: bytes) -> bytes:
    return nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, kind, cookie, len(payload)) + payload


_COMMANDS = (
    write(1, 4096, b"x" * 40)
    + request(nbd.CMD_READ, 2, 4096, 64)
    + request(nbd.CMD_WRITE_ZEROES, 3, 0, 512)
    + request(nbd.CMD_BLOCK_STATUS, 4, 0, 8192)
    + request(nbd.CMD_TRIM, 5, 0, 512)
    + request(nbd.CMD_FLUSH, 6)
    + request(nbd.CMD_DISC, 7)
)
_ANSWERS = (
    _chunk(nbd.REPLY_OFFSET_DATA, 1, bytes(8) + b"x" * 100)
    + nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 2)
    + _chunk(nbd.REPLY_BLOCK_STATUS, 3, b"\0\0\0\1" + b"\0\0\x10\0\0\0\0\3")
    + _chunk(nbd.REPLY_ERROR, 4, b"\0\0\0\5\0\2no")
)

TARGETS = {
    "nbd-server-handshake": Target(
        nbd_server_handshake,
        [
            b"\0" + STRUCTURED + set_context("vol", nbd.BASE_ALLOCATION) + go("vol") + _COMMANDS,
            b"\7" + go("vol", nbd.OPT_INFO, nbd.INFO_NAME, nbd.INFO_DESCRIPTION) + go("vol"),
        ],
    ),
    "nbd-server-commands": Target(nbd_server_commands, [b"\0" + _COMMANDS, b"\x11" + _COMMANDS]),
    "nbd-client-handshake": Target(nbd_client_handshake, [b"\0" + _server_says(), b"\5" + _server_says()]),
    "nbd-client-answers": Target(nbd_client_answers, [b"\x0b" + _ANSWERS, b"\xff" + _ANSWERS]),
    "nbd-uri": Target(nbd_uri, [b"nbd+unix:///vol?socket=/run/s", b"nbd://[::1]:10809/vol%20x"]),
    "journal-raw": Target(journal_raw, _raw_events()),
    "journal-event": Target(journal_event, _golden("journal")),
    "control-record": Target(control_record, _golden("commands", "events")),
    "bitmap": Target(bitmap, [b"\x80", b"\xc0" + bytes(100) + b"\x01", b"\xff" * 64]),
    "state-file": Target(state_file, _state_files()),
    "section": Target(section, _sections()),
    "guest-agent": Target(guest_agent, [b'{"return": 3}', b'{"error": {"class": "G", "desc": "no"}}']),
}
