"""Index, coalescing and the plan of a view against a bytearray that is written event by event."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rephub.projections import index as index_module
from rephub.projections.coalesce import changed_length, coalesce
from rephub.projections.index import DATA, RECOVERY, SCRATCH, ZERO, Index, Piece
from rephub.projections.view import BLOCK_BYTES, FOLDED, HELD, ZEROED, BlockMap, allocation, plan
from rephub.schemas.journal import Write, Zero

SIZE = 5 * 65536 // 2
HEADER = {"crc32c": b"", "epoch": 1, "attachment_id": b"", "seq": 0, "captured_at": 0, "flags": 0}


@st.composite
def events(draw: st.DrawFn, size: int = SIZE) -> list[Write | Zero]:
    """Overlapping extents, small and large, with data that tells the event."""
    found: list[Write | Zero] = []
    for number in range(draw(st.integers(0, 40))):
        start = draw(st.integers(0, size - 1))
        length = min(size - start, draw(st.one_of(st.integers(1, 64), st.integers(1, size))))
        if draw(st.booleans()):
            found.append(Write(**HEADER, start=start, data=bytes([number % 255 + 1]) * length))
        else:
            found.append(Zero(**HEADER, start=start, length=length, unmap=False))
    return found


@st.composite
def blocks(draw: st.DrawFn) -> list[Write | Zero]:
    """Whole blocks, written again and again: nothing overlaps in part."""
    found: list[Write | Zero] = []
    for number in range(draw(st.integers(0, 60))):
        start = draw(st.integers(0, 12)) * 64
        if draw(st.integers(0, 3)):
            found.append(Write(**HEADER, start=start, data=bytes([number % 255 + 1]) * 64))
        else:
            found.append(Zero(**HEADER, start=start, length=64, unmap=False))
    return found


def write_all(model: bytearray, changes: list[Write | Zero]) -> None:
    for event in changes:
        data = bytes(event.length) if isinstance(event, Zero) else event.data
        model[event.start : event.start + len(data)] = data


def read_pieces(pieces, changes, recovery: bytes, start: int) -> bytes:
    out = bytearray()
    for piece in pieces:
        assert piece.start == start + len(out)
        assert piece.length > 0
        if piece.kind == DATA:
            out += changes[piece.journal_offset].data[piece.delta : piece.delta + piece.length]
        elif piece.kind == ZERO:
            out += bytes(piece.length)
        else:
            assert piece.kind == RECOVERY
            out += recovery[piece.start : piece.start + piece.length]
        assert len(out) == piece.start + piece.length - start, "an event is shorter than its piece"
    return bytes(out)


@given(changes=events(), data=st.data())
def test_lookup_gives_the_newest_event_of_each_byte(changes, data) -> None:
    seal_every = data.draw(st.integers(1, 12))
    applied = data.draw(st.integers(-1, max(len(changes) - 1, -1)))
    index = Index()
    for offset, event in enumerate(changes):
        is_zero = isinstance(event, Zero)
        length = event.length if isinstance(event, Zero) else len(event.data)
        index.add(offset, event.start, length, ZERO if is_zero else DATA)
        if offset % seal_every == seal_every - 1:
            index.seal()
    index.drop(applied)
    recovery = bytearray(b"\xff" * SIZE)
    write_all(recovery, changes[: applied + 1])
    last = data.draw(st.integers(applied, len(changes) - 1)) if changes else -1
    model = bytearray(b"\xff" * SIZE)
    write_all(model, changes[: last + 1])
    start = data.draw(st.integers(0, SIZE - 1))
    length = data.draw(st.integers(1, SIZE - start))
    pieces = index.lookup(start, length, last)
    assert read_pieces(pieces, changes, bytes(recovery), start) == bytes(model[start : start + length])
    assert all(applied < piece.journal_offset <= last for piece in pieces if piece.kind in {DATA, ZERO})
    inside = changes[applied + 1 : last + 1]
    lengths = sum(event.length if isinstance(event, Zero) else len(event.data) for event in inside)
    assert index.count(applied, last) == (len(inside), lengths)


@given(changes=st.one_of(events(), blocks()), recovery_first=st.booleans())
def test_coalesced_writes_equal_the_events_in_order(changes, recovery_first) -> None:
    model = bytearray(b"\xff" * SIZE)
    device = bytearray(model)
    write_all(model, changes)
    if recovery_first:
        write_all(device, changes[: len(changes) // 2])
    writes = coalesce(changes)
    position = -1
    for write in writes:
        assert write.start > position or write.start == 0
        position = write.start + write.length - 1
        content = bytes(write.length) if write.buffers is None else b"".join(write.buffers)
        assert len(content) == write.length
        device[write.start : write.start + write.length] = content
    assert device == model
    for left, right in pairwise(writes):
        assert left.start + left.length < right.start or (left.buffers is None) != (right.buffers is None)


@given(
    st.lists(
        st.tuples(st.integers(0, 2100), st.integers(1, 1500), st.sampled_from([HELD, ZEROED, FOLDED])),
        max_size=12,
    ),
    st.data(),
)
def test_scratch_wins_over_everything_else(writes, data) -> None:
    scratch = BlockMap(bytearray(4096))
    model = [0] * 4096
    for first, count, state in writes:
        assert scratch.count(HELD, first, first + count) == model[first : first + count].count(HELD)
        scratch.set(first, first + count, state)
        model[first : first + count] = [state] * count
    assert scratch.held_blocks == model.count(HELD)
    assert {block for run in scratch.written() for block in range(*run)} == {
        block for block, state in enumerate(model) if state
    }
    block, folded = 0, []
    while (run := scratch.next_run((HELD, ZEROED), block, 200)) is not None:
        block = run[1]
        assert 0 < run[1] - run[0] <= 200
        assert model[run[0] : run[1]] == [run[2]] * (run[1] - run[0])
        folded += range(*run[:2])
    assert folded == [number for number, state in enumerate(model) if state in (HELD, ZEROED)]
    start = data.draw(st.integers(0, 4096 * BLOCK_BYTES - 1))
    length = data.draw(st.integers(1, 4096 * BLOCK_BYTES - start))
    pieces = plan(start, length, scratch, lambda start, length: Index().lookup(start, length, -1))
    position = start
    kinds = {0: RECOVERY, HELD: SCRATCH, ZEROED: ZERO, FOLDED: RECOVERY}
    for piece in pieces:
        assert piece.start == position
        blocks = range(piece.start // BLOCK_BYTES, (piece.start + piece.length - 1) // BLOCK_BYTES + 1)
        assert {kinds[model[block]] for block in blocks} == {piece.kind}
        position += piece.length
    assert position == start + length


def test_a_hot_block_costs_the_same_in_a_long_history() -> None:
    index = Index()
    for offset in range(3 * index_module.SEGMENT_EVENTS + 5):
        index.add(offset, (offset % 7) * 4096, 4096, DATA)
    looked_at = []
    original = index_module.newest_first

    def counting(rows):
        for row in original(rows):
            looked_at.append(row)
            yield row

    index_module.newest_first = counting
    try:
        (piece,) = index.lookup(0, 4096, 10**9)
    finally:
        index_module.newest_first = original
    assert piece.journal_offset == (3 * index_module.SEGMENT_EVENTS + 4) // 7 * 7
    assert len(looked_at) <= 7


def test_memory_stays_below_48_bytes_an_event() -> None:
    index = Index()
    count = 4 * index_module.SEGMENT_EVENTS
    for offset in range(count):
        index.add(offset, (offset * 2654435761 % 262144) * 4096, 4096, DATA)
    assert len(index) == count
    assert index.nbytes() / count < 40  # the envelope beside it takes 8
    index.drop(count - 1)
    assert index.nbytes() == 0


def test_zeroes_wider_than_a_row_can_say() -> None:
    index = Index()
    index.add(0, 0, 3 << 40, ZERO)
    index.add(1, 1 << 40, 4096, DATA)
    pieces = index.lookup((1 << 40) - 512, 8192, 1)
    assert [piece for piece in pieces if piece.kind != ZERO] == [Piece(1 << 40, 4096, DATA, 1, 0)]
    assert sum(piece.length for piece in pieces) == 8192
    assert all(piece.journal_offset == 0 for piece in pieces if piece.kind == ZERO)
    assert index.count(-1, 0) == (1, 3 << 40)


@given(changes=events(), data=st.data())
def test_block_status_never_calls_data_zeroes(changes, data) -> None:
    """And an extent of zeroes is made of whole blocks, because qemu-img rounds up."""
    size = SIZE - data.draw(st.integers(0, 4096))
    changes = [event for event in changes if event.start + changed_length(event) <= size]
    index = Index()
    for offset, event in enumerate(changes):
        index.add(offset, event.start, changed_length(event), ZERO if isinstance(event, Zero) else DATA)
    recovery = bytearray(b"\xff" * size)
    hole = data.draw(st.integers(0, size))
    recovery[hole:] = bytes(size - hole)
    model = bytearray(recovery)
    write_all(model, changes)

    def holes(start: int, length: int) -> list[tuple[int, bool]]:
        edge = min(max(hole, start), start + length)
        parts = [(edge - start, False), (start + length - edge, True)]
        return [part for part in parts if part[0]]

    start = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - start))
    position = start
    for count, is_zero in allocation(index.lookup(start, length, len(changes) - 1), holes, size):
        assert count > 0
        if is_zero:
            assert not any(model[position : position + count])
            assert position % BLOCK_BYTES == 0
            assert position + count == size or (position + count) % BLOCK_BYTES == 0
        position += count
    assert position == start + length
