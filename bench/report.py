"""docs/performance.md, from one file of results: nothing in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.harness import Figure, by_section, cells, shown
from bench.plots import draw

PAGE = Path(__file__).resolve().parent.parent / "docs/performance.md"

_HEAD = """\
# Performance

Written by `make bench BENCH=--page` from [`bench/results/{name}`](../bench/results/{name}); do not edit. Machines differ and are
noisy: what counts is the ratio to a peer, measured in turns in the same run. Repeat it with `make bench` ({minutes} min) or
`make bench BENCH=--quick`.

Measured {began} at commit `{commit}` on {cores} cores ({cpu}), {memory_gib} GiB, Linux {kernel}, Python {python},
{qemu}, {java}, {fio}; broker, diskbox, load and peers share the machine, files lie in memory but for the recovery side's. Medians of {rounds}.
"""

_EXPLAINED = {
    "NBD server alone": (
        "fio's NBD engine against our server with a handler that does nothing, and against nbdkit in C. At depth 1 it is the wake-ups "
        "of two processes; with more under way all requests of a wake-up are parsed and answered together."
    ),
    "guest writes, async": (
        "fio writes through qemu-storage-daemon, as a guest would. The peer is the same daemon with the same mirror into nbdkit's "
        "null plugin, in C, which keeps nothing: what a mirror costs before anybody does anything with the data. Bottleneck: "
        "CPU. Fio, QEMU, agent, broker and diskbox take turns on the cores; what a write costs the last three is listed below, and "
        "the peer does not pay it. So a second peer pays it: the same mirror into null, while Kafka's ProducerPerformance journals as many "
        "writes a second as we did, on the same broker and the same cores; it has no connection to the guest, and no diskbox reads what it "
        "writes. That is what two cores leave of the first peer. The tail is the wait for a core: "
        "`tests/measure/waits.py` shows who has it (docs/data-path.md). With a core for each, and "
        "broker and diskbox on other hosts, only the agent's share is left."
    ),
    "bursts and sustained writes, async": (
        "A burst of 64 MiB goes into the buffer (256 MiB); half of it may be full before a write is delayed. Sustained, the journal "
        "sets the pace: the peer is Kafka's own ProducerPerformance on the same broker, with records of the same size, acks=all, "
        "idempotent, batches of 1 MiB. It shares the cores with the broker alone, the guest's path with QEMU and fio as well: so "
        "at 4 KiB QEMU's mirror is the limit, at 64 KiB and above the broker is. *In turn* is what a second holds if the mirror into null and "
        "the producer share the cores: 1 / (1/a + 1/b). In bursts of 64 KiB publishing shares the cores with the guest, and we fill "
        "new memory where the peer keeps nothing (docs/data-path.md)."
    ),
    "policy journal, 4 KiB": (
        "Each write is answered after Kafka's ack. The peer is aiokafka alone, without a disk, a mirror or NBD in front of it, "
        "with as many records under way. QEMU's NBD client keeps 16 requests under way, so depth 32 is depth 16; two batches take "
        "turns. Bottleneck: the CPU of a round trip in broker and agent. *In turn* is the least that mirror and producer need one after the "
        "other: at depth 1 they wait for each other, at more they share the cores."
    ),
    "recovery point and costs": (
        "From the answer that the guest got to Kafka's ack, from the agent's histogram `rephub_agent_ack_delay_seconds`. A batch that "
        "nobody waits for gathers for `agent.linger_ms`; that is most of it. CPU is that of the agent's worker, of the broker and of the diskbox, for each acked event."
    ),
    "first sync": (
        "A disk of random bytes is read from QEMU, goes through the journal, and is applied; the time is that from `protect` to state "
        "`protected`. nbdcopy reads the same export and keeps nothing, or writes one file. Bottleneck: CPU. Each byte passes agent, broker and "
        "diskbox on the same cores, at what is listed above for writes of 1024 KiB, and is written twice. No sync through the journal can be "
        "faster than the journal: the third peer is ProducerPerformance with records of 1 MiB."
    ),
    "applying the journal": (
        "Promote reads, decodes, checks each crc, coalesces, writes and syncs what ConsumerPerformance only reads. Bottleneck: one core "
        "of Python; with small events the cost is per event, with large ones per byte."
    ),
    "opening a point": (
        "A view is opened from the index in memory: no record is read. The first read looks its bytes up in the index "
        "(newest segment first, a segment is 16,384 events) and fetches the batch that holds them. Where the journal is long, the batch is no longer in the "
        "kernel's cache and comes from the disk."
    ),
    "random reads of 4 KiB, depth 32": (
        "qemu-nbd serves a file that holds the same bytes as the view. Cold, each read of a journaled block costs a fetch "
        "of the whole batch that holds it (up to 1 MiB) from Kafka. Hydrated, the bottleneck is Python's NBD server: one "
        "core answers so many requests a second, wherever the bytes are."
    ),
    "restart, fail-over": (
        "A restart takes in sections instead of reading the journal. Fail-over opens a view and fences the journal; nothing "
        "waits for what is below the point to be applied."
    ),
    "more volumes, more workers": (
        "Each volume has its own disk, fio and topic; all together are measured. Each volume makes batches and fetches of its own, and "
        "each of those costs broker, agent and diskbox CPU, whatever is in it: on two cores, with eight fio and eight QEMUs beside "
        "them, that is the limit. A second worker helps where there are cores for it."
    ),
    "rewriting the same 64 MiB": (
        "The index holds each event of the history, in arrays; a lookup stops at the newest event that covers a byte, so the length of "
        "the history does not matter to it, nor to the projector, which only appends."
    ),
    "what watching costs, 4 KiB": (
        "Samples, the blocks that are looked into, and the monitor beside all else, against a stack without them. The aim is of the guest's "
        "writes. Single rounds of these differ by 10 % and more, so what decides is CPU time, of all cores' together: with nothing else to "
        "do, and what 50 looks a second take added. Where the cores are what limits, writes get fewer by that share. The writes below it "
        "are for comparison: medians of twelve turns each."
    ),
}

_HELD = """
## What the cores hold

