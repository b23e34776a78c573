"""`rephub plot`: the timeline of a volume as a picture."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rephub.cli.alerts import fold
from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli, verb
from rephub.cli.plot_figure import AlertSpan, draw
from rephub.cli.since import parse_since
from rephub.cli.timeline import timeline_of
from rephub.core.codec import REGISTRY, decode_control
from rephub.core.control.kafka import REQUEST_SECONDS, KafkaControlLog
from rephub.core.errors import IntegrityError, StorageError, UsageError
from rephub.core.kafka.link import KafkaAddress
from rephub.core.kafka.reader import PartitionReader
from rephub.core.names import ALERTS_TOPIC, STATS_TOPIC, check_name
from rephub.core.units import parse_time, rfc3339
from rephub.schemas.stats import CaptureSample

FORMS = ("png", "svg")
READ_BYTES_MAX = 4 << 20


@verb()
@click.argument("volume")
@click.option("--out", type=click.Path(path_type=Path), help="FILE.png or FILE.svg [VOLUME.png].")
@click.option("--since", default="1h", show_default=True, metavar="T", help="RFC 3339, or how long ago.")
async def plot(cli: Cli, volume: str, out: Path | None, since: str) -> None:
    """Draw what of VOLUME can be restored, its checkpoints, gaps and alerts, and what was written meanwhile."""
    check_name(volume, "volume")
    path = out or Path(f"{volume}.png")
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise UsageError(f"{path} is no .png and no .svg", hint="for example --out timeline.svg")
    to_at = time.time_ns() // 1000
    from_at = parse_since(since, to_at)
    if from_at >= to_at:
        raise UsageError(f"{since!r} is not in the past", hint="for example --since 1h")
    timeline = await timeline_of(cli, volume)
    bootstrap = read_endpoints(cli.state_dir).bootstrap
    samples = await _samples(bootstrap, volume, from_at)
    alerts = await _alerts(bootstrap, volume, to_at)
    picture = draw(timeline, samples, alerts, from_at, to_at, form)
    try:
        path.write_bytes(picture)
    except OSError as exc:
        raise StorageError(
            f"cannot write {path}: {exc.strerror}", hint="choose another place with --out", path=str(path)
        ) from exc
    document = {
        "volume": volume, "path": str(path.absolute()), "from_at": rfc3339(from_at), "to_at": rfc3339(to_at),
        "samples": len(samples), "alerts": len(alerts), "ranges": len(timeline["ranges"]),
    }  # fmt: skip
    if not samples:
        cli.progress(f"nothing was measured of {volume} since {rfc3339(from_at)}")
    cli.emit(document, str(path))


async def _samples(bootstrap: str, volume: str, from_at: int) -> list[CaptureSample]:
    """What the agent measured of the volume. Others are passed over undecoded: there may be hundreds of volumes.

    Raises:
        UnavailableError: no broker answers in time.
    """
    prefixes = tuple(one.prefix for one in REGISTRY.entries("stats") if one.record is CaptureSample)
    name = volume.encode()
    found: list[CaptureSample] = []
    reader = PartitionReader(KafkaAddress(bootstrap, {}), STATS_TOPIC, request_seconds=REQUEST_SECONDS)
    try:
        at, head = await reader.offset_at(from_at), await reader.next_offset()
        while at < head:
            records = await reader.fetch(at, READ_BYTES_MAX)
            at = records.last_offset + 1
            for record in records:
                value = bytes(record.value)
                if not value.startswith(prefixes) or name not in value:
                    continue
                try:
                    sample = decode_control(value)
                except IntegrityError:  # of no use, and no more than a second
                    continue
                if isinstance(sample, CaptureSample) and sample.volume == volume:
                    found.append(sample)
    finally:
        await reader.close()
    return found


async def _alerts(bootstrap: str, volume: str, to_at: int) -> list[AlertSpan]:
    log = KafkaControlLog(bootstrap, topics=(ALERTS_TOPIC,))
    try:
        entries = await log.read(ALERTS_TOPIC, 0, await log.next_offset(ALERTS_TOPIC))
    finally:
        await log.close()
    opened, over = fold(entries)
    return [
        AlertSpan(
            one["rule"],
            one["severity"],
            parse_time(one["raised_at"]),
            parse_time(one["cleared_at"]) if one["cleared_at"] else to_at,
        )
        for one in opened + over
        if (one["subject_kind"], one["subject"]) == ("volume", volume)
    ]
