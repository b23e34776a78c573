"""One attachment on memory adapters, its capture export driven by a real NBD client over a unix socket."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rephub.agent import capture
from rephub.agent.attachment import Attachment, AttachmentSpec
from rephub.agent.epochs import claim
from rephub.agent.group_hold import Holds
from rephub.core.bitmap.memory import MemoryBitmapStore
from rephub.core.codec import decode_journal
from rephub.core.config import AgentSettings
from rephub.core.errors import (
    ConflictError,
    FencedError,
    IndeterminateError,
    RephubError,
    RequestError,
    UnavailableError,
)
from rephub.core.journal.memory import Fault, MemoryJournalStore
from rephub.core.names import dirty_key
from rephub.core.nbd.client import NbdClient
from rephub.schemas import journal as jr

MIB = 1 << 20
SIZE = 64 * MIB
CHECKPOINT = {"checkpoint": "c", "group": "g", "kind": "crash", "periodic": False}


class Bench:
    """A journal, a bitmap store and attachments on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journals = MemoryJournalStore()
        self.bitmaps = MemoryBitmapStore()
        self.errors: list[RephubError] = []
        self.attachment: Attachment | None = None
        self.client: NbdClient | None = None

    async def attach(self, ack: str = "async", overload: str = "throttle", **settings: Any) -> NbdClient:
        await self.journals.create("v")
        taken = await claim(self.journals, "v", [], uuid.uuid4().hex, SIZE, "test")
        spec = AttachmentSpec(
            volume="v",
            epoch=taken.epoch,
            attachment_id=taken.attachment_id,
            epoch_offset=taken.offset,
            size_bytes=SIZE,
            ack=ack,
            overload=overload,
            socket=str(self.folder / f"c{taken.epoch}"),
            export="e",
        )
        self.attachment = Attachment(
            spec,
            AgentSettings(**settings),
            self.journals,
            self.bitmaps,
            lambda _attachment, error: self.errors.append(error),
        )
        await self.attachment.open()
        self.client = await NbdClient.connect(path=spec.socket, export="e")
        return self.client

    def block(self) -> asyncio.Future[None]:
        """From now on the journal's acks wait for the future that is returned."""
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.journals.fault = lambda _volume, _values: Fault(before=gate)
        return gate

    def find(self, volume: str) -> Attachment:
        assert volume == "v"
        assert self.attachment is not None
        return self.attachment

    @property
    def marks(self) -> set[int]:
        assert self.attachment is not None
        return self.bitmaps.bitmaps.get(dirty_key("v", self.attachment.spec.epoch), (0, set()))[1]

    def events(self) -> list[jr.Record]:
        return [decode_journal(value) for value in self.journals.journal("v").values]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(5):
            while not (value := condition()):
                await asyncio.sleep(0)
            return value

    async def close(self) -> None:
        if self.client:
            await self.client.close()
        if self.attachment:
            await self.attachment.close(drain_seconds=0)


@pytest.fixture
async def bench(short_dir: Path) -> AsyncIterator[Bench]:
    bench = Bench(short_dir)
    yield bench
    await bench.close()


