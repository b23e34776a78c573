"""Alert rules: from samples and the catalogue to what is to be raised and cleared; pure.

Time is the stream's: Kafka's append time of the samples, so that a daemon with a wrong clock, or a monitor that was down for a
while, comes to the same answers. All conditions are looked at once for each second of it. A condition is a value beyond a
threshold; it must hold for a while to be raised, and must stay 20 % below the threshold for a while to be cleared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rephub.core.units import format_bytes, format_duration
from rephub.projections.alerts import Key, OpenAlerts
from rephub.projections.attack import AttackDetector, Suspicion
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Volume
from rephub.projections.status import CAPTURED
from rephub.schemas import stats

SECOND_US = 1_000_000
CLEAR_SHARE = 0.8
"""Of the threshold: a condition that is open ends below it."""

MARK_SECONDS = 5
MARKS_MAX = 180
"""Of a volume: the newest acked offset every so often, for a quarter of an hour. A monitor reads as much of the samples at its start."""

KEEP_SECONDS = 10
"""What a detector has learnt is stored so often: a monitor that is killed forgets no more than that."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; see RULES."""

    name: str
    subject_kind: str
    severity: str
    raise_seconds: int
    clear_seconds: int
    unit: str
    hint: str


RULES = {
    rule.name: rule
    for rule in (
        Rule("rpo_over_target", "volume", "warning", 10, 30, "s", "is Kafka slow? rephub doctor"),
        Rule("gap_open", "volume", "critical", 5, 10, "1", "rephub status says why; it closes by itself"),
        Rule("lag_growing", "volume", "warning", 10, 30, "s", "is the diskbox busy or its disk slow?"),
        Rule("projector_stopped", "volume", "critical", 0, 5, "1", "rephub status; rephub resync"),
        Rule("window_short", "volume", "warning", 30, 60, "s", "rephub history gives more bytes"),
        Rule("history_nearly_full", "volume", "info", 60, 300, "ratio", "rephub history gives more bytes"),
        Rule("encryption_suspected", "volume", "critical", 0, 300, "1", "test it: rephub fot start"),
        Rule("agent_silent", "agent", "critical", 5, 5, "s", "rephub status; its volumes may be in a gap"),
        Rule("diskbox_silent", "diskbox", "critical", 5, 5, "s", "rephub status; rephub fleet"),
        Rule("hub_silent", "hub", "critical", 10, 5, "s", "protection goes on; commands are not answered"),
        Rule(
            "disk_nearly_full", "daemon", "warning", 30, 60, "ratio", "free space below its state directory"
        ),
        Rule("clock_skew", "daemon", "warning", 30, 60, "s", "run chrony or systemd-timesyncd on that host"),
    )
}
"""By name. Seconds: how long a condition holds before it is raised, and is over before it is cleared."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Thresholds; seconds and parts of 1."""

    rpo_seconds: float = 5.0
    lag_seconds: float = 30.0
    silent_seconds: float = 5.0
    skew_seconds: float = 2.0
    disk_used_share: float = 0.9
    history_share: float = 0.95


class Finding(NamedTuple):
    """A condition as it is now: it holds where the value is above the threshold."""

    rule: Rule
    subject: str
    value: float
    threshold: float
    text: str
    since: int | None = None
    """When it began, if that is known better than by looking."""
    last_good: tuple[int, int] | None = None
    """(journal offset, captured or seen at) of the newest point from before."""


class Transition(NamedTuple):
    """What is to be written: the alert of a key begins or ends."""

    raised: bool
    key: Key
    finding: Finding
    since: int


@dataclass(slots=True)
class Subject:
    """What is remembered of a volume or daemon."""

    timers: dict[str, int] = field(default_factory=dict)
    """By rule: since when its condition differs from what is raised, in stream time."""
    attack: AttackDetector | None = None
    offset: int = -1
    """Samples up to there are in `attack`."""
    changed_at: int = 0
    """Stream time of the oldest change that is not stored; 0: all is."""

    def to_document(self) -> dict[str, Any]:
        """For the table."""
        attack = self.attack.to_document() if self.attack else None
        return {"timers": dict(self.timers), "attack": attack, "offset": self.offset}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Subject:
        """From the table."""
        attack = document.get("attack")
        return cls(
            dict(document["timers"]),
            AttackDetector.from_document(attack) if attack else None,
            document["offset"],
        )


