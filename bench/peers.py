"""What the product is measured against: tools of QEMU, libnbd and Kafka, started here and in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from aiokafka import AIOKafkaProducer

from bench.rig import MIB, wait_for
from qsd import StorageDaemon
from rephub.core.kafka.link import KafkaAddress
from rephub.core.kafka.reader import PartitionReader
from rephub.core.kafka.topics import TopicAdmin
from rephub.infra.kafka.broker import LIBS
from rephub.infra.kafka.topics import JOURNAL_CONFIG, TopicSpec, create_topics

MIRROR = {
    "sync": "none", "copy_mode": "write-blocking", "on_target_error": "report", "granularity": 4096,
}  # fmt: skip
"""As the agent attaches it."""
WARM_SECONDS = 2.0
"""For which ProducerPerformance runs before it counts as warm."""
PAYLOAD_BYTES = 64 * MIB
"""ProducerPerformance picks its records from a file; random bytes, as fio writes them."""


@contextlib.contextmanager
def mirrored_into_null(folder: Path, size_bytes: int) -> Iterator[StorageDaemon]:
    """A disk that QEMU itself mirrors, write-blocking, into nbdkit's null plugin: the least that a mirror costs."""
    socket = folder / "null"
    nbdkit = ["nbdkit", "-f", "-U", str(socket), "--filter=noextents", "null", str(size_bytes)]
    with _mirrored_into(nbdkit, socket, folder, size_bytes) as qsd:
        yield qsd


@contextlib.contextmanager
def mirrored_into_ours(folder: Path, size_bytes: int) -> Iterator[StorageDaemon]:
    """The same, into our own NBD server (Python, uvloop) with a handler that does nothing."""
    socket = folder / "ours"
    with _mirrored_into([sys.executable, "-m", "bench.nbd", str(socket)], socket, folder, size_bytes) as qsd:
        yield qsd


@contextlib.contextmanager
def _mirrored_into(server: list[str], socket: Path, folder: Path, size_bytes: int) -> Iterator[StorageDaemon]:
    folder.mkdir(parents=True)
    target_server = subprocess.Popen(server, stderr=subprocess.DEVNULL)
    qsd = None
    try:
        wait_for(socket)
        qsd = StorageDaemon(folder / "qsd", [size_bytes])
        target = {"type": "unix", "path": str(socket)}
        for command, arguments in (
            ("blockdev-add", {"driver": "nbd", "node_name": "target", "server": target, "export": ""}),
            ("blockdev-mirror", {"job_id": "mirror", "device": "disk0", "target": "target", **MIRROR}),
        ):
            answer = qsd.execute(command, **arguments)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
        yield qsd
    finally:
        if qsd is not None:
            qsd.kill()
        target_server.kill()
        target_server.wait()


@contextlib.contextmanager
def unprotected(folder: Path, size_bytes: int) -> Iterator[StorageDaemon]:
    """A disk that nobody mirrors."""
    qsd = StorageDaemon(folder, [size_bytes])
    try:
        yield qsd
    finally:
        qsd.kill()