The sums behind the ratios above. A write takes CPU time of agent, broker and diskbox (listed above), and what fio, QEMU and the mirror into null take: all
{cores} cores' time over the peer's rate. {cores} cores over the sum is what there can be of such writes; beside it what was measured. The nearer the two, the
less a change could gain that does not save CPU time.

| writes of | agent, broker, diskbox | fio, QEMU, mirror | cores hold | measured, sustained | share |
| --- | --- | --- | --- | --- | --- |
"""


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
    for figure in by_section(figures):
        if figure.section != section:
            section = figure.section
            text += f"\n## {section[0].upper()}{section[1:]}\n\n{_EXPLAINED[section]}\n\n"
            text += "| what | value | peer | ratio | aim |\n| --- | --- | --- | --- | --- |\n"
        text += "| " + " | ".join(cells(figure)) + " |\n"
    text += _held(figures, document["machine"]["cores"])
    plots = draw(document.get("series", {}), PAGE.parent / "plots")
    if plots:
        text += (
            "\n## Plots\n\n" + "\n".join(f"![{title}](plots/{name})" for title, name in plots.items()) + "\n"
        )
    for note in document["notes"]:
        text += f"\n* {note}\n"
    PAGE.write_text(text)


def _held(figures: list[Figure], cores: int) -> str:
    """The section about CPU time; empty where a run was without one of its figures."""
    by_name = {figure.what: figure for figure in figures}
    peers = {figure.what: figure.peer_value for figure in figures if figure.peer_value}
    second = cores * 1e6
    text = _HELD.format(cores=cores)
    try:
        for kib in (4, 64, 1024):
            spent = sum(
                by_name[f"{part}'s CPU of a write of {kib} KiB"].value
                for part in ("agent", "broker", "diskbox")
            )
            mirror = second / _mirrored_per_second(peers, kib)
            measured = by_name[f"sustained, {kib} KiB, guest to acked in Kafka"].value
            holds = second / (spent + mirror)
            text += f"| {kib} KiB | {shown(spent)} µs | {shown(mirror)} µs | {shown(holds)}/s | {shown(measured)}/s | {measured / holds:.2f} |\n"
    except KeyError:
        return ""
    return text


def _mirrored_per_second(peers: dict[str, float], kib: int) -> float:
    """Writes a second of QEMU's mirror into null."""
    if kib == 4:
        return peers["4 KiB, depth 32"]
    depth = 8 if kib == 64 else 4
    return peers[f"burst of 64 MiB in writes of {kib} KiB, depth {depth}"] * 1e6 / (kib << 10)
