"""The hub on a real Kafka, with scripted agents and diskboxes that write real events; killed at every step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control_world import agent_due, diskbox_due, head, node
from rephub.core.control.ids import command_id
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import NotFoundError, from_json
from rephub.core.http import StatusServer
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.names import COMMANDS_TOPIC, EVENTS_TOPIC
from rephub.infra.kafka.broker import Broker
from rephub.infra.kafka.topics import create_topics
from rephub.infra.ports import kept_ports
from rephub.projections.catalogue import Catalogue
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

REPHUB = Path(sys.executable).parent / "rephub"
DEADLINE_SECONDS = 40.0


class Hub:
    """`rephub hub` as a process."""

    def __init__(self, state_dir: Path, bootstrap: str, name: str = "h1") -> None:
        state_dir.mkdir(exist_ok=True)
        self.state_dir = state_dir
        self.port = kept_ports(state_dir / f"{name}.ports", ["hub"])["hub"]
        self.log = state_dir / f"{name}.log"
        self.environment = os.environ | {
            "REPHUB_KAFKA__BOOTSTRAP": bootstrap,
            "REPHUB_HUB__PORT": str(self.port),
            "REPHUB_HUB__ID": name,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [REPHUB, "hub", "--state-dir", str(self.state_dir)],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        self.spawn()
        self.until(lambda: self.get("/status").get("ready"), "the hub is ready")

    def text(self, path: str) -> str:
        """A page of its status server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
            return str(answer.read().decode())

    def get(self, path: str) -> dict[str, Any]:
        """A document of its status server; empty while there is none."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.text(path)))
        return {}

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{what}: {self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def end(self, number: int) -> int:
        """Send a signal; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=15)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Site:
    """Agent a1 and diskbox d1 as scripts, an operator who sends commands, and what all of them have read."""

    def __init__(self, control: KafkaControlLog, diskbox_url: str) -> None:
        self.control = control
        self.diskbox_url = diskbox_url
        self.catalogue = Catalogue()
        self.seen: list[ev.Record] = []
        self._looked_at = 0
        self.vms = {"/vm.sock": [node("n1"), node("n2")]}

    async def begin(self) -> None:
        """Know what the tests before left in the log; only what comes from now on is waited for."""
        await self.fold()
        self._looked_at = len(self.seen)

    async def announce(self) -> None:
        now = time.time_ns() // 1000
        cause = command_id()
        agent = head(ev.AgentAnnounced, cause, "a1", now, "agent/a1")
        diskbox = head(ev.DiskboxAnnounced, cause, "d1", now, "diskbox/d1")
        await self.write(ev.AgentAnnounced(**agent, agent="a1", host="h", pid=1, url="http://127.0.0.1:9"))
        await self.write(
            ev.DiskboxAnnounced(**diskbox, diskbox="d1", host="h", pid=1, url=self.diskbox_url, capacity=27)
        )

    async def write(self, event: ev.Record) -> None:
        await self.control.append(EVENTS_TOPIC, event)

    async def fold(self) -> list[ev.Record]:
        """Read what is new."""
        first = self.catalogue.next_offset
        entries = await self.control.read(EVENTS_TOPIC, first, await self.control.next_offset(EVENTS_TOPIC))
        for offset, event in entries:
            self.catalogue.apply(offset, event)
        new = [event for _, event in entries]
        self.seen += new
        return new

    async def act(self) -> list[ev.Record]:
        """Let agent and diskbox do what is due, once."""
        await self.fold()
        now = time.time_ns() // 1000
        due = agent_due(self.catalogue, "a1", self.vms, now) + diskbox_due(self.catalogue, "d1", now)
        for event in due:
            await self.write(event)
        return due

    async def until(self, kind: type, command: cmd.Record | None = None, *, acting: bool = True) -> Any:
        """Go on until an event of a kind, of this command if one is given, has come; the event."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            await self.fold()
            while self._looked_at < len(self.seen):
                event = self.seen[self._looked_at]
                self._looked_at += 1
                if isinstance(event, kind) and (command is None or event.command_id == command.id):
                    return event
                if command is not None and isinstance(event, ev.CommandRejected):
                    assert event.command_id != command.id, event.error
            if acting:
                await self.act()
            names = [type(event).__name__ for event in self.seen[-8:]]
            assert time.monotonic() < deadline, f"no {kind.__name__}; the last events: {names}"
            await asyncio.sleep(0.02)

    async def send(self, kind: type, **fields: Any) -> Any:
        """Send a command."""
        now = time.time_ns() // 1000
        base = {"id": command_id(), "at": now, "source": "cli/test", "deadline_at": now + 60_000_000}
        command = kind(**base, **fields)
        await self.control.append(COMMANDS_TOPIC, command)
        return command

    async def protect(self, volume: str, node_name: str = "n1") -> cmd.Protect:
        return await self.send(
            cmd.Protect,
            volume=volume,
            group=volume,
            qmp="/vm.sock",
            node=node_name,
            ack="async",
            overload="throttle",
            history_seconds=3600,
            history_bytes=1 << 30,
        )

    async def promote(self, volume: str) -> cmd.Promote:
        return await self.send(cmd.Promote, volume=volume, point_kind="latest", point_value="", dry_run=False)


class Killer:
    """Kills the hub as soon as it has written what was waited for; agent and diskbox answer while it is down."""

    def __init__(self, hub: Hub, site: Site) -> None:
        self.hub, self.site = hub, site
        self.kills = 0
        hub.start()
        hub.kill()

    async def steps(self, command: cmd.Record | None, *kinds: type) -> None:
        """Once after each of these events, of the command if one is given."""
        for kind in kinds:
            self.hub.start()
            await self.site.until(kind, command, acting=False)
            self.hub.kill()
            self.kills += 1
            while await self.site.act():
                pass

    async def judge(self) -> None:
        """Every event counted once: a replay of the log gives the same."""
        site = self.site
        replayed = Catalogue()
        for offset, event in await site.control.read(EVENTS_TOPIC, 0, site.catalogue.next_offset):
            replayed.apply(offset, event)
        assert replayed.to_json() == site.catalogue.to_json()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A broker of this module's own: the control topics have fixed names."""
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as name:
        found = Broker(Path(name) / "broker")
        found.start()
        yield found
        found.stop()


