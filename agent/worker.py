"""A worker process: the data path of some volumes, driven by the control process over a socketpair.

It knows nothing of QMP, catalogue or control log. It ends at once when the control process is gone (end of the
socketpair, and PR_SET_PDEATHSIG for one that was killed), which drops QEMU's connections and frees all guests.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from rephub.agent.attachment import Attachment, AttachmentSpec
from rephub.agent.group_hold import Holds
from rephub.agent.ipc import Channel, Document
from rephub.agent.known import Known
from rephub.agent.worker_limits import CHECKPOINT_SECONDS_MAX
from rephub.core import logs
from rephub.core.bitmap.port import BitmapStore
from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.config import Settings, load_settings
from rephub.core.errors import ConflictError, RephubError, UnavailableError, UsageError
from rephub.core.gathering import Gathering
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.journal.port import JournalStore
from rephub.infra.kafka.topics import JOURNAL_CONFIG

STATS_SECONDS = 0.25
"""How often figures are sent; they are the heartbeat, too."""

_PR_SET_PDEATHSIG = 1


class Worker:
    """All attachments of this process.

    Args:
        sock: this end of the socketpair.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, self._serve, lambda _notice, _fields: None)
        self._settings: Settings | None = None
        self._journals: JournalStore | None = None
        self._bitmaps: BitmapStore | None = None
        self._attachments: dict[str, Attachment] = {}
        self._holds: Holds | None = None
        self._gathering: Gathering | None = None

    async def run(self) -> None:
        """Serve until the control process is gone."""
        await self._channel.open()
        stats = asyncio.create_task(self._tell_stats())
        try:
            await self._channel.run()
        finally:
            stats.cancel()

    async def _serve(self, op: str, fields: Document) -> Document:
        handlers: dict[str, Callable[..., Awaitable[Document]]] = {
            "configure": self._configure,
            "open": self._open,
            "expect_end": self._expect_end,
            "close": self._close,
            "sync": self._start_sync,
            "checkpoint": self._checkpoint,
            "throttle": self._throttle,
            "compare": self._compare,
            "pace": self._pace,
            "position": self._position,
            "turn": self._turn,
            "foreign": self._foreign,
            "hold": self._hold,
            "hold_mark": self._hold_mark,
            "hold_release": self._hold_release,
            "hold_drop": self._hold_drop,
        }
        if op not in handlers:
            raise UsageError(f"unknown operation {op!r}")
        return await handlers[op](**fields)

    async def _configure(self, settings: Document) -> Document:
        self._settings = load_settings(**settings)
        logs.configure(self._settings.log.level)
        compression = self._settings.agent.compression
        self._journals = KafkaJournalStore(
            self._settings.kafka.bootstrap,
            JOURNAL_CONFIG,
            compression=None if compression == "none" else compression,
        )
        self._bitmaps = RedisBitmapStore(self._settings.redis.url)
        self._gathering = Gathering(self._settings.agent.linger_ms / 1000)
        self._holds = Holds(self._get, self._settings.agent.hold_max_ms / 1000)
        return {"pid": os.getpid()}

    async def _open(self, spec: Document) -> Document:
        assert self._settings is not None
        assert self._journals is not None
        assert self._bitmaps is not None
        volume = spec["volume"]
        old = self._attachments.get(volume)
        if old and old.error is None:
            raise ConflictError(f"volume {volume} is attached in epoch {old.spec.epoch}")
        if old:
            await self._end(old, 0)
        attachment = Attachment(
            AttachmentSpec(**spec),
            self._settings.agent,
            self._journals,
            self._bitmaps,
            self._lost,
            self._gathering,
        )
        self._attachments[volume] = attachment
        try:
            await attachment.open()
        except BaseException:
            del self._attachments[volume]
            raise
        return {}

    async def _expect_end(self, volume: str, epoch: int) -> Document:
        attachment = self._attachments.get(volume)
        if attachment and attachment.spec.epoch == epoch:
            attachment.expect_end()
        return {}

    async def _close(self, volume: str, epoch: int, drain_seconds: float) -> Document:
        attachment = self._attachments.get(volume)
        if attachment is None or attachment.spec.epoch != epoch:
            return {"acked_offset": None}
        return {"acked_offset": await self._end(attachment, drain_seconds)}

    async def _start_sync(
        self, volume: str, epoch: int, server: Document, export: str, **known: Any
    ) -> Document:
        sync = await self._in_epoch(volume, epoch).start_sync(
            server,
            export,
            lambda offset: self._channel.notify("synced", volume=volume, epoch=epoch, offset=offset),
            Known(**known),
        )
        return {"mode": sync.mode, "total_bytes": sync.total_bytes}

    async def _position(self, volume: str, epoch: int, acked: bool = False) -> Document:
        """Where the queue is; `acked`: once all that it holds now is acked."""
        return await self._in_epoch(volume, epoch).position(acked=acked)

    async def _turn(self, volume: str, epoch: int) -> Document:
        return self._in_epoch(volume, epoch).turn()

    async def _foreign(self, volume: str, epoch: int, **record: Any) -> Document:
        return {"extents": await self._in_epoch(volume, epoch).foreign(**record)}

    async def _checkpoint(
        self, volumes: list[str], fields: Document, frozen_until: float | None = None
    ) -> Document:
        attachments = [self._get(volume) for volume in volumes]
        captured_at = time.time_ns() // 1000
        if frozen_until is not None and time.monotonic() >= frozen_until:
            # The guests are being thawed: the marker must not say that they are frozen.
            fields["kind"] = "crash"
        # One instant: no await until every queue has its marker.
        futures = [attachment.mark_checkpoint(captured_at, **fields) for attachment in attachments]
        self._channel.notify("marked", checkpoint=fields["checkpoint"])
        try:
            async with asyncio.timeout(CHECKPOINT_SECONDS_MAX):
                offsets = await asyncio.gather(*futures)
        except TimeoutError:
            raise UnavailableError(
                f"checkpoint {fields['checkpoint']} was not acked within {CHECKPOINT_SECONDS_MAX:g} s",
                hint="look at Kafka, then ask again",
            ) from None
        return {
            "offsets": dict(zip(volumes, offsets, strict=True)),
            "captured_at": captured_at,
            "kind": fields["kind"],
        }

    async def _compare(self, volume: str, epoch: int, step: str, **fields: Any) -> Document:
        """One step of a comparison; see `comparing.py`."""
        attachment = self._attachments.get(volume)
        if step == "stop":
            if attachment and attachment.spec.epoch == epoch:
                attachment.comparing.stop()
            return {}
        if attachment is None or attachment.spec.epoch != epoch or attachment.error is not None:
            raise UnavailableError(f"volume {volume} is not attached in epoch {epoch} any more")
        return await attachment.comparing.serve(step, fields)

    async def _hold(self, hold: str, volumes: list[str], limit_ms: float) -> Document:
        self._known_holds().hold(hold, volumes, limit_ms)
        return {}

    async def _hold_mark(self, hold: str, fields: Document) -> Document:
        self._known_holds().mark(hold, fields)
        return {}

    async def _hold_release(self, hold: str) -> Document:
        return await self._known_holds().release(hold)

    async def _hold_drop(self, hold: str) -> Document:
        self._known_holds().drop(hold)
        return {}

    def _known_holds(self) -> Holds:
        assert self._holds is not None
        return self._holds

    async def _throttle(self, volumes: list[str], on: bool) -> Document:
        if not on:
            self._known_holds().drain(volumes)
        for volume in volumes:
            if attachment := self._attachments.get(volume):
                attachment.capture.release(throttling=on)
        return {}

    async def _pace(self, volume: str, epoch: int, running: bool, bytes_per_second: int | None) -> Document:
        self._in_epoch(volume, epoch).set_pace(running=running, bytes_per_second=bytes_per_second)
        return {}

    async def _end(self, attachment: Attachment, drain_seconds: float) -> int:
        try:
            return await attachment.close(drain_seconds=drain_seconds)
        finally:
            if self._attachments.get(attachment.spec.volume) is attachment:
                del self._attachments[attachment.spec.volume]

    def _get(self, volume: str) -> Attachment:
        attachment = self._attachments.get(volume)
        if attachment is None:
            raise UnavailableError(f"volume {volume} is not attached")
        return attachment

    def _in_epoch(self, volume: str, epoch: int) -> Attachment:
        attachment = self._get(volume)
        if attachment.spec.epoch != epoch:
            raise ConflictError(f"volume {volume} is in epoch {attachment.spec.epoch}, not {epoch}")
        return attachment

    def _lost(self, attachment: Attachment, exc: RephubError) -> None:
        spec = attachment.spec
        self._channel.notify("lost", volume=spec.volume, epoch=spec.epoch, error=exc.to_dict())

    async def _tell_stats(self) -> None:
        while True:
            figures: dict[str, Any] = {name: item.stats() for name, item in self._attachments.items()}
            self._channel.notify("stats", volumes=figures)
            await asyncio.sleep(STATS_SECONDS)


def main(fd: int) -> int:
    """Run a worker on an inherited socket until the control process is gone."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    # Ctrl-C goes to the whole process group; the control process decides what it means.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    gc.freeze()
    uvloop.run(Worker(sock).run())
    return 0


if __name__ == "__main__":
    # At once: nothing of a worker is worth an orderly end once its control process is gone.
    os._exit(main(int(sys.argv[1])))