async def answered(work: Awaitable[Any], seconds: float = 0.15) -> bool:
    """Whether the guest gets its answer; an unanswered request stays in flight."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if done:
        task.result()
    else:
        pending.append(task)
    return bool(done)


pending: list[asyncio.Future[Any]] = []


@pytest.fixture(autouse=True)
async def no_pending() -> AsyncIterator[None]:
    yield
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    pending.clear()


async def test_async_answers_once_the_region_is_marked_and_before_the_ack(bench: Bench) -> None:
    client = await bench.attach("async")
    gate = bench.block()
    assert await answered(client.write(3 * MIB - 1, b"ab"), 2)
    assert bench.marks == {2, 3}
    assert len(bench.events()) == 1, "only EpochStarted"
    gate.set_result(None)
    await bench.until(lambda: len(bench.events()) == 2)
    event = bench.events()[1]
    assert isinstance(event, jr.Write)
    assert (event.seq, event.start, bytes(event.data)) == (1, 3 * MIB - 1, b"ab")


async def test_journal_answers_after_the_ack(bench: Bench) -> None:
    client = await bench.attach("journal")
    gate = bench.block()
    work = asyncio.ensure_future(client.write(0, b"x"))
    assert not await answered(asyncio.shield(work))
    gate.set_result(None)
    await work


async def test_without_redis_async_answers_after_the_ack(bench: Bench) -> None:
    client = await bench.attach("async")
    bench.bitmaps.unavailable = True
    gate = bench.block()
    work = asyncio.ensure_future(client.write(0, b"x"))
    assert not await answered(asyncio.shield(work))
    gate.set_result(None)
    await work
    bench.journals.fault = None
    assert await answered(client.write(0, b"y"), 2), "Kafka's ack is enough"
    assert bench.errors == []


async def test_marks_come_back_with_redis(bench: Bench) -> None:
    client = await bench.attach("async")
    bench.bitmaps.unavailable = True
    gate = bench.block()
    assert not await answered(client.write(5 * MIB, b"x"))
    bench.bitmaps.unavailable = False
    await bench.until(lambda: bench.marks == {5})
    assert await answered(client.write(5 * MIB, b"y"), 2), "marked, so it need not wait"
    gate.set_result(None)


async def test_large_requests_are_split_and_answered_once(bench: Bench) -> None:
    client = await bench.attach("journal")
    data = bytes(range(256)) * (3 * MIB // 256 + 1)
    await client.write(MIB // 2, data)
    await client.zero(0, 10 * MIB)
    *writes, zero = bench.events()[1:]
    assert b"".join(bytes(event.data) for event in writes) == data
    assert all(len(event.data) <= MIB for event in writes)
    assert [event.seq for event in [*writes, zero]] == list(range(1, len(writes) + 2))
    assert isinstance(zero, jr.Zero)


async def test_reads_are_refused_and_a_second_connection_too(bench: Bench) -> None:
    client = await bench.attach()
    with pytest.raises(RequestError):
        await client.read(0, 512)
    assert bench.attachment is not None
    with pytest.raises(UnavailableError):
        await NbdClient.connect(path=bench.attachment.spec.socket, export="e")
    await client.write(0, b"still captured")


async def test_an_unknown_outcome_ends_capture_and_nothing_is_sent_again(bench: Bench) -> None:
    client = await bench.attach()
    appends: list[int] = []

    def lose(_volume: str, values: Any) -> Fault:
        appends.append(len(values))
        return Fault(lands=False, acked=False)

    bench.journals.fault = lose
    await client.write(0, b"x")
    await bench.until(lambda: bench.errors)
    assert isinstance(bench.errors[0], IndeterminateError)
    with pytest.raises(UnavailableError):
        await client.write(0, b"y")
    assert appends == [1]
    assert bench.marks == {0}, "what Kafka does not have stays dirty"


async def test_a_newer_epoch_fences(bench: Bench) -> None:
    client = await bench.attach()
    await client.write(0, b"x")
    await bench.until(lambda: len(bench.events()) == 2)
    await claim(bench.journals, "v", [], uuid.uuid4().hex, SIZE, "somebody else")
    await client.write(0, b"y")
    await bench.until(lambda: bench.errors)
    assert isinstance(bench.errors[0], FencedError)


async def test_a_foreign_late_batch_fences_nobody(bench: Bench) -> None:
    client = await bench.attach("journal")
    await client.write(0, b"x")
    late = bench.journals.writer("v")
    await late.start()
    await late.append([bench.journals.journal("v").values[-1]])
    await client.write(0, b"y")
    assert bench.errors == []
    assert bench.attachment is not None
    assert bench.attachment.acked_offset == 3


async def test_a_full_buffer_ends_capture(bench: Bench) -> None:
    client = await bench.attach(overload="gap", buffer_bytes=4 * MIB)
    bench.block()
    with pytest.raises(UnavailableError):
        await asyncio.gather(*(client.write(number * MIB, bytes(MIB)) for number in range(8)))
    assert "outran" in bench.errors[0].message


async def test_throttle_delays_each_answer_within_its_limit(bench: Bench) -> None:
    client = await bench.attach(overload="throttle", buffer_bytes=16 * MIB, delay_max_ms=50)
    bench.block()
    took = []
    for number in range(14):
        began = time.monotonic()
        await client.write(number * MIB, bytes(MIB))
        took.append(time.monotonic() - began)
    assert bench.errors == []
    assert min(took[12:]) >= 0.05, took
    assert max(took) < 0.05 + 0.2, took  # the machine's own delays
    assert bench.attachment is not None
    began = time.monotonic()
    bench.attachment.capture.release(throttling=False)
    await client.write(0, b"x")
    assert time.monotonic() - began < 0.045, "nothing is held while QEMU drains"


async def test_an_answer_is_not_held_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "HOLD_SECONDS_MAX", 0.2)
    client = await bench.attach("journal")
    bench.block()
    with pytest.raises(UnavailableError):
        await client.write(0, b"x")
    assert "waited" in bench.errors[0].message


async def test_close_drains(bench: Bench) -> None:
    client = await bench.attach()
    gate = bench.block()
    await client.write(0, b"x")
    assert bench.attachment is not None
    bench.attachment.expect_end()
    await client.close()
    closing = asyncio.ensure_future(bench.attachment.close(drain_seconds=5))
    assert not await answered(asyncio.shield(closing))
    gate.set_result(None)
    assert await closing == 1
    assert bench.errors == []


async def test_what_a_vanished_qemu_wrote_is_published_before_the_loss_is_reported(bench: Bench) -> None:
    client = await bench.attach()
    gate = bench.block()
    await client.write(0, b"last words")
    await client.close()
    assert bench.attachment is not None
    await bench.until(lambda: not bench.attachment or not bench.attachment.stats()["attached"])
    assert bench.errors == []
    gate.set_result(None)
    await bench.until(lambda: bench.errors)
    assert len(bench.events()) == 2
    assert "QEMU closed" in bench.errors[0].message


async def test_a_marker_stands_behind_what_was_answered_before(bench: Bench) -> None:
    client = await bench.attach()
    await client.write(0, b"before")
    assert bench.attachment is not None
    marker = bench.attachment.mark_checkpoint(7, checkpoint="c", group="g", kind="crash", periodic=False)
    offset = await marker
    event = bench.events()[offset]
    assert isinstance(event, jr.Checkpoint)
    assert (event.checkpoint, event.captured_at) == ("c", 7)
    assert offset == 2


class TestGroupHold:
    """Answers held for a checkpoint that spans agents."""

    async def test_nothing_is_answered_until_the_release_and_the_marker_lies_before(
        self, bench: Bench
    ) -> None:
        client = await bench.attach("async")
        await client.write(0, b"before")
        holds = Holds(bench.find, 5)
        holds.hold("h", ["v"], 5000)
        work = asyncio.ensure_future(client.write(0, b"during"))
        assert not await answered(asyncio.shield(work)), "marked, acked, and not answered"
        holds.mark("h", CHECKPOINT)
        assert not await answered(asyncio.shield(work))
        after = asyncio.ensure_future(client.write(8192, b"after"))
        answer = await holds.release("h")
        await asyncio.gather(work, after)
        await bench.until(lambda: len(bench.events()) == 5)
        names = [type(event).__name__ for event in bench.events()]
        assert names == ["EpochStarted", "Write", "Write", "Checkpoint", "Write"]
        assert answer["offsets"] == {"v": 3}
        assert answer["hold_ms"] >= 300

    async def test_the_limit_frees_the_guest_and_voids(self, bench: Bench) -> None:
        client = await bench.attach("async")
        await client.write(0, b"warm")
        holds = Holds(bench.find, 0.05)
        holds.hold("h", ["v"], 5000)
        began = time.monotonic()
        await client.write(0, b"x")
        assert 0.03 < time.monotonic() - began < 2, "the worker's own limit counts, not what was asked"
        with pytest.raises(UnavailableError, match="limit of 50 ms"):
            holds.mark("h", CHECKPOINT)

    async def test_a_limit_that_passed_after_the_mark_voids_too(self, bench: Bench) -> None:
        client = await bench.attach("async")
        holds = Holds(bench.find, 0.05)
        holds.hold("h", ["v"], 50)
        holds.mark("h", CHECKPOINT)
        await client.write(0, b"x")
        with pytest.raises(UnavailableError, match="before all had their markers"):
            await holds.release("h")

    async def test_a_draining_command_ends_it_and_none_begins_meanwhile(self, bench: Bench) -> None:
        client = await bench.attach("async")
        holds = Holds(bench.find, 5)
        holds.hold("h", ["v"], 5000)
        holds.drain(["other"])
        work = asyncio.ensure_future(client.write(0, b"x"))
        assert not await answered(asyncio.shield(work))
        holds.drain(["v"])
        await work
        with pytest.raises(UnavailableError, match="drains QEMU"):
            await holds.release("h")
        assert bench.attachment is not None
        bench.attachment.capture.release(throttling=False)
        with pytest.raises(ConflictError, match="is being changed"):
            Holds(bench.find, 5).hold("h2", ["v"], 5000)

    async def test_lost_capture_voids_it(self, bench: Bench) -> None:
        await bench.attach("async")
        holds = Holds(bench.find, 5)
        holds.hold("h", ["v"], 5000)
        holds.mark("h", CHECKPOINT)
        assert bench.attachment is not None
        bench.attachment._fail(UnavailableError("gone"))
        with pytest.raises(UnavailableError, match="is off"):
            await holds.release("h")

    async def test_one_at_a_time_and_a_rest_between(self, bench: Bench) -> None:
        await bench.attach("async")
        holds = Holds(bench.find, 5)
        holds.hold("h", ["v"], 5000)
        with pytest.raises(ConflictError):
            holds.hold("h2", ["v"], 5000)
        holds.drop("h")
        holds.drop("unknown")
        with pytest.raises(ConflictError):
            holds.hold("h3", ["v"], 5000)
        with pytest.raises(UnavailableError, match="unknown"):
            holds.mark("h3", CHECKPOINT)

    async def test_throttled_answers_are_held_too(self, bench: Bench) -> None:
        client = await bench.attach("async")
        await client.write(0, b"warm")
        assert bench.attachment is not None
        capture_side = bench.attachment.capture
        holds = Holds(bench.find, 5)
        cookie_due = time.monotonic() + 0.05
        holds.hold("h", ["v"], 5000)
        work = asyncio.ensure_future(client.write(0, b"x"))
        await bench.until(lambda: capture_side._held_back)
        # As if it had been delayed before the hold began.
        capture_side._delayed.append((cookie_due, capture_side._held_back.pop()))
        capture_side._arm()
        assert not await answered(asyncio.shield(work), 0.3)
        holds.drop("h")
        await work
