"""One frame of `rephub top`: from the hub's `/api/live` documents to what rich draws; no clock, no terminal.

The width decides which columns there are, the height how many rows; nothing is cut without being counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rephub.cli.output import one_line
from rephub.core.units import format_bytes, format_duration, rfc3339

TRACE_SECONDS = 60
"""That a sparkline shows at most, one sign a second."""

BLOCKS = "▁▂▃▄▅▆▇█"

STATE_STYLES = {
    "protected": "green", "syncing": "yellow", "resyncing": "yellow", "paused": "cyan", "gap": "bold red",
    "failed": "bold red", "failed_over": "magenta", "promoted": "magenta",
}  # fmt: skip

SEVERITY_STYLES = {"critical": "bold red", "warning": "yellow"}

ALERTS_SHOWN_MAX = 5
PARTS_SHOWN_MAX = 8

Values = dict[str, Any]
"""Newest value of each series of a volume."""


class Traces:
    """The last minute of each volume, collected from documents that overlap."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[int, Values]]] = {}

    def take(self, series: dict[str, dict[str, list[Any]]]) -> None:
        """Add what is newer than what is known; volumes that are not in it any more are forgotten."""
        for name in self._points.keys() - series.keys():
            del self._points[name]
        for name, columns in series.items():
            points = self._points.setdefault(name, deque(maxlen=TRACE_SECONDS))
            newest = points[-1][0] if points else -1
            for number, at in enumerate(columns.get("at", [])):
                if at > newest:
                    points.append((at, {key: column[number] for key, column in columns.items()}))

    def newest(self, volume: str, since: int) -> Values:
        """The last values, if they are not older than `since`; else none."""
        points = self._points.get(volume)
        return points[-1][1] if points and points[-1][0] >= since else {}

    def last(self, volume: str, key: str, seconds: int) -> list[float | None]:
        """One series, oldest first, at most so many values."""
        return [values.get(key) for _, values in self._points.get(volume, ())][-seconds:]


def sparkline(values: Sequence[float | None], width: int) -> str:
    """One sign a value, right-aligned; the highest value is a full block, an unknown one a space."""
    shown = values[-width:]
    top = max((value for value in shown if value is not None), default=0)
    signs = (
        " " if value is None else BLOCKS[0] if top <= 0 else BLOCKS[min(7, int(8 * max(value, 0) / top))]
        for value in shown
    )
    return "".join(signs).rjust(width)


class Column(NamedTuple):
    """One of the table of volumes."""

    title: str
    width: int
    cell: Callable[[dict[str, Any], Values, Traces], str]
    left: bool = False


class Sort(NamedTuple):
    """An order of the volumes, and the key that asks for it."""

    key: str
    title: str
    value: Callable[[dict[str, Any], Values], Any]
    largest_first: bool = True


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return "?" if value is None else form(value)


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e6:.1f}"


COLUMNS = (
    Column("VOLUME", 14, lambda entry, *_: entry["volume"], left=True),
    Column("STATE", 11, lambda entry, *_: entry["state"], left=True),
    Column("RPO", 7, lambda entry, *_: _known(entry["rpo_seconds"], format_duration)),
    Column("WRITES/S", 8, lambda _, values, __: _number(values.get("writes_per_second"))),
    Column("MB/S", 7, lambda _, values, __: _rate(values.get("written_bytes_per_second"))),
    Column("LAG", 6, lambda _, values, __: _number(values.get("lag_events"))),
    Column("WINDOW", 7, lambda entry, *_: _known(entry["window_seconds"], format_duration)),
    Column("DIRTY", 9, lambda entry, *_: _known(entry["dirty_bytes"], format_bytes)),
    Column("UNACKED", 9, lambda entry, *_: _known(entry["lag_bytes"], format_bytes)),
    Column("ENTROPY", 7, lambda _, values, __: _known(values.get("entropy"), "{:.1f}".format)),
    Column("GROUP", 12, lambda entry, *_: entry["group"], left=True),
)
"""The most important first: a narrow terminal shows those that fit. LAG: events that the diskbox has not read yet."""

SORTS = (
    Sort("n", "name", lambda entry, _: entry["volume"], largest_first=False),
    Sort("w", "writes", lambda _, values: values.get("writes_per_second")),
    Sort("b", "bytes", lambda _, values: values.get("written_bytes_per_second")),
    Sort("r", "RPO", lambda entry, _: entry["rpo_seconds"]),
    Sort("l", "lag", lambda _, values: values.get("lag_events")),
    Sort("d", "dirty", lambda entry, _: entry["dirty_bytes"]),
)
"""What is not known comes last; equal ones by name."""

SPARK_MIN = 10
"""Columns that are left over for sparklines of fewer are left empty."""

STALE_US = 5_000_000
"""Measurements that are older are not shown as those of now."""


@dataclass(slots=True)
class Look:
    """What the operator chose."""

    sort: Sort = SORTS[0]
    reverse: bool = False
    first_row: int = 0
    """Of the volumes; scrolls."""


