"""The RepAgent under load: attach and detach, overload of nothing, loss of each part; the guest never sees an error."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Rig, fresh
from processes import freeze, thaw
from qsd import Load, StorageDaemon
from rephub.infra.kafka.broker import Broker
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 32 * MIB


RIG = {"watchdog_seconds": 2.0}
"""Settings of the agent."""


@pytest.fixture
def qsd(short_dir: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(short_dir / "q", [SIZE])
    yield daemon
    daemon.stop()


class Fio:
    """A guest that writes and verifies until it is stopped; a limit of its own keeps a broken test from hanging."""

    def __init__(self, qsd: StorageDaemon, *, depth: int = 8, rate: int = 500) -> None:
        self.process = subprocess.Popen(
            [
                "fio", "--name=guest", "--ioengine=nbd", f"--uri={qsd.uri()}", "--rw=randwrite",
                "--bssplit=4k/80:64k/15:512k/5", f"--iodepth={depth}", f"--size={SIZE}", "--time_based",
                "--runtime=90", f"--rate_iops={rate}", "--verify=crc32c", "--verify_backlog=64",
                "--verify_fatal=1", "--verify_state_save=0", "--output-format=json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=qsd.folder,
        )  # fmt: skip

    def running(self) -> None:
        """The guest has seen no error so far."""
        if self.process.poll() is not None:
            out, err = self.process.communicate()
            raise AssertionError(out + err)

    async def finish(self) -> int:
        """Stop it; returns how many writes it made. Fails if one failed or a wrong byte was read."""
        self.running()
        self.process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(self.process.communicate, timeout=30)
        text = out.decode()
        report = json.loads(text[text.index("{") : text.rindex("}") + 1])
        (job,) = report["jobs"]
        assert job["error"] == 0, err
        assert job["write"]["total_ios"] > 0
        return int(job["write"]["total_ios"])


async def same_as_source(rig: Rig, volume: str, qsd: StorageDaemon, name: str) -> None:
    """At quiescence the journal's replay equals the disk."""
    offset = (await rig.checkpoint(name, volume))[volume]
    image, state = await rig.replay(volume, SIZE, offset)
    assert state.gap_first_offset is None
    assert image == qsd.files[0].read_bytes()


async def test_attach_and_detach_under_load(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    exports = qsd.query("query-block-exports")
    fio = Fio(qsd)
    await rig.until("guest writes", lambda: qsd.files[0].stat().st_blocks)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    offset = (await rig.checkpoint(f"c-{volume}", volume))[volume]
    head = rig.volume_status(volume)["acked_offset"]
    await rig.until(
        "more writes", lambda: rig.volume_status(volume)["acked_offset"] > max(head, offset) + 200
    )
    await rig.tell(ev.UnprotectRequested, volume=volume, purge=False)
    await rig.until("detached", lambda: rig.of(ev.CaptureDetached, volume))
    assert await fio.finish() > 200
    assert qsd.query("query-block-exports") == exports
    assert qsd.query("query-block-jobs") == []
    assert {node["node-name"] for node in qsd.query("query-named-block-nodes")} >= {"disk0"}
    assert not [n for n in qsd.query("query-named-block-nodes") if n["node-name"].startswith("rephub-")]


@pytest.mark.parametrize("ack", ["async", "journal"])
async def test_journal_equals_source_after_load(rig: Rig, qsd: StorageDaemon, ack: str) -> None:
    volume = fresh()
    fio = Fio(qsd, depth=16, rate=1500)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE, ack=ack)
    await rig.protected(volume)
    head = rig.volume_status(volume)["acked_offset"]
    await rig.until("more writes", lambda: rig.volume_status(volume)["acked_offset"] > head + 500)
    await fio.finish()
    await same_as_source(rig, volume, qsd, f"end-{volume}")


async def test_killed_worker_frees_the_guest_and_the_volume_comes_back(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    fio = Fio(qsd)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    os.kill(rig.workers()[0], signal.SIGKILL)
    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume))
    fio.running()
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
    await rig.protected(volume)
    await fio.finish()
    assert "SIGKILL" in rig.of(ev.CaptureLost, volume)[0].reason
    await same_as_source(rig, volume, qsd, f"end-{volume}")


