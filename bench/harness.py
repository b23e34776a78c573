"""What all measurements share: peers that alternate, medians, the machine, and where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value, and that of its peer measured in the same run."""

    section: str
    what: str
    value: float
    unit: str
    peer: str = ""
    """What it is compared with."""
    peer_value: float | None = None
    aim: float | None = None
    """Of the ratio: at least this; at most, where `less_is_better`."""
    less_is_better: bool = False
    samples: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Value over peer's value."""
        return None if not self.peer_value else self.value / self.peer_value

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None: there is none."""
        if self.aim is None or self.ratio is None:
            return None
        return self.ratio <= self.aim if self.less_is_better else self.ratio >= self.aim


@dataclass(slots=True)
class Run:
    """All figures of one run."""

    quick: bool
    rounds: int
    """Of each pair of peers; medians of so many."""
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For the plots: name of the plot → name of the line → x → y."""
    began: float = field(default_factory=time.time)

    def add(self, figure: Figure) -> None:
        """Keep a figure and show it."""
        self.figures.append(figure)
        console.print(f"  {figure.what}: {shown(figure.value)} {figure.unit}" + _against(figure))

    def save(self) -> Path:
        """Write the results; returns the file."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self.began))}.json"
        document = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began),
            "quick": self.quick,
            "rounds": self.rounds,
            "machine": machine(),
            "notes": self.notes,
            "series": self.series,
            "figures": [
                asdict(figure) | {"ratio": figure.ratio, "met": figure.met} for figure in self.figures
            ],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path

    def show(self) -> None:
        """The table."""
        table = Table(box=None, pad_edge=False)
        for title in ("", "value", "peer", "ratio", "aim"):
            table.add_column(title, justify="left" if title in ("", "peer") else "right")
        section = ""
        for figure in by_section(self.figures):
            if figure.section != section:
                section = figure.section
                table.add_row(f"[bold]{section}[/]")
            table.add_row(*cells(figure))
        console.print(table)


def by_section(figures: list[Figure]) -> list[Figure]:
    """The figures, those of a section together, in the order in which the sections began."""
    order = list(dict.fromkeys(figure.section for figure in figures))
    return sorted(figures, key=lambda figure: order.index(figure.section))


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """What, value, peer, ratio and aim of a figure, as text."""
    peer = "" if figure.peer_value is None else f"{figure.peer}: {shown(figure.peer_value)}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    aim = "" if figure.aim is None else f"{'≤' if figure.less_is_better else '≥'} {figure.aim:g}"
    mark = {None: "", True: " met", False: " not met"}[figure.met]
    return figure.what, f"{shown(figure.value)} {figure.unit}", peer, ratio, aim + mark


def shown(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _against(figure: Figure) -> str:
    if figure.ratio is None:
        return ""
    return f", {figure.ratio:.2f}× {figure.peer} ({shown(figure.peer_value or 0)})"


def alternating(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Samples of each measure, taken in turns: what disturbs the machine disturbs all."""
    samples: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for found, measure in zip(samples, measures, strict=True):
            found.append(measure())
    return samples


def median(samples: list[float]) -> float:
    """Of the samples."""
    return statistics.median(samples)


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _first_line("qemu-storage-daemon", "--version"),
        "java": _first_line("java", "-version"),
        "fio": _first_line("fio", "--version"),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]