class Rules:
    """Looks at all rules.

    Args:
        catalogue: what is protected, by whom.
        alerts: those that are open.
        targets: thresholds.
        stored: what a table remembers of a subject, None if nothing.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        alerts: OpenAlerts,
        targets: Targets,
        stored: Callable[[str], Mapping[str, Any] | None] = lambda _name: None,
    ) -> None:
        self._catalogue, self._alerts, self._targets, self._stored = catalogue, alerts, targets, stored
        self._subjects: dict[str, Subject] = {}
        self._captures: dict[str, stats.CaptureSample] = {}
        self._projections: dict[str, stats.ProjectionSample] = {}
        self._processes: dict[str, tuple[stats.ProcessSample, float]] = {}
        """Newest sample and its clock's distance from Kafka's, seconds."""
        self._heard: dict[str, int] = {}
        """By source: stream time of its newest sample."""
        self._marks: dict[str, deque[tuple[int, int, int]]] = {}
        """By volume: (stream time, at, acked offset)."""
        self._suspicions: dict[str, Suspicion] = {}
        self._begun = 0
        self._second = self._stored_second = 0

    def note(self, offset: int, stream_at: int, sample: object) -> list[Transition]:
        """Take a sample.

        Args:
            offset: in rephub.stats.
            stream_at: when Kafka took it, microseconds since the Unix epoch.
            sample: anything but a sample is skipped.

        Returns:
            What is to be raised and cleared, at most once for each key and second.
        """
        match sample:
            case stats.CaptureSample():
                self._capture(offset, stream_at, sample)
            case stats.ProjectionSample():
                self._projections[sample.volume] = sample
            case stats.ProcessSample():
                self._processes[sample.source] = (sample, (sample.at - stream_at) / SECOND_US)
            case stats.ViewSample():
                pass
            case _:
                return []
        self._begun = self._begun or stream_at
        self._heard[sample.source] = max(stream_at, self._heard.get(sample.source, 0))
        second = stream_at // SECOND_US
        if second <= self._second:
            return []
        self._second = second
        return self._look(offset, stream_at)

    def remember(self, stream_at: int, sample: object) -> None:
        """Take a sample from before the start: who spoke when, what was said last, and where the journals were."""
        if isinstance(sample, stats.RECORDS):
            self._begun = self._begun or stream_at
            self._heard[sample.source] = max(stream_at, self._heard.get(sample.source, 0))
        if isinstance(sample, stats.ProcessSample):
            self._processes[sample.source] = (sample, (sample.at - stream_at) / SECOND_US)
        if isinstance(sample, stats.ProjectionSample):
            self._projections[sample.volume] = sample
        if isinstance(sample, stats.CaptureSample):
            self._captures[sample.volume] = sample
            self._mark(stream_at, sample)

    def _mark(self, stream_at: int, sample: stats.CaptureSample) -> None:
        marks = self._marks.setdefault(sample.volume, deque(maxlen=MARKS_MAX))
        if sample.acked_offset >= 0 and (not marks or stream_at - marks[-1][0] >= MARK_SECONDS * SECOND_US):
            marks.append((stream_at, sample.at, sample.acked_offset))

    def to_store(self, stream_at: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Subjects to be stored now: changed timers at once, what detectors learnt every KEEP_SECONDS.

        Nothing but once for each second of the stream, after the look that changes timers.
        """
        if self._second <= self._stored_second:
            return
        self._stored_second = self._second
        for name, subject in self._subjects.items():
            if subject.changed_at and stream_at - subject.changed_at >= KEEP_SECONDS * SECOND_US:
                subject.changed_at = 0
                yield name, subject.to_document()

    def _capture(self, offset: int, stream_at: int, sample: stats.CaptureSample) -> None:
        self._captures[sample.volume] = sample
        subject = self._subject("volume", sample.volume)
        if offset > subject.offset:
            subject.attack = subject.attack or AttackDetector()
            suspicion = subject.attack.note(sample)
            subject.offset = offset
            subject.changed_at = subject.changed_at or stream_at
            if suspicion is not None:
                self._suspicions[sample.volume] = suspicion
            else:
                self._suspicions.pop(sample.volume, None)
        self._mark(stream_at, sample)

    def _look(self, offset: int, stream_at: int) -> list[Transition]:
        self._forget()
        found = []
        for finding in self._findings(stream_at):
            key = Key(finding.rule.name, finding.rule.subject_kind, finding.subject)
            transition = self._judge(key, finding, offset, stream_at)
            if transition is not None:
                found.append(transition)
        for key, raised in self._alerts.by_key.items():
            if self._is_gone(key) and offset > self._alerts.stats_offsets.get(key, -1):
                gone = Finding(RULES[key.rule], key.subject, 0.0, raised.threshold, f"{key.subject} is gone")
                found.append(Transition(raised=False, key=key, finding=gone, since=stream_at))
        return found

    def _forget(self) -> None:
        """What is known of volumes that nobody protects any more; one that comes back has what the table remembers."""
        live = {volume.name for volume in self._catalogue().volumes.values() if volume.live}
        for known in (self._captures, self._projections, self._marks, self._suspicions):
            for name in known.keys() - live:
                del known[name]
        for name in self._subjects.keys() - {f"volume/{volume}" for volume in live}:
            if name.startswith("volume/"):
                del self._subjects[name]

    def _is_gone(self, key: Key) -> bool:
        """Whether nobody looks at the subject any more; a rule that is not known here is another version's."""
        catalogue = self._catalogue()
        if key.rule not in RULES:
            return False
        kind, _, name = (
            key.subject.partition("/")
            if key.subject_kind == "daemon"
            else (key.subject_kind, "", key.subject)
        )
        match kind:
            case "volume":
                return name not in catalogue.volumes or not catalogue.volumes[name].live
            case "agent":
                return name not in catalogue.agents
            case "diskbox":
                return name not in catalogue.diskboxes or catalogue.diskboxes[name].lost
            case "hub":
                return name != catalogue.hub
        return False

    def _judge(self, key: Key, finding: Finding, offset: int, stream_at: int) -> Transition | None:
        if offset <= self._alerts.stats_offsets.get(key, -1):
            return None  # said before a restart
        is_open = key in self._alerts.by_key
        holds = finding.value > finding.threshold * (CLEAR_SHARE if is_open else 1.0)
        subject = self._subject(key.subject_kind, key.subject)
        if holds == is_open:
            if subject.timers.pop(key.rule, None) is not None:
                self._changed(subject)
            return None
        if key.rule not in subject.timers:
            subject.timers[key.rule] = stream_at
            self._changed(subject)
        since = subject.timers[key.rule]
        seconds = finding.rule.raise_seconds if holds else finding.rule.clear_seconds
        if stream_at - since < seconds * SECOND_US:
            return None
        del subject.timers[key.rule]
        self._changed(subject)
        return Transition(raised=holds, key=key, finding=finding, since=finding.since or since)

    @staticmethod
    def _changed(subject: Subject) -> None:
        subject.changed_at = 1  # long ago: it is stored at once

    def _subject(self, kind: str, name: str) -> Subject:
        full = f"{kind}/{name}"
        if full not in self._subjects:
            stored = self._stored(full)
            self._subjects[full] = Subject.from_document(stored) if stored else Subject()
        return self._subjects[full]

    def _findings(self, stream_at: int) -> Iterator[Finding]:
        catalogue = self._catalogue()
        for volume in catalogue.volumes.values():
            if volume.live:
                yield from self._of_volume(volume, stream_at)
        for kind, names in (
            ("agent", catalogue.agents),
            ("diskbox", [name for name, box in catalogue.diskboxes.items() if not box.lost]),
            ("hub", [catalogue.hub] if catalogue.hub else []),
        ):
            yield from self._silence(kind, names, stream_at)
        for source in self._processes:
            yield from self._of_process(source, stream_at)

    def _of_volume(self, volume: Volume, stream_at: int) -> Iterator[Finding]:
        name, targets = volume.name, self._targets
        capture, projection = self._captures.get(name), self._projections.get(name)
        expected = volume.state in CAPTURED and not volume.paused_at
        silent = self._silent_seconds(f"agent/{volume.agent}", stream_at) > targets.silent_seconds
        gap = expected and (silent or volume.state == "gap" or (capture is not None and not capture.attached))
        if capture is not None or gap:
            yield Finding(RULES["gap_open"], name, float(gap), 0.5, f"no writes of {name} are captured")
        if capture is not None:
            rpo = (capture.rpo_us or 0) / SECOND_US if expected and not silent else 0.0
            yield Finding(
                RULES["rpo_over_target"], name, rpo, targets.rpo_seconds,
                f"the newest safe point of {name} is {format_duration(rpo)} old",
            )  # fmt: skip
            yield self._encryption(name)
        if projection is not None:
            yield from self._of_projection(volume, projection, stream_at)

    def _encryption(self, name: str) -> Finding:
        suspicion = self._suspicions.get(name)
        return Finding(
            RULES["encryption_suspected"], name, float(suspicion is not None), 0.5,
            suspicion.text if suspicion else "",
            suspicion.since_us if suspicion else None,
            self._mark_before(name, suspicion.since_us) if suspicion else None,
        )  # fmt: skip

    def _of_projection(
        self, volume: Volume, projection: stats.ProjectionSample, stream_at: int
    ) -> Iterator[Finding]:
        name, targets = volume.name, self._targets
        stopped = projection.stopped
        yield Finding(
            RULES["projector_stopped"], name, float(bool(stopped)), 0.5, f"{name} is not applied: {stopped}"
        )
        lag = self._lag_seconds(name, projection, stream_at)
        yield Finding(
            RULES["lag_growing"], name, lag, targets.lag_seconds,
            f"the diskbox is {format_duration(lag)} behind the journal of {name}",
        )  # fmt: skip
        window = projection.window_us / SECOND_US
        missing = max(0.0, volume.history_seconds - window) if volume.history_short else 0.0
        yield Finding(
            RULES["window_short"], name, missing, max(1.0, 0.05 * volume.history_seconds),
            f"{name} goes back {format_duration(window)} of the {format_duration(volume.history_seconds)} asked for",
        )  # fmt: skip
        used = projection.journal_bytes / volume.history_bytes if volume.history_bytes else 0.0
        yield Finding(
            RULES["history_nearly_full"], name, used, targets.history_share,
            f"the history of {name} is {used:.0%} of {format_bytes(volume.history_bytes)}",
        )  # fmt: skip

    def _silence(self, kind: str, names: Iterable[str], stream_at: int) -> Iterator[Finding]:
        for name in names:
            seconds = self._silent_seconds(f"{kind}/{name}", stream_at)
            yield Finding(
                RULES[f"{kind}_silent"], name, seconds, self._targets.silent_seconds,
                f"{kind} {name} has been silent for {format_duration(seconds)}",
            )  # fmt: skip

    def _of_process(self, source: str, stream_at: int) -> Iterator[Finding]:
        sample, skew = self._processes[source]
        if self._silent_seconds(source, stream_at) > self._targets.silent_seconds:
            return  # what it said is old; nothing new is known
        total = sample.disk_total_bytes
        used = 1 - sample.disk_free_bytes / total if total else 0.0
        yield Finding(
            RULES["disk_nearly_full"], source, used, self._targets.disk_used_share,
            f"{format_bytes(sample.disk_free_bytes)} are free on the disk of {source}",
        )  # fmt: skip
        yield Finding(
            RULES["clock_skew"], source, abs(skew), self._targets.skew_seconds,
            f"the clock of {source} is {format_duration(abs(skew))} {'ahead' if skew > 0 else 'behind'}",
        )  # fmt: skip

    def _silent_seconds(self, source: str, stream_at: int) -> float:
        """Since it was last heard, or since we listen."""
        return (stream_at - self._heard.get(source, self._begun)) / SECOND_US

    def _lag_seconds(self, volume: str, projection: stats.ProjectionSample, stream_at: int) -> float:
        """How long ago the journal held what the diskbox has read by now."""
        for at, _, acked_offset in self._marks.get(volume, ()):
            if acked_offset > projection.head_offset:
                return (stream_at - at) / SECOND_US
        return 0.0

    def _mark_before(self, volume: str, at: int) -> tuple[int, int] | None:
        before = [mark for mark in self._marks.get(volume, ()) if mark[1] <= at]
        return (before[-1][2], before[-1][1]) if before else None
