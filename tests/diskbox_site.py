"""A diskbox under test: hub and agent are played by the test, which writes their events and the journal."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from journal_model import JournalModel
from rephub.consumers.diskbox.fots import Limits
from rephub.consumers.diskbox.service import Diskbox
from rephub.consumers.diskbox.status import status_document
from rephub.core.bitmap.memory import MemoryBitmapStore
from rephub.core.control.port import ControlLog
from rephub.core.journal.port import JournalStore
from rephub.core.names import EVENTS_TOPIC
from rephub.core.nbd.client import NbdClient
from rephub.projections.catalogue import Catalogue
from rephub.schemas import events as ev

WAIT = 30.0


class DiskboxSite:
    """One diskbox, any number of volumes, and the log they share."""

    def __init__(self, state_dir: Path, store: JournalStore, control: ControlLog, **options: Any) -> None:
        self.state_dir = state_dir
        self.store, self.control = store, control
        self.bitmaps = MemoryBitmapStore()
        self.box = "box"
        self.options = {
            "limits": Limits(1 << 30, 0, save=True),
            "capacity": 27,
            "pace_seconds": 0.0,
            "detach_seconds": 0.2,
        } | options
        self.models: dict[str, JournalModel] = {}
        self.published: dict[str, int] = {}
        self.diskbox: Diskbox
        self.task: asyncio.Task[None]

    async def start(self) -> None:
        self.diskbox = Diskbox(
            self.box, self.state_dir, self.store, self.control, self.bitmaps, **self.options
        )
        self.task = asyncio.create_task(self.diskbox.run())
        await self.until(lambda _: self.diskbox.ready, "ready")

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def tell(self, kind: type, /, **fields: Any) -> str:
        """An event of hub or agent; returns its id."""
        event_id = fields.pop("id", str(uuid.uuid4()))
        event = kind(id=event_id, at=1, source="test", hub_epoch=0, **fields)
        await self.control.append(EVENTS_TOPIC, event)
        return event_id

    async def until(self, condition: Callable[[Catalogue], Any], what: str) -> Any:
        """Wait until the diskbox's own catalogue fulfils a condition; returns what it gave. KeyError: not there yet."""
        found = None
        async with asyncio.timeout(WAIT):
            while not found:
                with contextlib.suppress(KeyError):
                    found = condition(self.diskbox.catalogue)
                if found:
                    break
                if self.task.done():
                    self.task.result()
                    raise AssertionError(f"the diskbox ended before: {what}")
                await asyncio.sleep(0.01)
        return found

    async def protect(self, volume: str, model: JournalModel, **fields: Any) -> None:
        """Journal and recovery volume of a volume; nothing is written yet."""
        await self.store.admin().create(volume)
        self.models[volume] = model
        self.published.setdefault(volume, 0)
        wanted = {
            "volume": volume, "group": volume, "qmp": "/q", "node": "n", "ack": "async", "overload": "throttle",
            "history_seconds": 86400, "history_bytes": 1 << 30, "agent": "a", "diskbox": self.box, "size_bytes": model.size,
        }  # fmt: skip
        start_id = await self.tell(ev.StartProtect, **wanted | fields)
        await self.until(lambda catalogue: catalogue.volumes[volume].start_id == start_id, f"{volume} wanted")

    async def created(self, volume: str) -> str:
        return await self.until(lambda catalogue: catalogue.volumes[volume].path, f"{volume} created")

    async def publish(self, volume: str) -> None:
        """Append to the journal what the model made since the last time."""
        model = self.models[volume]
        writer = self.store.writer(volume)
        await writer.start()
        for first in range(self.published[volume], len(model.values), 9):
            base = await writer.append(model.values[first : first + 9])
            assert base == first
        self.published[volume] = len(model.values)
        await writer.close()

    async def attach(self, volume: str) -> None:
        model = self.models[volume]
        await self.tell(
            ev.FilterAttached, volume=volume, agent="a", epoch=model.epoch, attachment_id=model.attachment.hex(),
            offset=model.last, reason="protect",
        )  # fmt: skip

    async def caught_up(self, volume: str) -> None:
        last = self.models[volume].last

        def reached(_catalogue: Catalogue) -> bool:
            projector = self.diskbox.volumes[volume].projector
            return projector is not None and projector.head_offset >= last

        await self.until(reached, f"{volume} at {last}")

    async def fot(
        self, name: str, volumes: list[str], kind: str, value: str, *, read_only: bool = False, **fields: Any
    ) -> Any:
        """Ask for a test; returns it once started or failed."""
        await self.tell(
            ev.FotRequested, fot=name, volumes=tuple(volumes), diskbox=self.box, point_kind=kind, point_value=value,
            read_only=read_only, **fields,
        )  # fmt: skip
        return await self.until(
            lambda catalogue: (
                (fot := catalogue.fots.get(name)) and fot.state in ("started", "failed") and fot
            ),
            f"{name} answered",
        )

    async def checkpoint(self, name: str, offsets: dict[str, int]) -> None:
        """A named checkpoint of the catalogue whose markers are there; without offsets one that failed."""
        volumes = tuple(offsets or self.models)
        await self.tell(ev.CheckpointRequested, checkpoint=name, volumes=volumes, agent="a", kind="crash")
        if offsets:
            made = {"kind": "crash", "offsets": offsets, "captured_at": 1}
            await self.tell(ev.CheckpointCreated, checkpoint=name, **made)
        else:
            await self.tell(ev.CheckpointFailed, checkpoint=name, error="{}")
        state = "created" if offsets else "failed"
        await self.until(lambda catalogue: catalogue.checkpoints[name].state == state, f"{name} {state}")

    async def stop_fot(self, name: str) -> None:
        await self.tell(ev.FotStopRequested, fot=name)
        await self.until(lambda catalogue: catalogue.fots[name].state == "stopped", f"{name} stopped")

    async def promotion(self, name: str, volumes: list[str], kind: str, value: str, **fields: Any) -> Any:
        """Ask for a promotion; returns it once planned or failed."""
        await self.tell(
            ev.PromoteRequested, promotion=name, volumes=tuple(volumes), diskbox=self.box, point_kind=kind, point_value=value,
            **{"dry_run": False, "to": None} | fields,
        )  # fmt: skip
        return await self.until(
            lambda catalogue: (
                (found := catalogue.promotions.get(name)) and found.state != "requested" and found
            ),
            f"{name} planned",
        )

    async def failover(self, name: str, volumes: list[str], kind: str, value: str, **fields: Any) -> Any:
        """Ask for a fail-over; returns it once it is open, or failed."""
        await self.tell(
            ev.FailoverRequested, failover=name, volumes=tuple(volumes), diskbox=self.box, point_kind=kind,
            point_value=value, **{"dry_run": False, "planned": False} | fields,
        )  # fmt: skip
        found = await self.until(
            lambda catalogue: (found := catalogue.failovers[name]).state in ("planned", "failed") and found,
            f"{name} planned",
        )
        if found.state == "planned":
            await self.tell(ev.FailoverStarted, failover=name)
        return await self.failed_over(name, "opened", "failed")

    async def failed_over(self, name: str, *states: str) -> Any:
        return await self.until(
            lambda catalogue: (found := catalogue.failovers[name]).state in states and found,
            f"{name} {states}",
        )

    async def promoted(self, name: str) -> Any:
        return await self.until(
            lambda catalogue: (found := catalogue.promotions[name]).state in ("promoted", "failed") and found,
            f"{name} ended",
        )

    def status(self, volume: str) -> dict[str, Any]:
        document: dict[str, Any] = status_document(self.diskbox)["volumes"][volume]
        return document


@contextlib.asynccontextmanager
async def running(site: DiskboxSite) -> AsyncIterator[DiskboxSite]:
    await site.start()
    try:
        yield site
    finally:
        await site.stop()


async def read_all(uri: str) -> bytes:
    client = await NbdClient.connect_uri(uri)
    try:
        return bytes(await client.read(0, client.size_bytes))
    finally:
        await client.close()


async def protected(site: DiskboxSite, volume: str = "v", seed: int = 1, **fields: Any) -> JournalModel:
    """A synced volume with some history."""
    model = JournalModel(seed=seed)
    await site.protect(volume, model, **fields)
    await site.created(volume)
    model.source[:] = model.random.randbytes(model.size)
    model.start_epoch()
    await site.publish(volume)
    await site.attach(volume)
    model.sync()
    model.some_writes(20)
    await site.publish(volume)
    await site.caught_up(volume)
    return model