def frame(
    document: dict[str, Any], traces: Traces, look: Look, width: int, height: int | None, problem: str = ""
) -> Group:
    """All of it.

    Args:
        document: of `/api/live`.
        traces: holds its series already.
        look: sorted how, from where; `first_row` is put right.
        width: columns of the terminal.
        height: its rows; None: as many as it takes.
        problem: why the document is an old one; empty: it is not.
    """
    alerts, parts = document["alerts"], document["parts"]
    alerts_max = len(alerts) if height is None else _room(height, 1, ALERTS_SHOWN_MAX)
    parts_max = len(parts) if height is None else _room(height, 0, PARTS_SHOWN_MAX)
    above = [_line(*one, width) for one in map(_alert, alerts[:alerts_max])]
    if 0 < alerts_max < len(alerts):
        above.append(_more(len(alerts) - alerts_max, "alerts", "rephub alerts", width))
    below: list[Table | Text] = [_parts(parts[:parts_max], width)] if parts_max and parts else []
    below_rows = (1 + min(len(parts), parts_max)) if below else 0
    if 0 < parts_max < len(parts):
        below.append(_more(len(parts) - parts_max, "daemons", "rephub status", width))
        below_rows += 1
    count = len(document["volumes"])
    rows_max = count if height is None else max(1, height - 4 - len(above) - below_rows)
    volumes: list[Table | Text] = [_volumes(document, traces, look, width, rows_max)]
    if count > rows_max:
        volumes.append(_more(count - rows_max, "volumes", "arrow keys", width))
    keys = [_keys(width)] if height is not None else []
    return Group(_head(document, look, width, problem), *above, *volumes, *below, *keys)


def _room(height: int, some: int, many: int) -> int:
    """How many lines of a minor matter a terminal of so many rows has room for."""
    return 0 if height < 12 else some if height < 24 else many


def _line(text: str, style: str, width: int) -> Text:
    line = Text(one_line(text), style=style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _more(count: int, what: str, where: str, width: int) -> Text:
    return _line(f"… {count} more {what}: {where}", "dim", width)


def _head(document: dict[str, Any], look: Look, width: int, problem: str) -> Text:
    if problem:
        return _line(problem, "bold red", width)
    volumes = document["volumes"]
    states: dict[str, int] = {}
    for entry in volumes:
        states[entry["state"]] = states.get(entry["state"], 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "no volume"
    at = rfc3339(document["at"] - document["at"] % 1_000_000)
    alerts = f" · {_count(document['alerts'], 'alert')}" if document["alerts"] else ""
    tests = f" · {_count(document['fots'], 'test')} open" if document["fots"] else ""
    order = f" · by {look.sort.title}{', reversed' if look.reverse else ''}"
    return _line(f"{counts}{alerts}{tests}{order} · {at}", "bold", width)


def _count(items: Sequence[Any], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"


def _alert(one: dict[str, Any]) -> tuple[str, str]:
    """Text and style."""
    return f"{one['severity']}: {one['text']}", SEVERITY_STYLES.get(one["severity"], "")


def sorted_volumes(
    document: dict[str, Any], traces: Traces, look: Look
) -> list[tuple[dict[str, Any], Values]]:
    """Entries with their newest values, in the order that was asked for."""
    since = document["at"] - STALE_US
    rows = [(entry, traces.newest(entry["volume"], since)) for entry in document["volumes"]]
    rows.sort(key=lambda row: row[0]["volume"])
    known = [row for row in rows if look.sort.value(*row) is not None]
    unknown = [row for row in rows if look.sort.value(*row) is None]
    known.sort(key=lambda row: look.sort.value(*row), reverse=look.sort.largest_first != look.reverse)
    return known + unknown


def _volumes(document: dict[str, Any], traces: Traces, look: Look, width: int, rows_max: int) -> Table | Text:
    rows = sorted_volumes(document, traces, look)
    if not rows:
        return _line("no volume is protected: rephub protect", "", width)
    look.first_row = max(0, min(look.first_row, len(rows) - rows_max))
    columns: list[Column] = []
    left = width
    for column in COLUMNS:
        if column.width + 1 > left:
            break
        columns.append(column)
        left -= column.width + 1
    spark = min(TRACE_SECONDS, left - 1) if left - 1 >= SPARK_MIN else 0
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        justify: Any = "left" if column.left else "right"
        table.add_column(column.title, width=column.width, no_wrap=True, overflow="ellipsis", justify=justify)
    if spark:
        table.add_column("WRITES/S, LAST MINUTE"[:spark], width=spark, no_wrap=True)
    for entry, values in rows[look.first_row : look.first_row + rows_max]:
        cells = [Text(one_line(column.cell(entry, values, traces))) for column in columns]
        if len(cells) > 1:
            cells[1].stylize(STATE_STYLES.get(entry["state"], ""))
        if spark:
            trace = traces.last(entry["volume"], "writes_per_second", spark)
            cells.append(Text(sparkline(trace, spark), style="blue"))
        table.add_row(*cells)
    return table


def _parts(parts: list[dict[str, Any]], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("DAEMON", width=min(26, max(8, width - 20)), no_wrap=True, overflow="ellipsis")
    titles = ("CPU", "MEMORY", "DISK FREE")[: 1 if width < 34 else 2 if width < 60 else 3]
    for title, size in zip(titles, (7, 9, 10), strict=False):
        table.add_column(title, width=size, justify="right", no_wrap=True)
    for one in parts:
        cells = [
            one_line(one["name"]),
            _known(one["cpu_share"], "{:.1%}".format),
            format_bytes(one["rss_bytes"]),
            format_bytes(one["disk_free_bytes"]),
        ]
        table.add_row(*map(Text, cells[: len(titles) + 1]))
    return table


def _keys(width: int) -> Text:
    sorts = " ".join(f"{one.key} {one.title}" for one in SORTS)
    return _line(f"q quit · sort: {sorts} · R reverse · ↑↓ scroll", "dim", width)
