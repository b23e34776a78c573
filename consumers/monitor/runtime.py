"""What the monitor does with samples: looks at the rules, appends to `rephub.alerts` what begins and ends.

The topic itself says what is open: it is folded before the first sample is looked at, and every record names the offset of the
sample it came from. So samples that Faust delivers again after a crash raise nothing twice, and none is passed over: an alert is
acked by Kafka before Faust commits its sample.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from rephub.core.control.follow import follow
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import IndeterminateError, UnavailableError
from rephub.core.names import ALERTS_TOPIC, EVENTS_TOPIC, STATS_TOPIC
from rephub.projections.alerts import OpenAlerts
from rephub.projections.catalogue import Catalogue
from rephub.projections.rules import MARK_SECONDS, MARKS_MAX, SECOND_US, Rules, Targets, Transition
from rephub.schemas import alerts, stats
from rephub.schemas import events as ev

RETRY_SECONDS = 1.0
READ_RECORDS = 20_000

TOLD_SECONDS = 60
"""Alerts that are younger at the start are handed to the sinks again: the monitor before may have been killed meanwhile. Receivers
tell by the id."""

NAMESPACE = uuid.UUID("8d4f9c2e-5b3a-5d0e-9d55-0f6f6d5a7c11")
"""Of the ids of alerts and their records: the same sample gives the same ids."""

log = logging.getLogger(__name__)


class Monitor:
    """The monitor without Faust.

    Args:
        name: its id.
        bootstrap: of Kafka.
        targets: thresholds.
        stored: what a table remembers of a subject.
        tell: hands an alert over to the sinks; must not wait.
    """

    def __init__(
        self,
        name: str,
        bootstrap: str,
        targets: Targets,
        stored: Callable[[str], Mapping[str, Any] | None],
        tell: Callable[[alerts.Record], None],
    ) -> None:
        self.catalogue = Catalogue()
        self.alerts = OpenAlerts()
        self.raised: dict[tuple[str, str], int] = {}
        """By (rule, severity): alerts raised since the start."""
        self.samples = 0
        self.rules = Rules(lambda: self.catalogue, self.alerts, targets, stored)
        self._tell = tell
        self._source = f"monitor/{name}"
        self._log = KafkaControlLog(bootstrap, topics=(STATS_TOPIC, ALERTS_TOPIC, EVENTS_TOPIC))
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set to the error that ends it."""

    async def start(self) -> None:
        """Fold events and alerts, and look where the journals were before.

        Raises:
            UnavailableError: no broker answers in time, or a topic is missing.
        """
        began = time.time_ns() // 1000
        await self._log.start()
        async for offset, record in self._all(EVENTS_TOPIC, 0):
            self._fold(offset, record)
        async for offset, record in self._all(ALERTS_TOPIC, 0):
            self.alerts.apply(offset, record)
            if isinstance(record, alerts.RECORDS) and record.at > began - TOLD_SECONDS * SECOND_US:
                self._tell(record)
        since = began - MARKS_MAX * MARK_SECONDS * SECOND_US
        async for _, record in self._all(STATS_TOPIC, await self._log.offset_at(STATS_TOPIC, since)):
            if isinstance(record, stats.RECORDS):
                self.rules.remember(record.at, record)

    async def follow_events(self) -> None:
        """Fold events for ever: what is protected, by whom."""
        while True:
            try:
                await follow(self._log, EVENTS_TOPIC, self.catalogue.next_offset, self._fold, _nothing)
            except UnavailableError as error:
                log.warning("the control log is away", extra={"reason": error.message})
            await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Let go of Kafka."""
        await self._log.close()

    async def bring(self, offset: int, stream_at: int, sample: object) -> None:
        """Look at a sample; returns once all that follows from it is in `rephub.alerts`."""
        self.samples += 1
        for transition in self.rules.note(offset, stream_at, sample):
            record = self._record(transition, offset)
            self.alerts.apply(await self._append(record), record)
            self._tell(record)
            if isinstance(record, alerts.AlertRaised):
                kind = record.rule, record.severity
                self.raised[kind] = self.raised.get(kind, 0) + 1

    def fail(self, error: BaseException) -> None:
        """End the monitor; the first reason counts."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def _fold(self, offset: int, record: object) -> None:
        if isinstance(record, ev.RECORDS) and offset >= self.catalogue.next_offset:
            self.catalogue.apply(offset, record)
        self.catalogue.skip_to(offset + 1)

    def _record(self, transition: Transition, offset: int) -> alerts.Record:
        key, finding = transition.key, transition.finding
        now = time.time_ns() // 1000
        if not transition.raised:
            raised = self.alerts.by_key[key]
            return alerts.AlertCleared(
                id=str(uuid.uuid5(NAMESPACE, f"{raised.alert}/cleared")), at=now, source=self._source, alert=raised.alert,
                rule=key.rule, subject_kind=key.subject_kind, subject=key.subject, stats_offset=offset,
                raised_at=raised.at, text=f"over: {raised.text}",
            )  # fmt: skip
        alert = str(uuid.uuid5(NAMESPACE, f"{key.rule}/{key.subject_kind}/{key.subject}/{offset}"))
        good = finding.last_good or (None, None)
        return alerts.AlertRaised(
            id=str(uuid.uuid5(NAMESPACE, f"{alert}/raised")), at=now, source=self._source, alert=alert, rule=key.rule,
            subject_kind=key.subject_kind, subject=key.subject, stats_offset=offset, severity=finding.rule.severity,
            since=transition.since, text=finding.text, hint=finding.rule.hint, value=finding.value,
            threshold=finding.threshold, unit=finding.rule.unit, last_good_offset=good[0], last_good_at=good[1],
        )  # fmt: skip

    async def _append(self, record: alerts.Record) -> int:
        """Append until acked; one that is there twice counts once, because its key is open, or is not, by then."""
        while True:
            try:
                return await self._log.append(ALERTS_TOPIC, record)
            except (UnavailableError, IndeterminateError) as error:
                log.warning("alerts are not taken yet", extra={"reason": error.message})
            await asyncio.sleep(RETRY_SECONDS)

    async def _all(self, topic: str, first: int) -> Any:
        """All records from an offset to the head, with their offsets."""
        head = await self._log.next_offset(topic)
        for begin in range(first, head, READ_RECORDS):
            for entry in await self._log.read(topic, begin, min(begin + READ_RECORDS, head)):
                yield entry

    def status(self) -> dict[str, Any]:
        """For the `/status` document."""
        return {"samples": self.samples, "alerts": self.alerts.to_documents()}


async def _nothing() -> None:
    """What follows from an event is seen with the next sample."""