@pytest.fixture
def hub(broker: Broker, short_dir: Path) -> Iterator[Hub]:
    found = Hub(short_dir, broker.bootstrap)
    yield found
    found.kill()


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[Site]:
    await create_topics(broker.bootstrap)
    control = KafkaControlLog(broker.bootstrap)
    await control.start()
    page = StatusServer("127.0.0.1", 0, lambda: {"id": "d1"})
    found = Site(control, await page.start())
    await found.begin()
    await found.announce()
    yield found
    await page.stop()
    await control.close()


async def journal_exists(broker: Broker, volume: str) -> bool:
    store = KafkaJournalStore(broker.bootstrap, topic_config={}, replication_factor=1)
    reader = store.reader(volume)
    try:
        await reader.start()
    except NotFoundError:
        return False
    else:
        return True
    finally:
        await reader.close()
        await store.close()


async def test_the_life_of_a_volume(broker: Broker, hub: Hub, site: Site) -> None:
    """Protect, checkpoint, test, promote, purge; the journal exists before StartProtect and is gone at the end."""
    hub.start()
    command = await site.protect("life")
    await site.until(ev.StartProtect, command, acting=True)
    assert await journal_exists(broker, "life")
    await site.until(ev.VolumeSyncCompleted)
    await site.until(
        ev.CheckpointCreated,
        await site.send(cmd.CreateCheckpoint, checkpoint="c", volume="life", quiesce=False),
    )
    point = {"point_kind": "latest", "point_value": ""}
    await site.until(
        ev.FotStarted, await site.send(cmd.StartFot, fot="f", volume="life", read_only=False, **point)
    )
    await site.send(cmd.StopFot, fot="f")
    await site.until(ev.FotStopped)
    await site.until(ev.Promoted, await site.promote("life"))
    hub.until(
        lambda: hub.get("/api/catalogue")["volumes"]["life"]["state"] == "promoted", "the catalogue follows"
    )
    metrics = hub.text("/metrics")
    assert 'rephub_volume_state{state="promoted",volume="life"} 1.0' in metrics
    done = await site.until(ev.Unprotected, await site.send(cmd.Unprotect, volume="life", purge=True))
    assert done.purged
    assert not await journal_exists(broker, "life")
    again = await site.protect("life")
    await site.until(ev.FilterAttached, again)
    await site.until(ev.Unprotected, await site.send(cmd.Unprotect, volume="life", purge=True))
    assert site.catalogue.ignored_events == 0
    assert hub.end(signal.SIGTERM) == 0


async def test_killed_between_any_event_and_its_reaction(broker: Broker, hub: Hub, site: Site) -> None:
    """SIGKILL on each of the hub's own events; agent and diskbox answer, and the next command is sent, while it is
    down. After each restart the flow goes on, and every event counted once."""
    killer = Killer(hub, site)
    steps = killer.steps
    await steps(
        await site.protect("kill"),
        ev.ProtectRequested,
        ev.VmProbeRequested,
        ev.StartProtect,
        ev.SyncRequested,
    )
    assert site.catalogue.volumes["kill"].state == "protected"
    await steps(await site.promote("kill"), ev.PromoteRequested, ev.PromoteStarted)
    assert site.catalogue.volumes["kill"].state == "promoted"
    command = await site.send(cmd.Unprotect, volume="kill", purge=True)
    await steps(command, ev.UnprotectRequested, ev.Unprotected)
    assert site.catalogue.volumes["kill"].purged
    assert not await journal_exists(broker, "kill")
    assert killer.kills == 8
    await killer.judge()


