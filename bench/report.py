"""docs/performance.md, from one file of results: nothing in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.harness import Figure, cells

PAGE = Path(__file__).resolve().parent.parent / "docs/performance.md"

_HEAD = """\
# Performance

Written by `make bench BENCH=--page` from [`bench/results/{name}`](../bench/results/{name}); do not edit. Machines differ and are
noisy: what counts is the ratio to a peer, measured in turns in the same run. Repeat it with `make bench` ({minutes} min) or
`make bench BENCH=--quick`.

Measured {began} at commit `{commit}` on {cores} cores ({cpu}), {memory_gib} GiB, Linux {kernel}, Python {python},
{qemu}, {java}, {fio}; broker, diskbox, load and peers share the machine. Medians of {rounds}.
"""

_EXPLAINED = {
    "opening a point": (
        "A view is opened from the index in memory: no record is read. The first read looks its bytes up in the index "
        "(newest segment first, a segment is 16,384 events) and fetches the batch that holds them."
    ),
    "random reads of 4 KiB, depth 32": (
        "qemu-nbd serves a file that holds the same bytes as the view. Cold, each read of a journaled block costs a fetch "
        "of the whole batch that holds it (up to 1 MiB) from Kafka. Hydrated, the bottleneck is Python's NBD server: one "
        "core answers so many requests a second, wherever the bytes are."
    ),
    "restart, promote, fail-over": (
        "A restart takes in sections instead of reading the journal. Fail-over opens a view and fences the journal; nothing "
        "waits for what is below the point to be applied. Promote reads, decodes, checks, coalesces and writes what the "
        "consumer only reads."
    ),
}


def write_page(results: Path) -> None:
    """Write the page."""
    document: dict[str, Any] = json.loads(results.read_text())
    known = Figure.__dataclass_fields__
    figures = [
        Figure(**{name: value for name, value in fields.items() if name in known})
        for fields in document["figures"]
    ]
    text = _HEAD.format(
        name=results.name, began=document["began"], rounds=document["rounds"],
        minutes=max(1, round(document["seconds"] / 60)), **document["machine"],
    )  # fmt: skip
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            text += f"\n## {section[0].upper()}{section[1:]}\n\n{_EXPLAINED[section]}\n\n"
            text += "| what | value | peer | ratio | aim |\n| --- | --- | --- | --- | --- |\n"
        text += "| " + " | ".join(cells(figure)) + " |\n"
    for note in document["notes"]:
        text += f"\n* {note}\n"
    PAGE.write_text(text)
