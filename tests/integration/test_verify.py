"""`rephub verify`: two copies compared while both are in use, what differs named and repaired. All parts are real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qsd import Load, StorageDaemon
from rephub.core.codec import decode_journal
from rephub.core.errors import NotFoundError
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG
from rephub.schemas import journal
from stack import REPHUB, Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

KIB = 1 << 10
MIB = 1 << 20
CHUNK = 64 * KIB


@pytest.fixture
def disk(folder: Path) -> Iterator[Callable[[int], StorageDaemon]]:
    """Make a storage daemon with one disk of so many bytes."""
    started: list[StorageDaemon] = []

    def start(size: int) -> StorageDaemon:
        started.append(StorageDaemon(folder / str(len(started)), [size]))
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


def flip(path: Path, start: int, length: int) -> None:
    """Change bytes of a file behind its owner's back."""
    with path.open("r+b") as file:
        file.seek(start)
        data = file.read(length)
        file.seek(start)
        file.write(bytes(byte ^ 0x5A for byte in data))


def test_what_differs_is_named_and_repaired(stack: Stack, disk) -> None:
    """Under a write load: equal; with changed bytes: their chunks and no other; repaired: equal, so many bytes moved."""
    daemon = disk(64 * MIB)
    load = Load(daemon.uri())
    load("write", start=8 * MIB, length=16 * MIB, seed=1)
    stack.protect("v", daemon.qmp, "disk0")
    load.send("numbered", depth=8, count=30_000, first=1, sectors=4 * MIB // 512, seed=1)
    document = stack.run("verify", "v")
    assert document["equal"] is True
    assert document["differing"] == []
    assert document["compared_bytes"] + document["skipped_bytes"] == 64 * MIB
    before = stack.status("v")
    assert (before["state"], before["consistent"]) == ("protected", True)

    recovery = Path(before["recovery"])
    flip(recovery, 10 * MIB + 5, 1)
    flip(recovery, 20 * MIB + 1000, 100_000)
    flip(recovery, 40 * MIB, 3)  # a hole of the disk
    wanted = [
        {"start": 10 * MIB, "length": CHUNK},
        {"start": 20 * MIB, "length": 2 * CHUNK},
        {"start": 40 * MIB, "length": CHUNK},
    ]
    error = stack.fails("verify", "v", code=1)
    assert error["class"] == "DifferenceError"
    found = error["differing"]
    assert found[:2] == wanted[:2]
    # Of a hole only what the recovery volume's file system has allocated is read.
    assert (len(found), found[2]["start"]) == (3, 40 * MIB)
    assert 3 <= found[2]["length"] <= CHUNK
    assert error["differing_bytes"] == 3 * CHUNK + found[2]["length"]
    assert (error["equal"], error["repaired_bytes"]) == (False, 0)
    assert "--repair" in error["hint"]
    stack.run("wait", "v", "--state", "failed")
    status = stack.status("v")
    assert status["consistent"] is False
    assert "differs" in status["reason"]
    assert stack.call("status", "--check")[0] == 3

    document = stack.run("verify", "v", "--repair")
    assert document["equal"] is True
    assert document["differing"] == found
    # The hole travels as a Zero event: no data.
    assert document["repaired_bytes"] == 3 * CHUNK
    load.receive()
    stack.run("wait", "v", "--state", "protected")
    status = stack.status("v")
    assert (status["consistent"], status["reason"]) == (True, "")
    assert stack.run("verify", "v")["equal"] is True
    stack.run("checkpoint", "create", "verified", "--volume", "v")
    assert stack.read_view("v", "--latest") == daemon.files[0].read_bytes()
    load.close()
    stack.run("unprotect", "v", "--purge")


class Verify:
    """`rephub verify` as a process of its own."""

    def __init__(self, stack: Stack, *arguments: str) -> None:
        command = [REPHUB, "--json", "--state-dir", stack.state_dir, "verify", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def end(self, seconds: float = 60) -> tuple[int, dict]:
        """Wait for the end."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, json.loads(output)


@pytest.mark.long
def test_it_ends_with_ctrl_c_and_with_each_part(own_stack: Stack, disk) -> None:
    """Ctrl-C leaves nothing running; agent or diskbox killed: a clear error, soon; hub killed: it goes on."""
    stack, daemon = own_stack, disk(64 * MIB)
    load = Load(daemon.uri())
    for part in range(3):
        load("write", start=16 * part * MIB, length=16 * MIB, seed=part)
    load.close()
    stack.protect("v", daemon.qmp, "disk0")

    def under_way(rate: str) -> Verify:
        started = Verify(stack, "v", "--rate", rate)
        stack.wait_until(
            "it reads", lambda: (stack.status("v")["verify"] or {}).get("done_bytes", -1) >= 0, 60
        )
        return started

    run = under_way("1MiB")
    assert stack.status("v")["verify"]["total_bytes"] == 64 * MIB
    assert "another verify" in stack.fails("verify", "v", "--repair", code=5)["message"]
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130
    stack.wait_until("nothing is read any more", lambda: stack.status("v")["verify"] is None)

    pids = stack.run("up", "--detach")["pids"]
    run = under_way("16MiB")
    os.kill(pids["hub"], signal.SIGKILL)
    code, document = run.end(120)
    assert (code, document.get("equal")) == (0, True), document

    run = under_way("4MiB")
    os.kill(pids["diskbox"], signal.SIGKILL)
    code, document = run.end()
    # It may have read on from where it was; what it must not do is call equal what it did not compare.
    assert code in (0, 6), document
    assert code or document["compared_bytes"] == 64 * MIB
    stack.run("wait", "v", "--state", "protected", "--timeout", "60")

    run = under_way("1MiB")
    os.kill(pids["agent"], signal.SIGKILL)
    code, document = run.end()
    assert code == 6, document
    assert "capture of volume v ended" in document["error"]["message"]
    stack.run("wait", "v", "--state", "protected", "--timeout", "60")
    assert stack.fails("verify", "v", "--rate", "1MiB", "--timeout", "3", code=7)
    stack.wait_until("it ended on all sides", lambda: stack.status("v")["verify"] is None)
    assert stack.run("verify", "v")["equal"] is True


def test_a_sparse_disk_costs_what_it_holds(stack: Stack, disk) -> None:
    """10 GiB with 100 MiB of data: synced and verified in time proportional to the data."""
    daemon = disk(10 << 30)
    load = Load(daemon.uri())
    for part in range(5):
        load("write", start=part * (2 << 30) + 12345, length=20 * MIB, seed=part)
    load.close()
    began = time.monotonic()
    stack.protect("sparse", daemon.qmp, "disk0")
    synced = time.monotonic()
    document = stack.run("verify", "sparse")
    verified = time.monotonic()
    assert (document["equal"], document["compared_bytes"]) == (True, 10 << 30)
    recovery = Path(stack.status("sparse")["recovery"])
    assert recovery.stat().st_blocks * 512 < 110 * MIB
    print(f"sync {synced - began:.1f} s, verify {verified - synced:.1f} s")
    # Reading 10 GiB of zeroes alone takes longer than all of this.
    assert verified - synced < 20
    stack.run("unprotect", "sparse", "--purge")


async def synced_by(bootstrap: str, volume: str) -> tuple[str, int]:
    """Mode and data of the volume's first sync, read along with its journal: what is applied is deleted soon."""
    store = KafkaJournalStore(bootstrap, JOURNAL_CONFIG)
    reader = store.reader(volume)
    mode, moved = "", 0
    try:
        async with asyncio.timeout(120):
            while True:
                try:
                    await reader.start()
                    break
                except NotFoundError:
                    await asyncio.sleep(0.1)
            async for records in reader.tail(0):
                for stored in records:
                    event = decode_journal(stored.value)
                    match event:
                        case journal.SyncStarted():
                            mode = event.mode
                        case journal.SyncData():
                            moved += len(event.data)
                        case journal.SyncCompleted():
                            return mode, moved
    finally:
        await reader.close()
        await store.close()
    raise AssertionError("the journal ended")


def test_a_seed_saves_what_is_equal(stack: Stack, disk, folder: Path) -> None:
    """256 MiB with 64 MiB of data, 3 MiB of which the seed has otherwise: that travels, and what a guest writes just then."""
    daemon = disk(256 * MIB)
    load = Load(daemon.uri())
    for part in range(8):
        load("write", start=part * 32 * MIB, length=8 * MIB, seed=part)
    seed = folder / "seed.raw"
    subprocess.run(["cp", "--sparse=always", daemon.files[0], seed], check=True)
    for mib in (4, 100, 194):
        flip(seed, mib * MIB, MIB)
    flip(seed, 20 * MIB, MIB)  # a hole of the disk
    content = seed.read_bytes()
    qmp = ["--qmp", str(daemon.qmp), "--node", "disk0"]
    wrong = folder / "short.raw"
    wrong.write_bytes(bytes(MIB))
    for bad, code in ((wrong, 5), (folder / "none.raw", 4), (folder, 5)):
        error = stack.fails("protect", "seeded", *qmp, "--seed", str(bad), code=code)
        assert str(bad) in error["message"]
    assert not [one for one in stack.run("status")["volumes"] if one["volume"] == "seeded"]

    load.send("numbered", depth=8, count=5_000, first=1, sectors=MIB // 512, seed=1)
    bootstrap = stack.run("up", "--detach")["bootstrap"]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(asyncio.run, synced_by(bootstrap, "seeded"))
        began = time.monotonic()
        stack.protect("seeded", daemon.qmp, "disk0", "--seed", str(seed))
        print(f"protected after {time.monotonic() - began:.1f} s")
        mode, moved = reading.result()
    load.receive()
    print(f"moved {moved / MIB:.2f} MiB")
    assert mode == "compare"
    # A hole travels without data; the guest writes to the first MiB, whose chunks may be copied as well.
    assert 3 * MIB <= moved <= 4 * MIB
    assert seed.read_bytes() == content
    assert stack.run("verify", "seeded")["equal"] is True
    stack.run("checkpoint", "create", "seeded", "--volume", "seeded")
    assert stack.read_view("seeded", "--latest") == daemon.files[0].read_bytes()
    load.close()
    stack.run("unprotect", "seeded", "--purge")
    assert seed.read_bytes() == content
