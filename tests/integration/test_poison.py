"""What must not stand in a journal stops its volume there, and nothing else; `resync` is the way out. All parts are real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import intruder
from intruder import Intruder
from qsd import Load, StorageDaemon
from rephub.schemas import events as ev
from rephub.schemas import journal as jr
from stack import Stack, bootstrap, events

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(240)]

MIB = 1 << 20
DISK_BYTES = 4 * MIB
SECONDS = 60.0
MARKER_SECONDS = 5.0
"""Between two periodic checkpoints of a group."""


def damaged(record: jr.Record) -> bytes:
    """One bit of the data is another one."""
    value = bytearray(intruder.write(record, 0, b"x" * 4096))
    value[-1] ^= 1
    return bytes(value)


@dataclass(frozen=True)
class Poison:
    """A record that must not be."""

    volume: str
    record: Callable[[jr.Record], bytes | None]
    """Made from the newest record of the journal."""
    why: str
    """Is in the reason."""
    options: tuple[tuple[str, str], ...] = ()


POISONS = (
    Poison("poison-crc", damaged, "crc"),
    Poison("poison-schema", lambda _: b"\xc3\x01" + bytes(range(8)) + b"from the future", "schema"),
    Poison("poison-seq", lambda record: intruder.write(record, 0, b"x", seqs=1000), "seq jumps"),
    Poison(
        "poison-extent", lambda record: intruder.write(record, DISK_BYTES - 1, b"xx"), "outside the volume"
    ),
    Poison("poison-foreign", lambda _: b'{"hello": "world"}', ""),
    Poison("poison-zip", lambda _: b"hello " * 100, "", (("compression_type", "gzip"),)),
    Poison("poison-empty", lambda _: None, ""),
)
SOUND = "poison-none"


@pytest.fixture
def guests(folder: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(folder / "vm", [DISK_BYTES] * (len(POISONS) + 1))
    yield daemon
    daemon.stop()


def written(daemon: StorageDaemon, seed: int) -> None:
    """Each guest writes."""
    for number in range(len(daemon.files)):
        load = Load(daemon.uri(number))
        load("write", start=seed * 100_000 + 7, length=50_000, seed=seed)
        load("zero", start=seed * 100_000, length=5)
        load.close()


async def poison(address: str, one: Poison) -> int:
    """Put it in just behind a marker of the clock: the agent's next event is seconds away, and its seq is ours."""
    journal = Intruder(address, one.volume)
    async with asyncio.timeout(SECONDS):
        while not is_young(newest := await journal.newest()):
            await asyncio.sleep(0.05)
    return await journal.put(one.record(newest), **dict(one.options))


def is_young(record: jr.Record) -> bool:
    age_seconds = time.time() - record.captured_at / 1e6
    return isinstance(record, jr.Checkpoint) and record.periodic and age_seconds < MARKER_SECONDS / 2


def test_poison_stops_one_volume_and_resync_is_the_way_out(stack: Stack, guests: StorageDaemon) -> None:
    names = [one.volume for one in POISONS] + [SOUND]
    for number, name in enumerate(names):
        stack.run("protect", name, "--qmp", str(guests.qmp), "--node", f"disk{number}")
    for name in names:
        stack.run("wait", name, "--state", "protected", "--timeout", "60")
    written(guests, 1)
    for name in names:
        stack.run("checkpoint", "create", f"{name}-before", "--volume", name)
    before = [guests.content(number) for number in range(len(names))]
    at = {one.volume: asyncio.run(poison(bootstrap(stack), one)) for one in POISONS}

    for one in POISONS:
        found = stopped(stack, one.volume)
        assert f"stopped at journal offset {at[one.volume]}: " in found["reason"]
        assert one.why in found["reason"]
        assert not found["consistent"]
    written(guests, 2)
    stack.run("checkpoint", "create", "poison-others-go-on", "--volume", SOUND)
    assert stack.status(SOUND)["state"] == "protected"
    assert stack.read_view(SOUND, "--latest") == guests.content(len(POISONS))

    log = events(stack)
    for number, one in enumerate(POISONS):
        # Capture goes on behind the poison, and no point of it is offered.
        found = stack.status(one.volume)
        assert (found["state"], found["latest_offset"]) == ("failed", at[one.volume] - 1)
        assert stack.read_view(one.volume, "--latest") == before[number]
        assert stack.fails("fot", "start", one.volume, "--offset", str(at[one.volume]), code=9)["hint"]
        last = stack.run("timeline", one.volume)["ranges"][-1]
        assert (last["kind"], last["first_offset"]) == ("gap", at[one.volume])
        assert one.why in last["reason"]
        said = [event for event in log if isinstance(event, ev.VolumeStopped) and event.volume == one.volume]
        assert [event.offset for event in said] == [at[one.volume]]
        assert not [
            event for event in log if isinstance(event, ev.CaptureLost) and event.volume == one.volume
        ]
        stack.run("resync", one.volume)
    for number, one in enumerate(POISONS):
        stack.run("wait", one.volume, "--state", "protected", "--timeout", "60")
        stack.run("checkpoint", "create", f"{one.volume}-after", "--volume", one.volume)
        assert stack.status(one.volume)["consistent"]
        assert stack.read_view(one.volume, "--latest") == guests.content(number)
        # What was good stays so.
        assert stack.read_view(one.volume, "--checkpoint", f"{one.volume}-before") == before[number]
    for name in names:
        stack.run("unprotect", name, "--purge")


def stopped(stack: Stack, volume: str) -> dict[str, Any]:
    """The volume's status once it is failed."""

    def failed() -> dict[str, Any] | None:
        found = stack.status(volume)
        return found if found["state"] == "failed" else None

    return dict(stack.wait_until(f"{volume} failed", failed, SECONDS))
