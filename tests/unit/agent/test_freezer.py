"""Freeze and thaw against a guest agent that does what goes wrong in guests; its socket and protocol are real."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rephub.agent import freezer
from rephub.agent.checkpoints import Checkpoints
from rephub.agent.freezer import Freezer
from rephub.agent.guest_agent import PORT, find_socket
from rephub.agent.worker import Worker
from rephub.core.config import AgentSettings
from rephub.core.errors import ConflictError, NotFoundError, QemuError, RephubError, UnavailableError
from rephub.projections.catalogue import Checkpoint
from rephub.schemas import events as ev


class FakeGuest:
    """A VM as the agent sees it: its monitor's answers, and a guest agent behind a unix socket."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = str(folder / f"{name}.qmp")
        self.socket = folder / f"{name}.ga"
        self.frozen = False
        self.seen: list[str] = []
        self.trouble: dict[str, list[Any]] = {}
        """By command: what happens instead, one per call: an answer, "drop" or "hang"."""
        self.released = asyncio.Event()
        """Ends the hang."""
        self.chardev: dict[str, Any] = {
            "label": "ga",
            "frontend-open": True,
            "filename": f"disconnected:unix:{self.socket},server=on",
        }
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def stop(self) -> None:
        self.released.set()
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        self.socket.unlink(missing_ok=True)

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The monitor."""
        path = (arguments or {}).get("path", "")
        if command == "qom-list":
            anonymous = path.endswith("anon")
            return [{"name": "device[1]", "type": "child<virtserialport>"}] if anonymous else []
        if command == "qom-get":
            return PORT if (arguments or {})["property"] == "name" else "ga"
        assert command == "query-chardev"
        return [{"label": "serial", "filename": "pty:/dev/pts/0"}, self.chardev]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What the client before us did not fetch.
        writer.write(b'{"return": {"left": "over"}}\n{"ret')
        try:
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                command = request["execute"].removeprefix("guest-").removeprefix("fsfreeze-")
                self.seen.append(command)
                troubles = self.trouble.get(command)
                trouble = troubles.pop(0) if troubles else None
                if trouble == "drop":
                    break
                if trouble == "hang":
                    await self.released.wait()
                    trouble = None
                if trouble is not None:
                    writer.write(json.dumps(trouble).encode() + b"\n")
                elif command == "sync-delimited":
                    writer.write(
                        b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
                    )
                else:
                    writer.write(json.dumps({"return": self._do(command)}).encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _do(self, command: str) -> Any:
        if command == "status":
            return "frozen" if self.frozen else "thawed"
        self.frozen = command == "freeze"
        return 1


class Site:
    """Guests, and a freezer that reaches them by their monitors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guests: dict[str, FakeGuest] = {}
        self.freezer = self.make(2.0)

    def make(self, seconds: float) -> Freezer:
        return Freezer(self, self.folder / "agent", seconds)  # type: ignore[arg-type]

    async def guest(self, name: str = "vm1") -> FakeGuest:
        guest = FakeGuest(self.folder, name)
        await guest.start()
        self.guests[guest.path] = guest
        return guest

    async def get(self, path: str, _user: object) -> FakeGuest:
        return self.guests[path]

    def give_back(self, path: str, _user: object) -> None:
        assert path in self.guests

    @property
    def noted(self) -> bool:
        return (self.folder / "agent/frozen.json").exists()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(freezer, "SYNC_SECONDS", 0.3)
    monkeypatch.setattr(freezer, "THAW_SECONDS", 0.3)
    monkeypatch.setattr(freezer, "WAIT_SECONDS", 1.0)
    found = Site(tmp_path)
    yield found
    for guest in found.guests.values():
        await guest.stop()
    await found.freezer.stop()


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_all_are_frozen_then_thawed(site: Site) -> None:
    one, two = await site.guest("vm1"), await site.guest("vm2")
    frozen = await site.freezer.freeze([one.path, two.path, one.path])
    assert frozen.failure is None
    assert one.frozen
    assert two.frozen
    assert site.noted
    assert one.seen == ["sync-delimited", "freeze", "status"]
    assert await frozen.thawed() == ""
    assert not one.frozen
    assert not two.frozen
    await until(lambda: not site.noted)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"sync-delimited": ["hang"]}, "does not answer within"),
        ({"freeze": [{"error": {"class": "GenericError", "desc": "no such thing"}}]}, "no such thing"),
        ({"freeze": [{"return": 0}]}, "no file system"),
        ({"freeze": [{"return": {}}]}, "no file system"),
        ({"freeze": ["drop"]}, "was closed"),
        ({"freeze": ["not json's shape"]}, "answers guest-fsfreeze-freeze with"),
        ({"status": [{"return": "thawed"}]}, "thawed by itself"),
    ],
)
async def test_a_step_that_fails_leaves_no_guest_frozen(
    site: Site, trouble: dict[str, list[Any]], words: str
) -> None:
    good, bad = await site.guest("good"), await site.guest("bad")
    bad.trouble = trouble
    frozen = await site.freezer.freeze([good.path, bad.path])
    assert frozen.failure is not None
    assert words in frozen.failure.message
    assert await frozen.thawed() == ""
    assert not good.frozen
    assert not bad.frozen
    if "sync-delimited" not in trouble:
        assert bad.seen[-1] == "thaw"
        assert good.seen[-1] in ("thaw", "sync-delimited")
    await until(lambda: not site.noted)


