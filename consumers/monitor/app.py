"""The monitor as a Faust application: windows and what rules remember are tables, whose changelogs are topics.

`rephub monitor` runs it; `faust -A rephub.consumers.monitor.app worker` does as well, with settings from the environment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from rephub.consumers.faust_parts import CODEC, DaemonApp, options
from rephub.consumers.monitor import metrics
from rephub.consumers.monitor.runtime import Monitor
from rephub.consumers.monitor.sinks import Sinks, sinks_of
from rephub.core.config import Settings, load_settings
from rephub.core.http import StatusServer
from rephub.core.names import MONITOR_APP, MONITOR_TABLES, STATS_TOPIC
from rephub.core.samples import process_samples
from rephub.infra.files import private_dir
from rephub.infra.kafka.topics import CONTROL_TOPICS, MONITOR_TOPICS, create_topics
from rephub.projections import minutes
from rephub.projections.rules import SECOND_US, Targets
from rephub.schemas import stats

DRAIN_SECONDS = 2.0
"""How long a stop waits for the sinks."""


class MonitorApp(DaemonApp):
    """The application: its start makes the topics and folds what is open before Faust consumes."""

    logger = logging.getLogger("faust.monitor")
    watcher: Monitor | None = None
    sinks: Sinks
    subjects: Any
    minutes: Any

    async def on_first_start(self) -> None:
        """Fold what is open; raises what `Monitor.start` raises."""
        await super().on_first_start()
        settings = self.settings
        await self.server.start()
        await create_topics(settings.kafka.bootstrap, (*CONTROL_TOPICS, *MONITOR_TOPICS))
        chosen = settings.monitor
        targets = Targets(
            rpo_seconds=chosen.rpo_target_seconds,
            lag_seconds=chosen.lag_target_seconds,
            silent_seconds=chosen.silent_seconds,
            skew_seconds=chosen.clock_skew_seconds,
            disk_used_share=chosen.disk_used_max,
        )
        self.watcher = Monitor(
            chosen.id, settings.kafka.bootstrap, targets, self.subjects.get, self.sinks.offer
        )
        self.failing = self.watcher
        await self.watcher.start()
        self.add_ending(self.watcher.follow_events(), self.samples.run(), self.sinks.run())

    async def on_stop(self) -> None:
        """Stop consuming first, then let go; what sinks have not taken is handed to them at the next start."""
        await super().on_stop()
        await self.sinks.drained(DRAIN_SECONDS)
        if self.watcher is not None:
            await self.watcher.close()
        await self.server.stop()

    @property
    def ready(self) -> bool:
        """Whether samples are looked at."""
        return self.watcher is not None and self.flow_control.is_active() and not self.rebalancing

    def status(self) -> dict[str, Any]:
        """The `/status` document."""
        document = {
            "kind": "monitor",
            "id": self.settings.monitor.id,
            "pid": os.getpid(),
            "ready": self.ready,
            "at": time.time_ns() // 1000,
        }
        return document | {"sinks": self.sinks.stats()} | (self.watcher.status() if self.watcher else {})

    async def take(self, offset: int, stream_at: int, sample: object) -> None:
        """One sample: rules, then tables, whose changes Faust writes before it commits."""
        assert self.watcher is not None
        await self.watcher.bring(offset, stream_at, sample)
        if isinstance(sample, (stats.CaptureSample, stats.ProjectionSample)):
            for key in minutes.keys(sample):
                # The window is that of the current event: Kafka's append time, as the stream's.
                self.minutes[key] = minutes.add(self.minutes[key].current(), offset, sample)
        for name, document in self.watcher.rules.to_store(stream_at):
            self.subjects[name] = document


def build(settings: Settings) -> MonitorApp:
    """The application for these settings, with its directory; nothing is started yet."""
    private_dir(settings.monitor_dir)
    app = MonitorApp(MONITOR_APP, **options(settings, MONITOR_APP, settings.monitor_dir))
    app.settings = settings
    app.sinks = sinks_of(settings.monitor)
    subjects, windows = MONITOR_TABLES
    app.subjects = app.Table(subjects, partitions=1)
    app.minutes = app.Table(windows, default=minutes.empty, partitions=1).tumbling(
        minutes.MINUTE_SECONDS, expires=minutes.KEEP_SECONDS
    )
    app.samples = process_samples(settings, "monitor", settings.monitor.id)
    app.server = StatusServer(
        settings.monitor.host, settings.monitor.port, app.status, registry=metrics.registry(app)
    )
    samples = app.topic(STATS_TOPIC, key_type=bytes, value_serializer=CODEC, allow_empty=True)

    async def watch(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            message = event.message
            try:
                await app.take(message.offset, int(message.timestamp * SECOND_US), event.value)
            except Exception as error:  # noqa: BLE001 - whatever it is ends the monitor, with its reason
                assert app.watcher is not None
                app.watcher.fail(error)
                # Never acknowledged, so that the next monitor gets the sample again.
                await asyncio.Event().wait()
            yield

    app.agent(samples, name="watch")(watch)
    return app


def __getattr__(name: str) -> Any:
    """`app`, made when Faust's own command asks for it."""
    if name == "app":
        globals()["app"] = build(load_settings())
        return globals()["app"]
    raise AttributeError(name)
