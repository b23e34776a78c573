"""Plots of a run's series, as SVG beside the page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

Series = dict[str, dict[str, dict[str, float]]]

_STYLE = {"svg.hashsalt": "rephub", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
"""The salt makes the same figures the same file."""


def draw(series: Series, folder: Path) -> dict[str, str]:
    """Write one file for each series.

    Returns:
        Title → file name.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    names = {}
    for title, lines in series.items():
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".svg"
        with mpl.rc_context(_STYLE):
            figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
            (_latency if title.startswith("latency") else _growth)(axes, title, lines)
            figure.savefig(folder / name, metadata={"Date": None})
            plt.close(figure)
        names[title] = name
    return names


def _latency(axes: Any, title: str, lines: dict[str, dict[str, float]]) -> None:
    """Latency over the percentile, stretched towards 100 so that the tail is seen."""
    ticks = (50, 90, 99, 99.9, 99.99)
    for label, points in lines.items():
        known = {float(name): value for name, value in points.items() if 0 < float(name) < 100}
        axes.plot([_nines(name) for name in known], list(known.values()), marker=".", label=label)
    axes.set_xticks([_nines(tick) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.set(yscale="log", title=f"Guest writes of 4 KiB, {title}", xlabel="percentile", ylabel="latency, µs")
    axes.legend()


def _nines(percentile: float) -> float:
    return -math.log10(1 - percentile / 100)


def _growth(axes: Any, title: str, lines: dict[str, dict[str, float]]) -> None:
    unit, _, over = title.partition(" over ")
    for label, points in lines.items():
        xs = sorted(points, key=float)
        axes.plot([float(x) for x in xs], [points[x] for x in xs], marker=".", label=label)
    xs = sorted({float(x) for points in lines.values() for x in points})
    if xs[0] > 0 and len(xs) <= 8:
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel=over, ylabel=unit)
    axes.legend()