async def test_hung_worker_is_killed_by_the_watchdog(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    load = Load(qsd.uri())
    freeze(rig.workers()[0])
    began = time.monotonic()
    await asyncio.to_thread(load, "write", start=0, length=4096, seed=1)
    stalled = time.monotonic() - began
    assert stalled < 2.0 + 2.0, stalled
    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume))
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
    await rig.protected(volume)
    load("write", start=5000, length=5000, seed=2)
    load.close()
    await same_as_source(rig, volume, qsd, f"end-{volume}")


async def test_killed_agent_takes_its_workers_along_and_comes_back(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    fio = Fio(qsd)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    worker = rig.workers()[0]
    rig.kill()
    await rig.until(
        "worker gone",
        lambda: (
            not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()
        ),
        5,
    )
    fio.running()
    rig.launch()
    await rig.until("agent ready", rig.ready)
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
    await rig.protected(volume)
    fio.running()
    await fio.finish()
    (lost,) = rig.of(ev.CaptureLost, volume)
    assert (lost.epoch, lost.reason) == (1, "the agent was restarted")
    await same_as_source(rig, volume, qsd, f"end-{volume}")


async def test_idle_leftovers_of_a_dead_agent_are_cleaned(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    rig.kill()
    # No write since: the mirror still says that it is ready.
    (job,) = await asyncio.to_thread(qsd.query, "query-block-jobs")
    assert job["status"] == "ready"
    rig.launch()
    await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
    await rig.protected(volume)
    await rig.tell(ev.UnprotectRequested, volume=volume, purge=False)
    await rig.until("detached", lambda: rig.of(ev.CaptureDetached, volume))
    assert qsd.query("query-block-jobs") == []
    assert len(qsd.query("query-block-exports")) == 1


async def test_stopped_agent_detaches_and_says_so(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    fio = Fio(qsd)
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    assert await rig.stop() == 0
    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume))
    assert rig.of(ev.CaptureLost, volume)[0].reason == "the agent was stopped"
    assert qsd.query("query-block-jobs") == []
    assert not [n for n in qsd.query("query-named-block-nodes") if n["node-name"].startswith("rephub-")]
    fio.running()
    rig.launch()
    await rig.protected(volume)
    await fio.finish()
    assert len(rig.of(ev.CaptureLost, volume)) == 1
    await same_as_source(rig, volume, qsd, f"end-{volume}")


async def test_paused_broker_stalls_no_guest(
    short_dir: Path, redis_url: str, qsd: StorageDaemon, new_broker: Callable[[], Broker]
) -> None:
    broker = new_broker()
    broker.start()
    rig = Rig(short_dir, broker.bootstrap, redis_url)
    try:
        await rig.start()
        volume = fresh()
        await rig.protect(volume, qsd.qmp, "disk0", SIZE)
        await rig.protected(volume)
        load = Load(qsd.uri())
        assert broker.process is not None
        broker_pid = broker.process.pid
        freeze(broker_pid)
        longest, number, lost = 0.0, 0, False
        deadline = time.monotonic() + 30
        while not lost and time.monotonic() < deadline:
            began = time.monotonic()
            await asyncio.to_thread(load, "write", start=number * 4096 % SIZE, length=4096, seed=number)
            longest, number = max(longest, time.monotonic() - began), number + 1
            lost = number % 100 == 0 and not rig.volume_status(volume)["attached"]
        assert lost
        assert longest < 1.0, longest
        assert rig.volume_status(volume)["gap_since_at"]
        thaw(broker_pid)
        await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume))
        await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) >= 2)
        await rig.protected(volume)
        load("write", start=3, length=333, seed=1)
        load.close()
        await same_as_source(rig, volume, qsd, f"end-{volume}")
    finally:
        await rig.close()


async def test_vm_that_goes_and_comes_back_is_attached_again(rig: Rig, qsd: StorageDaemon) -> None:
    volume = fresh()
    await rig.protect(volume, qsd.qmp, "disk0", SIZE)
    await rig.protected(volume)
    qsd.stop()
    await rig.until("capture lost", lambda: rig.of(ev.CaptureLost, volume))
    again = StorageDaemon(qsd.folder, [SIZE])
    try:
        await rig.until("second epoch", lambda: len(rig.of(ev.FilterAttached, volume)) == 2)
        await rig.protected(volume)
        load = Load(again.uri())
        load("write", start=77, length=7777, seed=3)
        load.close()
        await same_as_source(rig, volume, again, f"end-{volume}")
    finally:
        again.stop()
