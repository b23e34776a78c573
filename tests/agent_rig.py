"""A RepAgent as a process of its own, with real Kafka and Redis; the test plays hub and diskbox.

Every rig has names of its own for agent and volumes, and its own pair of control topics would not help: the agent
follows `rephub.events`, so the rig begins behind what other rigs wrote and all names are fresh.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rephub.core.codec import decode_journal
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.digests import differing_chunks, digests_of
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.names import EVENTS_TOPIC
from rephub.infra.kafka.topics import JOURNAL_CONFIG, create_topics
from rephub.projections.catalogue import Catalogue
from rephub.projections.journal_fold import JournalFold, Verdict, fresh_state
from rephub.schemas import events as ev
from rephub.schemas import journal as jr

START = """
import sys
from rephub.agent.main import run
from rephub.core import logs
from rephub.core.config import load_settings
from pathlib import Path
settings = load_settings(Path(sys.argv[1]))
logs.configure(settings.log.level)
sys.exit(run(settings))
"""


def fresh(name: str = "v") -> str:
    """A name that no other test has used."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def apply(image: bytearray, record: jr.Record) -> None:
    """Do to an image what an event that changes bytes says."""
    if isinstance(record, jr.Zero):
        image[record.start : record.start + record.length] = bytes(record.length)
    else:
        assert isinstance(record, jr.Write | jr.SyncData)
        image[record.start : record.start + len(record.data)] = record.data