def producer_performance(bootstrap: str, folder: Path, record_bytes: int, seconds: float) -> float:
    """Kafka's own producer at its best: records a second; acks=all, idempotent, batches of 1 MiB, random payload.

    Args:
        bootstrap: of the broker that the product uses.
        folder: for the payload file, which is kept for the next call.
        record_bytes: of a value.
        seconds: roughly, at 300 MB/s.
    """
    topic = f"peer-{record_bytes}-{time.monotonic_ns()}"
    count = max(200, int(300e6 * seconds / record_bytes))
    asyncio.run(create_topics(bootstrap, [TopicSpec(topic, dict(JOURNAL_CONFIG))]))
    try:
        done = subprocess.run(
            _producer(bootstrap, topic, _payload(folder, record_bytes), count, -1, "linger.ms=5"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        asyncio.run(_delete(bootstrap, topic))
    return float(re.findall(r"([\d.]+) records/sec", done.stdout)[-1])


@contextlib.contextmanager
def producing(
    bootstrap: str, folder: Path, record_bytes: int, rate: float, linger_ms: int, seconds: float
) -> Iterator[None]:
    """ProducerPerformance beside what is measured, at a rate, once it runs evenly.

    Args:
        bootstrap: of the broker that the product uses.
        folder: as `producer_performance`.
        record_bytes: of a value.
        rate: records a second.
        linger_ms: how long its batches gather.
        seconds: for which it runs at least.
    """
    topic = f"peer-beside-{time.monotonic_ns()}"
    asyncio.run(create_topics(bootstrap, [TopicSpec(topic, dict(JOURNAL_CONFIG))]))
    count = int(rate * (WARM_SECONDS + 1 + seconds))
    command = _producer(
        bootstrap, topic, _payload(folder, record_bytes), count, int(rate), f"linger.ms={linger_ms}"
    )
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        asyncio.run(_holds(bootstrap, topic, int(rate * WARM_SECONDS)))
        yield
        if process.poll() is not None:
            raise RuntimeError("ProducerPerformance ended before what it was to disturb")
    finally:
        process.kill()
        process.wait()
        asyncio.run(_delete(bootstrap, topic))


def _payload(folder: Path, record_bytes: int) -> Path:
    """A file of random records for ProducerPerformance, which splits it by a pattern: it occurs nowhere else."""
    payload = folder / f"payload-{record_bytes}"
    if not payload.exists():
        count = max(8, PAYLOAD_BYTES // record_bytes)
        alphabet = bytes(range(33, 127)) * 2 + bytes(range(48, 116))
        with payload.open("wb") as file:
            for _ in range(count):
                file.write(random.randbytes(record_bytes).translate(alphabet[:256]) + b"\n")
    return payload


def _producer(bootstrap: str, topic: str, payload: Path, count: int, rate: int, linger: str) -> list[str]:
    return [
        "java", "-Xmx1g", "-cp", f"{LIBS}/*", "org.apache.kafka.tools.ProducerPerformance",
        "--topic", topic, "--num-records", str(count), "--throughput", str(rate),
        "--payload-file", str(payload), "--payload-delimiter", "\\n",
        "--producer-props", f"bootstrap.servers={bootstrap}", "acks=all", "enable.idempotence=true",
        f"batch.size={MIB}", linger, f"max.request.size={8 * MIB}", f"buffer.memory={128 * MIB}",
    ]  # fmt: skip


async def _holds(bootstrap: str, topic: str, records: int) -> None:
    """Wait until a topic holds so many records."""
    reader = PartitionReader(KafkaAddress(bootstrap), topic, request_seconds=30)
    deadline = time.monotonic() + 60
    try:
        while (there := await reader.next_offset()) < records:
            if time.monotonic() > deadline:
                raise RuntimeError(f"ProducerPerformance wrote {there} records instead of {records}")
            await asyncio.sleep(0.05)
    finally:
        await reader.close()


async def _delete(bootstrap: str, topic: str) -> None:
    admin = TopicAdmin(KafkaAddress(bootstrap), request_seconds=30)
    await admin.delete(topic)
    await admin.close()


def closed_loop(bootstrap: str, depth: int, record_bytes: int, seconds: float) -> float:
    """Aiokafka alone: `depth` writers, each with one record under way; records a second, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers", bootstrap, str(depth), str(record_bytes), str(seconds)],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"aiokafka alone: {done.stderr[-800:]}")
    return float(done.stdout)


async def _closed_loop(bootstrap: str, depth: int, record_bytes: int, seconds: float) -> float:
    topic = f"peer-loop-{time.monotonic_ns()}"
    await create_topics(bootstrap, [TopicSpec(topic, dict(JOURNAL_CONFIG))])
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_batch_size=MIB,
        max_request_size=4 * MIB,
    )  # fmt: skip
    await producer.start()
    value = random.randbytes(record_bytes)
    end = time.monotonic() + seconds + 0.5

    async def writer() -> int:
        done = 0
        while (now := time.monotonic()) < end:
            await producer.send_and_wait(topic, value)
            done += now > end - seconds
        return done

    counts = await asyncio.gather(*(writer() for _ in range(depth)))
    await producer.stop()
    await _delete(bootstrap, topic)
    return sum(counts) / seconds


def nbdcopy_mb_per_second(uri: str, target: str, size_bytes: int) -> float:
    """Libnbd's copy of a whole export to a file or `null:`, in MB/s (10^6)."""
    began = time.monotonic()
    subprocess.run(["nbdcopy", uri, target], check=True)
    return size_bytes / 1e6 / (time.monotonic() - began)


if __name__ == "__main__":
    print(asyncio.run(_closed_loop(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