async def test_a_freeze_that_takes_too_long_is_thawed_when_it_ends(site: Site) -> None:
    guest = await site.guest()
    guest.trouble = {"freeze": ["hang"]}
    began = time.monotonic()
    frozen = await site.make(0.3).freeze([guest.path])
    assert time.monotonic() - began < 2.5
    assert frozen.failure is not None
    assert "not frozen within 0.3 s" in frozen.failure.message
    assert str(guest.socket) in await frozen.thawed()
    assert site.noted
    guest.released.set()
    await until(lambda: "thaw" in guest.seen)
    assert not guest.frozen
    await until(lambda: not site.noted)


async def test_a_thaw_is_repeated_until_it_is_confirmed(site: Site) -> None:
    guest = await site.guest()
    guest.trouble = {"thaw": [{"error": {"desc": "busy"}}, "drop", "nonsense"]}
    frozen = await site.freezer.freeze([guest.path])
    frozen.thaw()
    await until(lambda: not guest.frozen)
    assert guest.seen.count("thaw") == 4


async def test_a_guest_is_thawed_at_the_limit_though_nobody_asks(site: Site) -> None:
    guest = await site.guest()
    frozen = await site.make(0.5).freeze([guest.path])
    assert guest.frozen
    await until(lambda: not guest.frozen)
    assert time.monotonic() >= frozen.until


async def test_cancellation_thaws(site: Site) -> None:
    guest = await site.guest()
    guest.trouble = {"status": ["hang"]}
    freezing = asyncio.create_task(site.freezer.freeze([guest.path]))
    await until(lambda: guest.frozen)
    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    guest.released.set()
    await until(lambda: not guest.frozen)


async def test_a_vm_that_goes_away_ends_the_thaw(site: Site) -> None:
    guest = await site.guest()
    guest.trouble = {"freeze": ["drop"], "sync-delimited": [None, "drop"]}
    await guest.stop()
    frozen = await site.freezer.freeze([guest.path])
    assert isinstance(frozen.failure, NotFoundError)
    assert await frozen.thawed() == ""


async def test_the_next_process_thaws_what_a_killed_one_left(site: Site) -> None:
    guest = await site.guest()
    left = await site.make(60).freeze([guest.path])
    left.agents[0].close()
    assert guest.frozen
    again = site.make(2)
    again.recover()
    await until(lambda: not guest.frozen)
    await again.stop()
    assert not site.noted
    await left.thawed()


async def test_freezes_wait_for_each_other(site: Site) -> None:
    guest = await site.guest()
    first = await site.freezer.freeze([guest.path])
    second = asyncio.create_task(site.freezer.freeze([guest.path]))
    await asyncio.sleep(0.05)
    assert guest.seen.count("freeze") == 1
    await first.thawed()
    frozen = await second
    assert frozen.failure is None
    assert guest.frozen
    await frozen.thawed()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"label": "other"}, NotFoundError),
        ({"filename": "pty:/dev/pts/1"}, NotFoundError),
        ({"filename": "disconnected:unix:/client-mode"}, NotFoundError),
        ({"filename": "unix:/some/ga,server=on"}, ConflictError),
        ({"frontend-open": False}, UnavailableError),
    ],
)
async def test_sockets_that_cannot_be_used(
    site: Site, changes: dict[str, Any], error: type[RephubError]
) -> None:
    guest = await site.guest()
    guest.chardev |= changes
    with pytest.raises(error) as raised:
        await find_socket(guest)  # type: ignore[arg-type]
    assert raised.value.hint


