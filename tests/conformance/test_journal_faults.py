"""What the Kafka journal does when the way to the broker breaks: a proxy between them holds, cuts and counts.

Enabled: lost acks, held and cut connections, abandoning in mid-batch, a frozen broker, a broker that restarts.
Not enabled: several brokers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from processes import freeze, thaw
from rephub.core.errors import IndeterminateError, UnavailableError
from rephub.core.journal.kafka import KafkaJournalStore, KafkaJournalWriter
from rephub.core.journal.port import StoredRecord
from rephub.infra.kafka.broker import Broker
from rephub.infra.kafka.topics import JOURNAL_CONFIG

pytestmark = pytest.mark.kafka

WAIT_SECONDS = 20
MIB = 1 << 20
CHUNK = 64 * 1024


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


class Proxy:
    """Stands between a writer and the broker; plain sockets, so that it reads ahead by one chunk only."""

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._upstream = (host, int(port))
        self.up_open = asyncio.Event()
        self.up_open.set()
        self.down_open = asyncio.Event()
        self.down_open.set()
        self.connections = 0
        self.up_bytes = 0
        self.cut_answers = 0
        """How many answers to cut the connection at instead of passing them on."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Small, so that a batch of megabytes does not vanish in the kernel; accepted sockets inherit it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        self._listener.settimeout(0)
        self.port = self._listener.getsockname()[1]
        self.served: set[asyncio.Task[None]] = set()
        self._sockets = [self._listener]

    async def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept(), name="proxy")

    async def stop(self) -> None:
        for task in (self._accepting, *self.served):
            task.cancel()
        await asyncio.gather(self._accepting, *self.served, return_exceptions=True)
        for sock in self._sockets:  # also of tasks that were cancelled before their first step
            sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            client.settimeout(0)
            self._sockets.append(client)
            self.connections += 1
            self.served.add(asyncio.create_task(self._serve(client), name="proxy"))

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        broker = socket.socket()
        self._sockets.append(broker)
        broker.settimeout(0)
        await loop.sock_connect(broker, self._upstream)
        ways = {
            asyncio.create_task(self._up(client, broker), name="proxy"),
            asyncio.create_task(self._down(broker, client), name="proxy"),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            client.close()
            broker.close()

    async def _up(self, client: socket.socket, broker: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(client, CHUNK):
                await self.up_open.wait()
                self.up_bytes += len(data)
                await loop.sock_sendall(broker, data)

    async def _down(self, broker: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(broker, CHUNK):
                await self.down_open.wait()
                if self.cut_answers:
                    self.cut_answers -= 1
                    return
                await loop.sock_sendall(client, data)


def through(proxy: Proxy, writer: KafkaJournalWriter) -> KafkaJournalWriter:
    """Make a writer speak to the proxy wherever Kafka sends it."""
    link = writer._producer._link
    link._open = lambda _host, _port, opened=link._open: opened("127.0.0.1", proxy.port)
    return writer


@pytest.fixture
async def store(kafka: str) -> AsyncIterator[KafkaJournalStore]:
    store = KafkaJournalStore(kafka, JOURNAL_CONFIG, delivery_seconds=5)
    yield store
    await store.close()


@pytest.fixture
async def volume(store: KafkaJournalStore) -> AsyncIterator[str]:
    name = f"v{uuid.uuid4().hex[:12]}"
    await store.admin().create(name)
    yield name
    await store.admin().delete(name)


@pytest.fixture
async def proxy(kafka: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(kafka)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def contents(store: KafkaJournalStore, volume: str) -> list[bytes]:
    reader = store.reader(volume)
    await reader.start()
    found: list[StoredRecord] = []
    while len(found) < await reader.next_offset():
        found += await reader.fetch(len(found))
    await reader.close()
    return [record.value for record in found]


async def test_abandon_in_mid_batch_sends_nothing_more(
    store: KafkaJournalStore, volume: str, proxy: Proxy
) -> None:
    before = asyncio.all_tasks()
    writer = through(proxy, store.writer(volume))
    await writer.start()
    await writer.append([b"first"])
    transport = writer._producer._link._conn._writer.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    proxy.up_open.clear()
    appending = asyncio.create_task(writer.append([bytes(MIB)] * 3))
    await wait_until(lambda: transport.get_write_buffer_size() > 0)  # the kernel's buffers are full
    bytes_before, connections_before = proxy.up_bytes, proxy.connections
    await writer.abandon()
    async with asyncio.timeout(1):
        with pytest.raises(IndeterminateError):
            await appending
    await asyncio.sleep(0)  # the connection's reader ends
    assert {task for task in asyncio.all_tasks() - before if task.get_name() != "proxy"} == set()
    proxy.up_open.set()
    await wait_until(lambda: all(task.done() for task in proxy.served))  # it saw the connection end
    assert proxy.connections == connections_before
    # What had left us before: one chunk in the proxy, and its kernel's receive buffer (twice SO_RCVBUF).
    assert proxy.up_bytes - bytes_before <= 3 * CHUNK
    assert await contents(store, volume) == [b"first"]


async def test_lost_ack_is_repeated_and_lands_once(
    store: KafkaJournalStore, volume: str, proxy: Proxy
) -> None:
    writer = through(proxy, store.writer(volume))
    await writer.start()
    assert await writer.append([b"a"]) == 0
    for n, value in enumerate((b"b", b"c", b"d")):
        proxy.cut_answers = 1
        assert await writer.append([value, value]) == 1 + 2 * n
    assert proxy.cut_answers == 0
    await writer.close()
    assert await contents(store, volume) == [b"a", b"b", b"b", b"c", b"c", b"d", b"d"]


async def test_overdue_batch_has_an_unknown_outcome(kafka: str, volume: str, proxy: Proxy) -> None:
    store = KafkaJournalStore(kafka, JOURNAL_CONFIG, delivery_seconds=1)
    writer = through(proxy, store.writer(volume))
    await writer.start()
    proxy.down_open.clear()
    began = asyncio.get_running_loop().time()
    with pytest.raises(IndeterminateError):
        await writer.append([b"landed, and nobody said so"])
    assert 0.9 < asyncio.get_running_loop().time() - began < 3
    with pytest.raises(IndeterminateError):
        await writer.append([b"never sent"])
    await writer.abandon()
    proxy.down_open.set()
    assert await contents(store, volume) == [b"landed, and nobody said so"]


async def test_cut_before_the_batch_arrived(kafka: str, volume: str, proxy: Proxy) -> None:
    store = KafkaJournalStore(kafka, JOURNAL_CONFIG, delivery_seconds=1)
    writer = through(proxy, store.writer(volume))
    await writer.start()
    proxy.up_open.clear()
    with pytest.raises(IndeterminateError):
        await writer.append([b"stuck"])
    await writer.abandon()
    proxy.up_open.set()
    await wait_until(lambda: all(task.done() for task in proxy.served))
    assert set(await contents(store, volume)) <= {b"stuck"}


async def test_wrong_address() -> None:
    store = KafkaJournalStore("127.0.0.1:1", JOURNAL_CONFIG, delivery_seconds=0.5, request_seconds=0.5)
    before = asyncio.all_tasks()
    async with asyncio.timeout(5):
        for call in (store.admin().create("v"), store.writer("v").start(), store.reader("v").start()):
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
                await call
    await store.close()
    assert asyncio.all_tasks() == before


async def test_broker_frozen_and_restarted(new_broker: Callable[[], Broker]) -> None:
    broker = new_broker()
    broker.start()
    store = KafkaJournalStore(broker.bootstrap, JOURNAL_CONFIG, delivery_seconds=60, request_seconds=2)
    await store.admin().create("v")
    writer, reader = store.writer("v"), store.reader("v")
    await writer.start()
    await reader.start()
    async with asyncio.timeout(100), aclosing(reader.tail(0)) as tail:
        await writer.append([b"a"])
        assert list(await anext(tail)) == [StoredRecord(0, b"a")]

        freeze(broker.process.pid)
        with pytest.raises(UnavailableError):
            await reader.fetch(0)
        thaw(broker.process.pid)
        assert (await reader.fetch(0))[0].value == b"a"

        following = asyncio.create_task(anext(tail))
        await asyncio.to_thread(broker.stop)
        appending = asyncio.create_task(writer.append([b"b"]))  # during the outage
        await asyncio.to_thread(broker.start)
        assert await appending == 1
        assert list(await following) == [StoredRecord(1, b"b")]
    await writer.close()
    await reader.close()
    await store.close()
