"""Overlays: what survives the process, what survives the host, and what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rephub.consumers.diskbox import overlay as overlay_module
from rephub.consumers.diskbox.overlay import Overlay
from rephub.core.errors import ConflictError, NotFoundError, StorageError
from rephub.projections.view import ABSENT, BLOCK_BYTES, FOLDED, HELD, ZEROED

BLOCKS = 40
SIZE = BLOCKS * BLOCK_BYTES - 100
IDENTITY = {"offset": 7}


@pytest.fixture
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which boot it is."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(overlay_module, "BOOT_ID", path)
    return path


def make(folder: Path, *, durable: bool = True, bytes_max: int | None = None) -> Overlay:
    return Overlay.create(folder, "v", SIZE, bytes_max, IDENTITY, durable=durable)


def reopen(folder: Path, *, durable: bool = True) -> Overlay:
    return Overlay.reopen(folder, "v", None, IDENTITY, durable=durable)


async def content(overlay: Overlay) -> list[bytes | None]:
    """By block: what it holds; None: nothing."""
    found: list[bytes | None] = []
    for block in range(BLOCKS):
        state = overlay.map.state(block)
        held = await overlay.pread(block * BLOCK_BYTES, BLOCK_BYTES) if state == HELD else None
        found.append(bytes(BLOCK_BYTES) if state == ZEROED else held)
    return found


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "fold", "flush", "kill", "crash"]),
        st.integers(0, BLOCKS - 1),
        st.integers(1, 9),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(STEPS)
def test_kills_lose_nothing_and_crashes_nothing_that_was_flushed(steps: list[tuple[str, int, int]]) -> None:
    """The files of a crashed host: data as they are (the worst: all written back), the live map as torn as can be."""
    asyncio.run(_survives(steps))


async def _survives(steps: list[tuple[str, int, int]]) -> None:
    folder = Path(tempfile.mkdtemp())
    boot = folder / "boot_id"
    boot.write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module, "BOOT_ID", boot)
        try:
            overlay = make(folder)
            now: list[bytes | None] = [None] * BLOCKS
            flushed = list(now)
            since: list[list[bytes | None]] = [[] for _ in range(BLOCKS)]
            for number, (step, first, count) in enumerate(steps):
                blocks = range(first, min(first + count, BLOCKS))
                data = bytes([number + 1]) * BLOCK_BYTES
                if step == "write":
                    await overlay.write(first * BLOCK_BYTES, data * len(blocks))
                elif step == "zero":
                    overlay.zero(blocks.start, blocks.stop)
                elif step == "fold":
                    overlay.mark_folded(blocks.start, blocks.stop)
                if step in ("write", "zero", "fold"):
                    value = {"write": data, "zero": bytes(BLOCK_BYTES), "fold": None}[step]
                    for block in blocks:
                        now[block] = value
                        since[block].append(value)
                elif step == "flush":
                    await overlay.flush()
                    flushed, since = list(now), [[] for _ in range(BLOCKS)]
                elif step == "kill":
                    overlay.close()
                    overlay = reopen(folder)
                else:
                    overlay.close()
                    boot.write_text(str(number + 1))
                    torn = folder / "v.live"
                    torn.write_bytes(bytes([HELD]) * BLOCKS)
                    overlay = reopen(folder)
                    seen = await content(overlay)
                    for block in range(BLOCKS):
                        allowed = [flushed[block], *since[block]]
                        assert seen[block] in allowed, (block, number)
                    now, flushed, since = list(seen), list(seen), [[] for _ in range(BLOCKS)]
                assert await content(overlay) == now, number
            overlay.discard()
            assert [path.name for path in folder.iterdir()] == ["boot_id"]
        finally:
            shutil.rmtree(folder)


async def test_an_overlay_that_is_not_durable_is_gone_with_its_host(tmp_path: Path, boots: Path) -> None:
    overlay = make(tmp_path, durable=False)
    await overlay.write(0, b"a" * BLOCK_BYTES)
    overlay.close()
    again = reopen(tmp_path, durable=False)
    assert (await content(again))[0] == b"a" * BLOCK_BYTES
    again.close()
    boots.write_text("second\n")
    with pytest.raises(ConflictError, match="started anew"):
        reopen(tmp_path, durable=False)


async def test_the_map_follows_the_data_and_the_barrier(tmp_path: Path, boots: Path) -> None:
    """FOLDED is durable only after the recovery volume is."""
    overlay = make(tmp_path)
    await overlay.write(0, b"a" * BLOCK_BYTES)
    await overlay.flush()
    seen: list[int] = []

    async def barrier() -> None:
        seen.append((tmp_path / "v.flushed").read_bytes()[0])

    overlay.mark_folded(0, 1)
    await overlay.flush(barrier)
    assert seen == [HELD]
    assert (tmp_path / "v.flushed").read_bytes()[0] == FOLDED

    async def fails() -> None:
        raise StorageError("no", errno=5)

    await overlay.write(BLOCK_BYTES, b"b" * BLOCK_BYTES)
    with pytest.raises(StorageError):
        await overlay.flush(fails)
    assert (tmp_path / "v.flushed").read_bytes()[1] == ABSENT
    with pytest.raises(StorageError):
        await overlay.flush()
    assert (tmp_path / "v.flushed").read_bytes()[1] == ABSENT, "what a failed sync left is not called durable"
    overlay.discard()


async def test_a_flush_beside_another_is_answered_when_both_are_durable(tmp_path: Path, boots: Path) -> None:
    """As two connections of one VM do, or two writes with FUA."""
    overlay = make(tmp_path)
    held, go = asyncio.Event(), asyncio.Event()

    async def barrier() -> None:
        held.set()
        await go.wait()

    await overlay.write(0, b"a" * BLOCK_BYTES)
    first = asyncio.create_task(overlay.flush(barrier))
    await held.wait()
    second = asyncio.create_task(overlay.flush())
    await overlay.write(BLOCK_BYTES, b"b" * BLOCK_BYTES)
    third = asyncio.create_task(overlay.flush())
    done, _ = await asyncio.wait((second, third), timeout=0.1)
    assert not done, "the first block is not durable yet"
    go.set()
    await asyncio.gather(first, second, third)
    assert (tmp_path / "v.flushed").read_bytes()[:3] == bytes([HELD, HELD, ABSENT])
    overlay.discard()


async def test_the_limit_counts_data_alone(tmp_path: Path, boots: Path) -> None:
    overlay = make(tmp_path, bytes_max=3 * BLOCK_BYTES)
    assert overlay.has_room(0, 3)
    assert not overlay.has_room(0, 4)
    await overlay.write(0, bytes(2 * BLOCK_BYTES))
    overlay.zero(5, 20)
    assert overlay.has_room(0, 3)
    assert not overlay.has_room(2, 4)
    overlay.mark_folded(0, 2)
    assert overlay.has_room(2, 5)
    await overlay.drop_data()
    assert (tmp_path / "v.data").stat().st_blocks == 0
    assert overlay.map.written() == [(0, 2), (5, 20)]
    overlay.discard()


@pytest.mark.parametrize(
    ("kind", "damage", "error"),
    [
        ("json", lambda text: text.replace(b'"size_bytes": 1', b'"size_bytes": 2'), StorageError),
        ("json", lambda text: text[:50], StorageError),
        ("json", lambda _text: b"[]", StorageError),
        ("live", lambda text: text[:-1], StorageError),
        ("data", lambda text: text + b"x", StorageError),
        ("flushed", None, StorageError),
        ("json", None, NotFoundError),
    ],
)
async def test_damaged_files_are_refused(tmp_path: Path, boots: Path, kind, damage, error) -> None:
    make(tmp_path).close()
    path = tmp_path / f"v.{kind}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(error):
        reopen(tmp_path)


async def test_what_lies_above_something_else_is_refused(tmp_path: Path, boots: Path) -> None:
    make(tmp_path).close()
    with pytest.raises(ConflictError, match="something else"):
        Overlay.reopen(tmp_path, "v", None, {"offset": 8}, durable=True)
    with pytest.raises(ConflictError, match="something else"):
        reopen(tmp_path, durable=False)
    document = json.loads((tmp_path / "v.json").read_text())
    assert document["identity"] == IDENTITY
    # `create` begins anew, whatever was there.
    overlay = make(tmp_path)
    assert overlay.map.written() == []
    overlay.discard()