async def test_a_qemu_without_devices_has_no_guest_agent(site: Site) -> None:
    guest = await site.guest()

    async def refuse(command: str, _arguments: object = None) -> Any:
        raise QemuError("refused", command=command, description="Device '/machine' not found")

    guest.execute = refuse  # type: ignore[method-assign]
    with pytest.raises(NotFoundError):
        await find_socket(guest)  # type: ignore[arg-type]


class FakeWorker:
    """Puts markers in at once; acks them after the guest was seen."""

    def __init__(self, guest: FakeGuest) -> None:
        self.on_marked: dict[str, Any] = {}
        self.frozen_at_mark: list[bool] = []
        self.late = False
        self._guest = guest

    async def call(
        self, op: str, _seconds: float, *, volumes: list[str], fields: Any, frozen_until: Any
    ) -> Any:
        assert op == "checkpoint"
        self.frozen_at_mark.append(self._guest.frozen)
        if self.late:
            await asyncio.sleep(max(0.0, frozen_until - time.monotonic()))
        kind = fields["kind"]
        if frozen_until is not None and time.monotonic() >= frozen_until:
            kind = "crash"
        self.on_marked[fields["checkpoint"]]()
        # Thawed before the ack, which may take long.
        await until(lambda: not self._guest.frozen)
        return {"offsets": dict.fromkeys(volumes, 7), "captured_at": 1, "kind": kind}


@pytest.mark.parametrize(
    ("trouble", "late", "kind", "words"),
    [
        ({}, False, "app", None),
        ({}, True, "crash", "limit of the freeze"),
        ({"freeze": [{"error": {"desc": "denied"}}]}, False, "crash", "denied"),
    ],
)
async def test_the_event_says_what_was_made(
    site: Site, trouble: dict[str, Any], late: bool, kind: str, words: str | None
) -> None:
    guest = await site.guest()
    guest.trouble = trouble
    worker = FakeWorker(guest)
    worker.late = late
    emitted: list[Any] = []
    checkpoint = Checkpoint(
        name="c1", volumes=["v"], group="g", agent="a1", kind="app", event_id="e", command_id="c"
    )
    parts = SimpleNamespace(
        vms=site,
        settings=SimpleNamespace(
            agent_dir=site.folder / "agent",
            agent=AgentSettings(id="a1", freeze_seconds=0.5),
        ),
        catalogue=SimpleNamespace(
            checkpoints={"c1": checkpoint}, volumes={"v": SimpleNamespace(qmp=guest.path, agent="a1")}
        ),
        announcer=SimpleNamespace(emit=lambda event, _subject, **fields: emitted.append((event, fields))),
    )
    keepers = {"v": SimpleNamespace(worker=worker, is_consistent=True, reason="")}
    checkpoints = Checkpoints(parts, keepers)  # type: ignore[arg-type]
    checkpoints.look()
    await until(lambda: emitted)
    assert worker.frozen_at_mark == [words is None or late]
    (event, fields) = emitted[0]
    assert event is ev.CheckpointCreated
    assert fields["kind"] == kind
    assert (words is None and fields["warning"] is None) or words in fields["warning"]
    assert not guest.frozen
    await checkpoints.stop()


@pytest.mark.parametrize(("left_seconds", "kind"), [(60.0, "app"), (-0.001, "crash"), (None, "app")])
async def test_a_marker_after_the_limit_says_crash(left_seconds: float | None, kind: str) -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(theirs)
    marked: list[Any] = []

    def mark(_captured_at: int, **fields: Any) -> asyncio.Future[int]:
        marked.append(fields["kind"])
        acked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        acked.set_result(7)
        return acked

    worker._attachments = {"v": SimpleNamespace(mark_checkpoint=mark)}  # type: ignore[dict-item]
    worker._channel = SimpleNamespace(notify=lambda _notice, **_fields: None)  # type: ignore[assignment]
    until = None if left_seconds is None else time.monotonic() + left_seconds
    answer = await worker._checkpoint(["v"], {"checkpoint": "c", "kind": "app"}, until)
    assert (answer["kind"], marked) == (kind, [kind])
    ours.close()
    theirs.close()
