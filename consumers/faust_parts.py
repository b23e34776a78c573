"""What our Faust applications have in common: the codec of our topics, what ends them, options that let one take over from another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import faust
from faust.serializers import codecs

from rephub.core.codec import decode_control, encode_control
from rephub.core.config import Settings
from rephub.core.errors import IntegrityError, RephubError
from rephub.core.http import StatusServer
from rephub.core.samples import SamplePublisher

CODEC = "rephub-control"

SESSION_SECONDS = 10.0
REBALANCE_SECONDS = 10.0
"""Longest waits of Kafka for a member that is gone. They hardly ever come: all processes of an application join as the same
static member (KIP-345), so that a new one takes the partitions over at once and the old one is refused."""

log = logging.getLogger(__name__)


class ControlCodec(codecs.Codec):
    """Our Avro for Faust; what cannot be decoded becomes None, which the agents skip (a newer version wrote it)."""

    def _loads(self, s: bytes) -> Any:
        try:
            return decode_control(bytes(s))
        except IntegrityError as error:
            log.warning("record skipped", extra={"reason": error.message})
            return None

    def _dumps(self, s: Any) -> bytes:
        return encode_control(s)


codecs.register(CODEC, ControlCodec())


class Failing(Protocol):
    """What an application is about: the hub, the monitor."""

    failed: asyncio.Future[None]
    """Set to the error that ends it."""

    def fail(self, error: BaseException) -> None:
        """End it; the first reason counts."""


class DaemonApp(faust.App):
    """A `faust.App` that one thing ends: the error of what it is about.

    Its `on_first_start` sets `failing` and then adds what runs beside the streams by `add_ending`.
    """

    settings: Settings
    server: StatusServer
    samples: SamplePublisher
    failing: Failing | None = None

    @property
    def failed(self) -> asyncio.Future[None]:
        """Set to the error that ends it; only after it has started."""
        assert self.failing is not None
        return self.failing.failed

    def add_ending(self, *works: Coroutine[Any, Any, None]) -> None:
        """Run beside the streams for ever; what goes wrong in one ends the daemon."""
        for work in works:
            self.add_future(self._ending(work))
        if self.in_worker:
            self.add_future(self._crash_with_it())

    async def _ending(self, work: Coroutine[Any, Any, None]) -> None:
        assert self.failing is not None
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it is ends the daemon, with its reason
            self.failing.fail(error)

    async def _crash_with_it(self) -> None:
        """Under Faust's own command nobody else waits for what ends it; `faust_main.py` does under ours."""
        try:
            await asyncio.shield(self.failed)
        except RephubError as error:
            await self.crash(error)


def options(settings: Settings, app_id: str, directory: Path) -> dict[str, Any]:
    """Arguments of `faust.App`.

    Args:
        settings: say where Kafka is.
        app_id: also the consumer group: one process at a time works for a Kafka.
        directory: of the daemon.
    """
    return {
        "broker": [f"kafka://{address}" for address in settings.kafka.bootstrap.split(",")],
        "datadir": str(directory / "faust"),
        "store": "memory://",
        "consumer_group_instance_id": app_id,
        "broker_session_timeout": SESSION_SECONDS,
        "broker_rebalance_timeout": REBALANCE_SECONDS,
        "broker_heartbeat_interval": SESSION_SECONDS / 5,
        "broker_commit_interval": 1.0,
        "stream_ack_exceptions": False,
        "topic_partitions": 1,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
        "autodiscover": False,
    }
