"""The figure of `rephub plot`: what can be restored, and under it what was measured. Needs matplotlib (`rephub[plot]`)."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rephub.core.errors import UnavailableError
from rephub.core.units import parse_time
from rephub.schemas.stats import CaptureSample

BINS_MAX = 1200
"""Points of a line: more than that nobody sees."""

LABELS_MAX = 25
"""Names of checkpoints, the newest; more would hide each other."""

COLORS = {"restorable": "#2a9d5c", "gap": "#d1495b"}
SEVERITY_COLORS = {"critical": "#d1495b", "warning": "#e9a23b"}
LOST = "no samples"

POINTS, CHECKPOINTS, ALERTS = range(3)
"""Rows of the timeline, from the top."""
BAND_POINTS = 14
"""Thickness of its bands."""


class AlertSpan(NamedTuple):
    """One alert; times in microseconds since the Unix epoch."""

    rule: str
    severity: str
    from_at: int
    to_at: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Lines over time, None (NaN) where nothing is known."""

    at: Any
    """Microseconds since the Unix epoch, float64, ascending."""
    writes_per_second: Any
    written_bytes_per_second: Any
    rpo_seconds: Any
    entropy: Any


def measured(
    samples: Sequence[CaptureSample], from_at: int, to_at: int, bins_max: int = BINS_MAX
) -> Measured:
    """Samples by equal spans of time: rates are means, the recovery point is the worst of its span, entropy is by block.

    Args:
        samples: of one volume, in the order of the topic.
        from_at: where the first span begins, microseconds since the Unix epoch.
        to_at: where the last one ends.
        bins_max: spans; there are no more than seconds.
    """
    count = max(1, min(bins_max, (to_at - from_at) // 1_000_000))
    sums = {name: np.zeros(count) for name in ("us", "writes", "bytes", "entropy", "blocks")}
    rpo = np.full(count, np.nan)
    for one in samples:
        if not from_at <= one.at <= to_at:
            continue
        number = min(count - 1, (one.at - from_at) * count // max(1, to_at - from_at))
        sums["us"][number] += one.interval_us
        sums["writes"][number] += one.writes
        sums["bytes"][number] += one.written_bytes
        sums["entropy"][number] += one.entropy_sum
        sums["blocks"][number] += one.sampled_blocks
        if one.rpo_us is not None:
            rpo[number] = np.fmax(rpo[number], one.rpo_us / 1e6)
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(sums["us"] > 0, sums["us"] / 1e6, np.nan)
        blocks = np.where(sums["blocks"] > 0, sums["blocks"], np.nan)
        return Measured(
            at=from_at + (np.arange(count) + 0.5) * (to_at - from_at) / count,
            writes_per_second=sums["writes"] / seconds,
            written_bytes_per_second=sums["bytes"] / seconds,
            rpo_seconds=rpo,
            entropy=sums["entropy"] / blocks,
        )


def draw(
    timeline: dict[str, Any],
    samples: Sequence[CaptureSample],
    alerts: Sequence[AlertSpan],
    from_at: int,
    to_at: int,
    form: str,
) -> bytes:
    """The file.

    Args:
        timeline: document of `rephub timeline`.
        samples: of the volume, in the order of the topic.
        alerts: about the volume.
        from_at: left edge, microseconds since the Unix epoch.
        to_at: right edge.
        form: `png` or `svg`.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional library, and half a second
        from matplotlib import dates  # noqa: PLC0415
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as exc:
        raise UnavailableError(
            f"plots need matplotlib: {exc}", hint="pip install 'rephub[plot]'", library="matplotlib"
        ) from exc
    with mpl.rc_context({"svg.hashsalt": "rephub", "font.size": 9}):
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(4, 1, sharex=True, height_ratios=(1.5, 2, 1.3, 1.3))
        figure.suptitle(f"{timeline['volume']}: points in time, and what was written")
        _timeline(axes[0], timeline, alerts, from_at, to_at)
        _lines(axes[1:], measured(samples, from_at, to_at), empty=not samples)
        axes[-1].set_xlim(_moment(from_at), _moment(to_at))
        locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes[-1].set_xlabel("UTC")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _moment(at: float) -> dt.datetime:
    # matplotlib draws a time without a zone as it is.
    return dt.datetime.fromtimestamp(at / 1e6, dt.UTC).replace(tzinfo=None)


def _timeline(
    axes: Any, timeline: dict[str, Any], alerts: Sequence[AlertSpan], from_at: int, to_at: int
) -> None:
    for one in timeline["ranges"]:
        first = parse_time(one["from_at"]) if one["from_at"] else from_at
        last = parse_time(one["to_at"]) if one["to_at"] else to_at
        first, last = max(first, from_at), min(last, to_at)
        if first <= last:
            axes.hlines(
                POINTS, _moment(first), _moment(last), colors=COLORS[one["kind"]], linewidth=BAND_POINTS
            )
    marks = [mark | {"at": parse_time(mark["captured_at"])} for mark in timeline["checkpoints"]]
    marks = [mark for mark in marks if from_at <= mark["at"] <= to_at]
    named = [mark for mark in marks if not mark["periodic"]][-LABELS_MAX:]
    periodic = [_moment(mark["at"]) for mark in marks if mark["periodic"]]
    axes.plot(periodic, [CHECKPOINTS] * len(periodic), "|", color="#4a6fa5", alpha=0.5)
    axes.plot([_moment(mark["at"]) for mark in named], [CHECKPOINTS] * len(named), "v", color="#1d3557")
    for mark in named:
        axes.annotate(
            mark["checkpoint"], (_moment(mark["at"]), CHECKPOINTS), xytext=(0, 6), textcoords="offset points",
            fontsize=7, ha="center",
        )  # fmt: skip
    for span in alerts:
        first, last = max(span.from_at, from_at), min(span.to_at, to_at)
        if first > last:
            continue
        color = SEVERITY_COLORS.get(span.severity, "#6c757d")
        axes.hlines(ALERTS, _moment(first), _moment(last), colors=color, linewidth=BAND_POINTS)
        axes.annotate(
            span.rule, (_moment(first), ALERTS), xytext=(2, 0), textcoords="offset points", fontsize=7,
            va="center",
        )  # fmt: skip
    axes.set_yticks((POINTS, CHECKPOINTS, ALERTS), ("points", "checkpoints", "alerts"))
    axes.set_ylim(2.6, -0.6)
    handles = [_patch(color) for color in COLORS.values()]
    axes.legend(
        handles, list(COLORS), loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=7
    )


def _patch(color: str) -> Any:
    from matplotlib.patches import Patch  # noqa: PLC0415 - as in `draw`

    return Patch(color=color)


def _lines(axes: Sequence[Any], lines: Measured, *, empty: bool) -> None:
    at = [_moment(one) for one in lines.at]
    rate, recovery, entropy = axes
    rate.plot(at, lines.writes_per_second, color="#1d3557", linewidth=1)
    rate.set(ylabel="writes/s")
    beside = rate.twinx()
    beside.plot(at, lines.written_bytes_per_second / 1e6, color="#e9a23b", linewidth=1)
    beside.set(ylabel="MB/s", ylim=(0, None))
    recovery.plot(at, lines.rpo_seconds, color="#d1495b", linewidth=1)
    recovery.set(ylabel="RPO, s")
    entropy.plot(at, lines.entropy, color="#6a4c93", linewidth=1)
    entropy.set(ylabel="entropy, bits/byte", ylim=(0, 8.2))
    for one in (rate, recovery):
        one.set_ylim(bottom=0)
    for one in axes:
        one.grid(alpha=0.3)
        if empty:
            one.text(0.5, 0.5, LOST, transform=one.transAxes, ha="center", va="center", color="#6c757d")
