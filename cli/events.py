"""`rephub events`: what happened, from `rephub.events` and `rephub.alerts`."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import click

from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, one_line, verb
from rephub.cli.since import parse_since
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.errors import NotFoundError, UsageError
from rephub.core.names import ALERTS_TOPIC, EVENTS_TOPIC, check_name
from rephub.core.units import rfc3339
from rephub.projections.event_text import Concerned, EventRecord, text_of
from rephub.schemas import alerts as al
from rephub.schemas import events as ev

CHUNK_RECORDS = 2000
"""So many are read at a time."""

SHOWN = ev.RECORDS + al.RECORDS

Read = tuple[str, int, EventRecord]
"""Topic, offset, record."""


@verb()
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C; alone: only with that.")
@click.option("--volume", metavar="V", help="Only what is about this volume.")
@click.option("--alerts", "with_alerts", is_flag=True, help="Alerts as well.")
@click.option("--since", metavar="T", help="From this time on: RFC 3339, or how long ago (90m).")
@click.option("--from-offset", type=click.IntRange(min=0), metavar="N", help="From this event on.")
async def events(
    cli: Cli, follow: bool, volume: str | None, with_alerts: bool, since: str | None, from_offset: int | None
) -> None:
    """Say what happened, one line each; with --json one document a line."""
    if volume is not None:
        check_name(volume, "volume")
    if since is not None and from_offset is not None:
        raise UsageError("--since and --from-offset exclude each other")
    since_at = None if since is None else parse_since(since)
    endpoints = read_endpoints(cli.state_dir)
    topics = (EVENTS_TOPIC, *([ALERTS_TOPIC] if with_alerts else ()))
    log = KafkaControlLog(endpoints.bootstrap, topics=topics)
    try:
        heads = {topic: await log.next_offset(topic) for topic in topics}
        firsts = await _firsts(log, heads, since_at, from_offset, follow=follow)
        concerned = Concerned()
        show = _Printer(cli, volume, concerned)
        if volume is not None:
            # Events about a test or a move do not name their volumes again.
            async for _, _, record in _range(log, EVENTS_TOPIC, 0, firsts[EVENTS_TOPIC]):
                concerned.apply(record)
        past = [[one async for one in _range(log, topic, firsts[topic], heads[topic])] for topic in topics]
        for one in sorted(itertools.chain.from_iterable(past), key=lambda one: one[2].at):
            show(*one)
        if volume is not None and volume not in concerned.volumes:
            raise NotFoundError(
                f"no event is about a volume {volume}",
                hint=f"volumes: {', '.join(sorted(concerned.volumes)[:10]) or 'none yet'}",
            )
        if follow:
            await _follow(log, heads, show)
        if log.undecodable:
            cli.progress(f"{log.undecodable} records were left out: a newer version wrote them")
    finally:
        await log.close()


class _Printer:
    """Prints records, of one volume or of all."""

    def __init__(self, cli: Cli, volume: str | None, concerned: Concerned) -> None:
        self._cli, self._volume, self._concerned = cli, volume, concerned

    def __call__(self, topic: str, offset: int, record: EventRecord) -> None:
        volumes = self._concerned.apply(record)
        if self._volume is not None and self._volume not in volumes:
            return
        text = one_line(text_of(record))
        document = {
            "topic": topic,
            "offset": offset,
            "at": rfc3339(record.at),
            "type": type(record).__name__,
            "source": record.source,
            "volumes": sorted(volumes),
            "text": text,
            "record": dataclasses.asdict(record),
        }
        self._cli.emit(document, f"{_clock(record.at)}  {one_line(record.source):<18}  {text}")


def _clock(at: int) -> str:
    """To the millisecond, all equally long."""
    whole = rfc3339(at - at % 1_000_000).removesuffix("Z")
    return f"{whole}.{at // 1000 % 1000:03d}Z"


async def _firsts(
    log: KafkaControlLog, heads: dict[str, int], since: int | None, from_offset: int | None, *, follow: bool
) -> dict[str, int]:
    """Where each topic begins.

    Raises:
        UsageError: beyond the newest event.
    """
    if since is not None:
        return {topic: await log.offset_at(topic, since) for topic in heads}
    if from_offset is None:
        return dict(heads) if follow else dict.fromkeys(heads, 0)
    head = heads[EVENTS_TOPIC]
    if from_offset > head:
        raise UsageError(f"offset {from_offset} is after the newest event, {head - 1}", hint="rephub events")
    firsts = {EVENTS_TOPIC: from_offset}
    if ALERTS_TOPIC in heads:
        first = await log.read(EVENTS_TOPIC, from_offset, min(from_offset + 1, head))
        firsts[ALERTS_TOPIC] = (
            await log.offset_at(ALERTS_TOPIC, first[0][1].at) if first else heads[ALERTS_TOPIC]
        )
    return firsts


async def _range(log: KafkaControlLog, topic: str, first: int, next_: int) -> AsyncIterator[Read]:
    for at in range(first, next_, CHUNK_RECORDS):
        for one in _known(topic, await log.read(topic, at, min(at + CHUNK_RECORDS, next_))):
            yield one


def _known(topic: str, entries: list[Any]) -> Iterator[Read]:
    for offset, record in entries:
        if isinstance(record, SHOWN):
            yield topic, offset, record


async def _follow(log: KafkaControlLog, firsts: dict[str, int], show: _Printer) -> None:
    """Print what comes to any of the topics, until cancelled. Raises what `KafkaControlLog.tail` raises."""

    async def follow(topic: str, first: int) -> None:
        async for entries in log.tail(topic, first):
            for one in _known(topic, entries):
                show(*one)

    await asyncio.gather(*(follow(topic, first) for topic, first in firsts.items()))