async def test_killed_between_the_events_of_a_failover(hub: Hub, site: Site) -> None:
    """As above: a move that is rolled back, and a fail-over that is committed and closed."""
    killer = Killer(hub, site)
    await killer.steps(
        await site.protect("fo"), ev.ProtectRequested, ev.VmProbeRequested, ev.StartProtect, ev.SyncRequested
    )
    point = {"point_kind": "latest", "point_value": "", "dry_run": False}
    move = await site.send(cmd.Failover, volume="fo", planned=True, **point)
    await killer.steps(move, ev.FailoverRequested, ev.FailoverStarted)
    assert site.catalogue.volumes["fo"].state == "failed_over"
    await killer.steps(await site.send(cmd.Rollback, volume="fo"), ev.RollbackRequested)
    while site.catalogue.volumes["fo"].state != "protected":
        hub.start()
        await site.until(ev.SyncRequested)
        hub.kill()
        while await site.act():
            pass
    forced = await site.send(cmd.Failover, volume="fo", planned=False, **point)
    await killer.steps(forced, ev.FailoverRequested, ev.FailoverStarted)
    commit = await site.send(cmd.Commit, volume="fo", close=True)
    await killer.steps(commit, ev.CommitRequested)
    await killer.steps(None, ev.FailoverCloseRequested)
    assert [found.state for found in site.catalogue.failovers.values()] == ["rolled_back", "closed"]
    await killer.judge()


async def test_a_command_sent_twice_acts_once(hub: Hub, site: Site) -> None:
    hub.start()
    command = await site.protect("twice")
    await site.control.append(COMMANDS_TOPIC, command)
    await site.until(ev.VolumeSyncCompleted)
    await site.control.append(COMMANDS_TOPIC, command)
    other = await site.send(cmd.Resync, volume="nobody")
    refused = await site.until(ev.CommandRejected, other)
    assert isinstance(from_json(refused.error), NotFoundError)
    answers = [
        e for e in site.seen if getattr(e, "command_id", None) == command.id and e.cause_id == command.id
    ]
    assert [type(event).__name__ for event in answers] == ["ProtectRequested"]
    await site.until(ev.Unprotected, await site.send(cmd.Unprotect, volume="twice", purge=True))


async def test_foreign_records_are_skipped(hub: Hub, site: Site) -> None:
    hub.start()
    for topic in (COMMANDS_TOPIC, EVENTS_TOPIC):
        for value in (b"", b"garbage", b"\xc3\x01" + bytes(8)):
            await site.control.append_raw(topic, value)
    await site.until(ev.CommandRejected, await site.send(cmd.Resync, volume="nobody"))
    assert hub.get("/status")["ready"]


async def test_without_its_snapshot_it_knows_the_same(hub: Hub, site: Site) -> None:
    hub.start()
    await site.until(ev.FilterAttached, await site.protect("snap"))
    await site.until(ev.VolumeSyncCompleted)
    assert hub.end(signal.SIGTERM) == 0
    snapshot = hub.state_dir / "hub" / "catalogue.json"
    before = json.loads(snapshot.read_text())["catalogue"]
    snapshot.unlink()
    hub.start()
    after = hub.get("/api/catalogue")
    changed = {"hub_epoch", "next_offset", "hub_event_id", "seen", "commands"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert after["hub_epoch"] == before["hub_epoch"] + 1
    await site.until(ev.Unprotected, await site.send(cmd.Unprotect, volume="snap", purge=True))


async def test_a_second_hub_takes_over(broker: Broker, hub: Hub, site: Site) -> None:
    """The first ends with the exit code of FencedError, the second answers."""
    hub.start()
    second = Hub(hub.state_dir / "second", broker.bootstrap, "h2")
    try:
        second.spawn()
        assert hub.process is not None
        assert hub.process.wait(timeout=DEADLINE_SECONDS) == 10
        second.until(lambda: second.get("/status").get("ready"), "the second hub is ready")
        await site.until(ev.CommandRejected, await site.send(cmd.Resync, volume="nobody"))
    finally:
        second.kill()


def test_no_kafka(short_dir: Path) -> None:
    """A clear error in one line, and the exit code of UnavailableError."""
    hub = Hub(short_dir, "127.0.0.1:9")
    done = subprocess.run(
        [REPHUB, "hub", "--state-dir", str(short_dir)],
        env=hub.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "127.0.0.1:9" in line


async def test_the_broker_restarts(new_broker: Callable[[], Broker], short_dir: Path) -> None:
    """While Kafka is away the hub waits; then it answers what was asked meanwhile."""
    broker = new_broker()
    broker.start()
    hub = Hub(short_dir, broker.bootstrap)
    await create_topics(broker.bootstrap)
    control = KafkaControlLog(broker.bootstrap)
    await control.start()
    site = Site(control, "")  # no diskbox announces itself here
    try:
        hub.start()
        broker.kill()
        broker.start()
        command = await site.send(cmd.Resync, volume="nobody")
        await site.until(ev.CommandRejected, command)
        assert hub.process is not None
        assert hub.process.poll() is None
    finally:
        hub.kill()
        await control.close()