class Rig:
    """One agent and what the test asks of it."""

    def __init__(self, folder: Path, bootstrap: str, redis_url: str, **agent: Any) -> None:
        self.folder = folder
        self.agent = f"a{uuid.uuid4().hex[:8]}"
        self.bootstrap, self.redis_url = bootstrap, redis_url
        self.catalogue = Catalogue()
        self.events: list[ev.Record] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "agent.log"
        self._overrides = agent
        self._control = KafkaControlLog(bootstrap)
        self.journals = KafkaJournalStore(bootstrap, JOURNAL_CONFIG)
        self._following: asyncio.Task[None] | None = None
        self._next_port = 0
        self.auto_sync = True
        self.program = ["-c", START]
        """What Python runs as the agent."""

    async def start(self) -> None:
        """Start following and the agent."""
        await create_topics(self.bootstrap)
        await self._control.start()
        self._following = asyncio.create_task(self._follow())
        self.launch()
        await self.until("agent ready", self.ready)

    def launch(self) -> None:
        """Start the agent process."""
        with_port = {"id": self.agent, "port": self._port(), **self._overrides}
        lines = [
            f'state_dir = "{self.folder}"',
            "[kafka]",
            f'bootstrap = "{self.bootstrap}"',
            "[redis]",
            f'url = "{self.redis_url}"',
            "[agent]",
            *(f"{key} = {json.dumps(value)}" for key, value in with_port.items()),
        ]
        config = self.folder / "agent.toml"
        config.write_text("\n".join(lines))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, str(config)], stderr=log, stdout=log
            )

    def _port(self) -> int:
        if not self._next_port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._next_port = probe.getsockname()[1]
        return self._next_port

    def status(self) -> dict[str, Any] | None:
        """The `/status` document; None while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port()}/status", timeout=2) as answer:
                return json.load(answer)
        except OSError:
            return None

    def ready(self) -> bool:
        """Whether the agent says so."""
        status = self.status()
        return bool(status and status["ready"])

    def workers(self) -> list[int]:
        """Worker pids."""
        status = self.status()
        assert status is not None
        return list(status["workers"])

    def volume_status(self, volume: str) -> dict[str, Any]:
        """The volume's part of `/status`; empty while there is none."""
        return ((self.status() or {}).get("volumes") or {}).get(volume) or {}

    async def until(self, what: str, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait for a condition; the agent's log is in the failure."""
        deadline = time.monotonic() + seconds
        while True:
            value = await asyncio.to_thread(condition)
            if value:
                return value
            if self._following and self._following.done():
                self._following.result()
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.tail()}")
            await asyncio.sleep(0.03)

    def tail(self) -> str:
        """End of the agent's log."""
        return self.log.read_text()[-6000:] if self.log.exists() else ""

    def of(self, event_type: type[ev.Record], subject: str) -> list[Any]:
        """All events of a type about a volume, checkpoint or monitor."""
        return [
            event
            for event in self.events
            if type(event) is event_type
            and subject
            in (
                getattr(event, "volume", None),
                getattr(event, "checkpoint", None),
                getattr(event, "qmp", None),
            )
        ]

    async def tell(self, event_type: type[ev.Record], **fields: Any) -> Any:
        """Write an event as hub or diskbox."""
        event = event_type(
            id=str(uuid.uuid4()), at=time.time_ns() // 1000, source="test", hub_epoch=0, **fields
        )
        await self._control.append(EVENTS_TOPIC, event)
        return event

    async def protect(self, volume: str, qmp: Path | str, node: str, size_bytes: int, **options: Any) -> None:
        """What hub and diskbox do for a protect; returns at once."""
        await self.journals.admin().create(volume)
        defaults = {"group": volume, "ack": "async", "overload": "throttle", "diskbox": "box"}
        await self.tell(
            ev.StartProtect,
            volume=volume,
            qmp=str(qmp),
            node=node,
            history_seconds=3600,
            history_bytes=1 << 30,
            agent=self.agent,
            size_bytes=size_bytes,
            **(defaults | options),
        )
        await self.tell(
            ev.RecoveryVolumeCreated, volume=volume, diskbox="box", path="/none", size_bytes=size_bytes
        )

    async def protected(self, volume: str, seconds: float = 30) -> None:
        """Wait for state `protected`."""
        await self.until(f"{volume} protected", lambda: self.state(volume) == "protected", seconds)

    def state(self, volume: str) -> str:
        """As the catalogue says."""
        found = self.catalogue.volumes.get(volume)
        return found.state if found else ""

    async def checkpoint(self, name: str, *volumes: str) -> dict[str, int]:
        """A named checkpoint; offsets by volume."""
        await self.tell(
            ev.CheckpointRequested,
            checkpoint=name,
            volumes=tuple(volumes),
            group=None,
            agent=self.agent,
            kind="crash",
        )
        await self.until(
            f"checkpoint {name}",
            lambda: self.of(ev.CheckpointCreated, name) or self.of(ev.CheckpointFailed, name),
        )
        created = self.of(ev.CheckpointCreated, name)
        assert created, self.of(ev.CheckpointFailed, name)
        return dict(created[0].offsets)

    async def records(self, volume: str) -> list[tuple[int, jr.Record]]:
        """The whole journal."""
        reader = self.journals.reader(volume)
        await reader.start()
        try:
            found: list[tuple[int, jr.Record]] = []
            at, head = await reader.first_offset(), await reader.next_offset()
            while at < head:
                found += [
                    (stored.journal_offset, decode_journal(stored.value))
                    for stored in await reader.fetch(at)
                    if at <= stored.journal_offset < head
                ]
                at = found[-1][0] + 1
            return found
        finally:
            await reader.close()

    async def replay(self, volume: str, size_bytes: int, last_offset: int | None = None) -> tuple[bytes, Any]:
        """The volume at an offset, by applying the journal's events to zeroes; and the state of the fold."""
        image = bytearray(size_bytes)
        state = fresh_state(-1, size_bytes)
        fold = JournalFold(state)
        for offset, record in await self.records(volume):
            if last_offset is not None and offset > last_offset:
                break
            verdict = fold.feed(offset, record)
            assert verdict is not Verdict.POISON, state.poison_reason
            if state.size_bytes != len(image):
                image = image[: state.size_bytes].ljust(state.size_bytes, b"\0")
            if verdict is not Verdict.APPLY:
                continue
            apply(image, record)
        return bytes(image), state

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 30)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def close(self) -> None:
        """End everything."""
        if self.process and self.process.poll() is None:
            try:
                assert await self.stop() == 0, self.tail()
            finally:
                if self.process.poll() is None:
                    os.kill(self.process.pid, signal.SIGKILL)
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._control.close()
        await self.journals.close()

    async def _follow(self) -> None:
        async for entries in self._control.tail(EVENTS_TOPIC, 0):
            for offset, event in entries:
                self.catalogue.apply(offset, event)  # type: ignore[arg-type]
                self.events.append(event)  # type: ignore[arg-type]
                if isinstance(event, ev.FilterAttached) and event.agent == self.agent and self.auto_sync:
                    await self.tell(ev.SyncRequested, volume=event.volume, epoch=event.epoch)
                await self._compare(event)

    async def _compare(self, event: Any) -> None:
        """Do the diskbox's half of a sync that compares."""
        if event.source != f"agent/{self.agent}":
            return
        if isinstance(event, ev.VolumeSyncStarted) and event.mode == "compare":
            run = self.catalogue.volumes[event.volume].attachment_id
            await self.tell(ev.ComparisonAccepted, run=run, volume=event.volume, diskbox="box")
        elif isinstance(event, ev.ExtentsDigested):
            differing, compared_bytes = await self._differing(event)
            await self.tell(
                ev.ExtentsCompared,
                run=event.run,
                round=event.round,
                volume=event.volume,
                offset=event.last_offset,
                compared_bytes=compared_bytes,
                differing_bytes=sum(item.length for item in differing),
                differing=tuple(differing),
            )

    async def _differing(self, event: ev.ExtentsDigested) -> tuple[list[ev.ExtentItem], int]:
        image, fold = bytearray(), JournalFold(fresh_state(-1, 0))
        differing, compared_bytes = [], 0
        for offset, record in await self.records(event.volume):
            if fold.feed(offset, record) is Verdict.APPLY:
                apply(image, record)
            if len(image) != fold.state.size_bytes:
                image = image[: fold.state.size_bytes].ljust(fold.state.size_bytes, b"\0")
            if isinstance(record, jr.Digest) and (record.run, record.round) == (event.run, event.round):
                said = record.digests or digests_of(bytes(record.length), record.start, record.chunk_bytes)
                here = image[record.start : record.start + record.length]
                differing += differing_chunks(here, record.start, record.chunk_bytes, said)
                compared_bytes += record.length
        return [ev.ExtentItem(start=start, length=length) for start, length in differing], compared_bytes
