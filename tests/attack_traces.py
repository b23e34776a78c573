"""Recorded streams of samples, and how the detector does on them.

A trace (tests/data/detection/*.jsonl) is one session on one disk: honest workloads, one after the other, then at most one attack. Its
first line says which and when, each other line is a sample. tests/measure/detection.py records them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rephub.agent.sampling import LOOKS_PER_SECOND_MAX
from rephub.projections.attack import AttackDetector
from rephub.schemas.stats import CaptureSample

FOLDER = Path(__file__).parent / "data/detection"
FIELDS = (
    "at", "interval_us", "writes", "written_bytes", "sampled_blocks", "entropy_sum", "packed_sum", "random_blocks",
    "turned_blocks", "rewritten_blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A workload ran from here to the next phase."""

    name: str
    attack: bool
    from_at: int


@dataclass(frozen=True)
class Trace:
    """One session."""

    name: str
    held_out: bool
    phases: list[Phase]
    samples: list[CaptureSample]

    @property
    def attack(self) -> Phase | None:
        """If there was one."""
        return next((phase for phase in self.phases if phase.attack), None)

    def phase_at(self, at: int) -> Phase:
        """What ran then."""
        return next((phase for phase in reversed(self.phases) if phase.from_at <= at), self.phases[0])


@dataclass(frozen=True)
class Outcome:
    """What the detector made of a trace."""

    trace: Trace
    honest_us: int
    honest_bytes: int
    false_alarms: list[str]
    """The workloads at whose time an alarm was raised."""
    detected_after_us: int | None = None
    detected_after_bytes: int | None = None
    since_before_us: int | None = None
    """How long `since_us` lies before the first write that reached the disk after the attack began; negative: after it."""


def load(folder: Path = FOLDER) -> list[Trace]:
    """All traces."""
    traces = []
    for path in sorted(folder.glob("*.jsonl")):
        head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples = [sample(**_thinned(dict(zip(FIELDS, line, strict=True)))) for line in lines]
        phases = [Phase(**phase) for phase in head["phases"]]
        traces.append(Trace(path.stem, head["held_out"], phases, samples))
    return traces


def _thinned(fields: dict[str, Any]) -> dict[str, Any]:
    """As if no more had been looked into than the limit is now: some traces were recorded with a higher one."""
    most = LOOKS_PER_SECOND_MAX * fields["interval_us"] / 1e6
    part = min(1.0, most / max(1, fields["sampled_blocks"]))
    sums = {key: fields[key] * part for key in ("entropy_sum", "packed_sum")}
    counts = ("sampled_blocks", "random_blocks", "turned_blocks", "rewritten_blocks")
    return fields | sums | {key: round(fields[key] * part) for key in counts}


def sample(**fields: Any) -> CaptureSample:
    """One with nothing in the fields that are not given."""
    nothing = {
        "sampled_blocks": 0,
        "entropy_sum": 0.0,
        "packed_sum": 0.0,
        "random_blocks": 0,
        "turned_blocks": 0,
    }
    nothing |= {"rewritten_blocks": 0, "writes": 0, "written_bytes": 0, "interval_us": 1_000_000}
    return CaptureSample(
        source="agent/a", volume="v", group="", epoch=1, attached=True, unacked_bytes=0, dirty_bytes=0, acked_offset=0,
        ack_delays=(0,) * 16, **(nothing | fields),
    )  # fmt: skip


def evaluate(trace: Trace) -> Outcome:
    """Feed a detector that knows nothing with a trace."""
    detector, holds = AttackDetector(), False
    attack = trace.attack
    honest_us = honest_bytes = attacked_bytes = 0
    false_alarms: list[str] = []
    found: tuple[int, int, int] | None = None
    reached_at = 0
    for item in trace.samples:
        attacked = attack is not None and item.at > attack.from_at
        if attacked:
            attacked_bytes += item.written_bytes
            reached_at = reached_at or (item.at - item.interval_us if item.written_bytes else 0)
        else:
            honest_us += item.interval_us
            honest_bytes += item.written_bytes
        suspicion = detector.note(item)
        if suspicion and not holds and not attacked:
            false_alarms.append(trace.phase_at(item.at).name)
        elif suspicion and not holds and attack and found is None:
            found = item.at - attack.from_at, attacked_bytes, reached_at - suspicion.since_us
        holds = suspicion is not None
    return Outcome(trace, honest_us, honest_bytes, false_alarms, *(found or (None, None, None)))


def table(outcomes: Iterable[Outcome]) -> str:
    """The figures as Markdown."""
    outcomes = list(outcomes)
    lines = []
    for held_out, title in ((False, "Training"), (True, "Held out")):
        here = [item for item in outcomes if item.trace.held_out == held_out]
        attacked = [item for item in here if item.trace.attack]
        detected = [item for item in attacked if item.detected_after_us is not None]
        hours = sum(item.honest_us for item in here) / 3.6e9
        alarms = [name for item in here for name in item.false_alarms]
        lines += [
            f"### {title}", "",
            (f"{len(detected)} of {len(attacked)} attacks detected; {len(alarms)} false alarms in {hours:.2f} hours of "
            f"honest writing ({sum(item.honest_bytes for item in here) / 1e9:.1f} GB)"
            f"{': at ' + ', '.join(sorted(set(alarms))) if alarms else ''}; that is {len(alarms) / hours:.0f} an hour of it."), "",
            "| session | attack | detected after | written by then | point before lies before its first write by |",
            "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for item in attacked:
            assert item.trace.attack is not None
            if item.detected_after_us is None:
                cells = ["**no**", "", ""]
            else:
                assert item.detected_after_bytes is not None
                assert item.since_before_us is not None
                cells = [
                    f"{item.detected_after_us / 1e6:.1f} s",
                    f"{item.detected_after_bytes / 1e6:.1f} MB",
                    f"{item.since_before_us / 1e6:.1f} s",
                ]
            lines.append(f"| {item.trace.name} | {item.trace.attack.name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
