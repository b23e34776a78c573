"""Measurements as a stream: each daemon publishes what it counted, once a second, to `rephub.stats`.

The data path is not touched: a daemon's control process takes what its `/status` says anyway. Nothing is repeated and nothing
waits: what Kafka does not take in a moment is dropped, and the next sample counts from the last one that was published.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil

from rephub.core.codec import encode_control
from rephub.core.config import Settings
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import RephubError
from rephub.core.names import STATS_TOPIC
from rephub.schemas import stats

DELIVERY_SECONDS = 2.0
"""A batch of samples that Kafka has not acked by then is dropped."""

Take = Callable[[int, int], Sequence[stats.Record]]
"""Makes the samples of now: (microseconds since the Unix epoch, microseconds since the last published ones)."""

log = logging.getLogger(__name__)


class SamplePublisher:
    """Publishes a daemon's samples until cancelled.

    Args:
        settings: where Kafka is, and how often.
        take: makes the samples; called in the event loop, must not block.
        keep: told when the samples taken last were published: the next ones count from them.
    """

    def __init__(self, settings: Settings, take: Take, keep: Callable[[], None] = lambda: None) -> None:
        self.published = 0
        self.dropped = 0
        """Samples since the start."""
        self._period = settings.samples.period_seconds
        self._log = KafkaControlLog(
            settings.kafka.bootstrap, topics=(STATS_TOPIC,), delivery_seconds=DELIVERY_SECONDS
        )
        self._take, self._keep = take, keep

    async def run(self) -> None:
        """Publish once each period; never raises but for cancellation."""
        if not self._period:
            await asyncio.Event().wait()
        last = time.monotonic()
        away = False
        try:
            while True:
                await asyncio.sleep(self._period - time.time() % self._period)
                now = time.monotonic()
                samples: Sequence[stats.Record] = ()
                try:
                    samples = self._take(time.time_ns() // 1000, int((now - last) * 1e6))
                    if samples:
                        await self._log.append_raw(STATS_TOPIC, *map(encode_control, samples))
                except Exception as error:  # noqa: BLE001 - a mistake here must not cost more than samples
                    self.dropped += len(samples)
                    if not away:
                        reason = error.message if isinstance(error, RephubError) else repr(error)
                        log.warning("samples are dropped", extra={"reason": reason})
                    away = True
                    continue
                self.published += len(samples)
                self._keep()
                last, away = now, False
        finally:
            await self._log.close()


class ProcessMeter:
    """What this daemon and its workers cost their host.

    Args:
        kind: hub, agent, diskbox, monitor.
        name: its id.
        directory: whose file system is looked at.
        workers: pids of its workers now.
    """

    def __init__(
        self, kind: str, name: str, directory: Path, workers: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._kind, self._name, self._directory, self._workers = kind, name, directory, workers
        self._processes: dict[int, psutil.Process] = {}
        self._seen: dict[int, float] = {}
        self._kept: dict[int, float] = {}

    def take(self, at: int, interval_us: int, dropped: int) -> stats.ProcessSample:
        """The sample of now; CPU time counts from the last `keep`."""
        rss, spent, self._seen = 0, 0.0, {}
        for pid in (os.getpid(), *self._workers()):
            try:
                process = self._processes.get(pid) or self._processes.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    times = process.cpu_times()
                    rss += process.memory_info().rss
            except psutil.Error:  # it has just ended
                self._processes.pop(pid, None)
                continue
            self._seen[pid] = times.user + times.system
            spent += self._seen[pid] - self._kept.get(pid, self._seen[pid])
        try:
            disk = psutil.disk_usage(str(self._directory))
            free, total = disk.free, disk.total
        except OSError:
            free = total = 0
        return stats.ProcessSample(
            at=at, source=f"{self._kind}/{self._name}", interval_us=interval_us, kind=self._kind, pid=os.getpid(),
            cpu_us=int(spent * 1e6), rss_bytes=rss, disk_free_bytes=free, disk_total_bytes=total,
            dropped_samples=dropped,
        )  # fmt: skip

    def keep(self) -> None:
        """What was taken last was published."""
        self._kept = self._seen


def process_samples(settings: Settings, kind: str, name: str) -> SamplePublisher:
    """Publishes the figures of a daemon that has no others.

    Args:
        settings: where Kafka and the state directory are.
        kind: hub, monitor.
        name: its id.
    """
    meter = ProcessMeter(kind, name, settings.state_dir)
    publisher = SamplePublisher(
        settings, lambda at, interval_us: [meter.take(at, interval_us, publisher.dropped)], meter.keep
    )
    return publisher
