"""Promise 1, prefix: whatever is served or promoted at N equals the events ≤ N applied in order, no more, no less.

The load (libnbd), QEMU, and the oracle (a bytearray, or sector numbers) share no code with RepHub. Enabled: real
QEMU block layer, Kafka, Redis, all daemons. Not enabled: a guest (see test_guest.py), failures (see tests/crash).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from requests_shown import SECTOR, numbers, violations
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(600)]

DISK_BYTES = 24 << 20
SEED = 20261123


@pytest.fixture
def guest(folder: Path) -> Iterator[tuple[StorageDaemon, Load, bytearray]]:
    """A disk with random content and its oracle."""
    oracle = bytearray(random.Random(SEED).randbytes(DISK_BYTES))
    oracle[5 << 20 : 9 << 20] = bytes(4 << 20)
    (folder / "disk0.raw").write_bytes(oracle)
    daemon = StorageDaemon(folder, [DISK_BYTES])
    load = Load(daemon.uri())
    yield daemon, load, oracle
    load.close()
    daemon.stop()


def request(rng: random.Random, load: Load, oracle: bytearray) -> None:
    """One request of phase 1, in the disk and in the oracle."""
    length = min(int(2 ** rng.uniform(0, 22.01)), 4 << 20)
    start = rng.randrange(0, DISK_BYTES - length + 1)
    if rng.random() < 0.3:
        start = start // 4096 * 4096
    match rng.random():
        case kind if kind < 0.75:
            seed = rng.getrandbits(32)
            load("write", start=start, length=length, seed=seed)
            oracle[start : start + length] = random.Random(seed).randbytes(length)
        case kind if kind < 0.92:
            load("zero", start=start, length=length)
            oracle[start : start + length] = bytes(length)
        case _:
            load("trim", start=start, length=length)  # swallowed by the filter while protected


def first_difference(got: bytes, want: bytes) -> int | None:
    """Index of the first byte that differs."""
    if got == want:
        return None
    return next(index for index in range(len(want)) if got[index : index + 1] != want[index : index + 1])


def test_every_checkpoint_equals_the_oracle(stack: Stack, guest, folder: Path) -> None:
    """Phase 1: depth 1, any size and alignment, zeroes and discards; 50 checkpoints between requests, then promote."""
    daemon, load, oracle = guest
    rng = random.Random(SEED)
    stack.protect("prefix1", daemon.qmp, "disk0")
    kept: dict[str, tuple[int, bytes]] = {}
    for number in range(50):
        for _ in range(20):
            request(rng, load, oracle)
        name = f"prefix1-{number}"
        made = stack.run("checkpoint", "create", name, "--volume", "prefix1")
        kept[name] = made["offsets"]["prefix1"], bytes(oracle)
    for name, (offset, want) in kept.items():
        got = stack.read_view("prefix1", "--checkpoint", name)
        assert first_difference(got, want) is None, (SEED, name, offset)
    offset, want = kept["prefix1-31"]
    done = stack.run("promote", "prefix1", "--checkpoint", "prefix1-31", "--yes")
    assert done["offset"] == offset
    assert first_difference(Path(done["path"]).read_bytes(), want) is None
    load("write", start=0, length=4096, seed=1)  # the guest is not affected
    assert stack.status("prefix1")["state"] == "promoted"


@pytest.mark.parametrize("depth", [8, 32])
def test_every_offset_is_closed_under_order(stack: Stack, guest, folder: Path, depth: int) -> None:
    """Phase 2: many requests in flight; at 30 random offsets (60 with both depths) no younger request shows without the older ones."""
    daemon, load, _ = guest
    volume = f"prefix2-{depth}"
    for start in range(0, DISK_BYTES, 4 << 20):
        load("zero", start=start, length=4 << 20)
    stack.protect(volume, daemon.qmp, "disk0")
    before = stack.run("checkpoint", "create", f"{volume}-before", "--volume", volume)["offsets"][volume]
    requests = load(
        "numbered", depth=depth, count=1200, first=1, sectors=DISK_BYTES // SECTOR, seed=SEED + depth
    )["requests"]
    after = stack.run("checkpoint", "create", f"{volume}-after", "--volume", volume)["offsets"][volume]
    assert after - before >= 1200
    rng = random.Random(SEED)
    offsets = [*sorted(rng.sample(range(before, after), 29)), after]
    for offset in offsets:
        view = stack.read_view(volume, "--offset", str(offset))
        assert violations(requests, view) == [], (SEED, depth, offset)
    assert max(numbers(view)) == 1200
    assert first_difference(view, (folder / "disk0.raw").read_bytes()) is None
    done = stack.run(
        "promote", volume, "--offset", str(offsets[12]), "--to", str(folder / "copy.raw"), "--yes"
    )
    assert (
        first_difference(
            Path(done["path"]).read_bytes(), stack.read_view(volume, "--offset", str(offsets[12]))
        )
        is None
    )
    stack.run("unprotect", volume, "--purge")
