"""Whether what is written to a volume looks like a program that encrypts its files. Pure: samples in, a suspicion out.

Two signs: blocks that turn from readable to random (files encrypted in place, or into space that files left), and blocks that are random
whatever was there (encrypted copies). Against both speaks what zlib leaves of the blocks that are not random: compressed media and archives are dense too,
but seldom all random; file system metadata, which an attack writes as well, packs to little and says little.

Each sign is a cumulative sum test (Page 1954) against the volume's own history: every block adds the logarithm of how much likelier it is under attack than
usually, and the sum never falls below nothing. So it asks for so much evidence and not for so much time: a slow attack shows later, after the same number of
bytes. The moment at which a sum last left zero is the estimate of when it began. How well this works: docs/detection.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import log
from typing import Any, Protocol

UNLEARNT_FACTOR = 3.0
"""It takes so many times as much while the volume's history is unknown."""

LEARNT_BLOCKS = 100.0
"""From so many on, counted as zlib leaves them, a history is known: 25 MB of compressed data, or three times as much of others."""

MEMORY_BLOCKS = 2000.0
"""A block counts 1/e in the history after so many others, so counted: 0.5 GB, or three times as much."""

USUAL_FACTOR = 1.5
"""So many times the usual share of a sign is still usual."""

SCORE_MAX_FACTOR = 2.0
"""A sum stops at so many thresholds, so that it falls in time when all is as usual again."""

QUIET_US = 15 * 60 * 1_000_000
"""A suspicion ends when nothing has spoken for it for so long."""

STREAK_US = 10 * 1_000_000
"""Hits no farther apart belong together: an attack may begin before its evidence outweighs what else is written."""

STREAK_MAX_US = 60 * 1_000_000
"""So much longer before the sum left zero an attack may have begun."""

LATE_US = 60 * 1_000_000
"""A sample that is older than the newest by less is late, or came twice, and is left out; by more: the clock was set back."""

BEFORE_US = 5_000_000
"""A write is in a sample of at most 1.5 s later (workers tell their figures four times a second, agents once); and the first blocks of an
attack may not be among those that are looked into."""


class Written(Protocol):
    """The fields of `CaptureSample` that are looked at."""

    @property
    def at(self) -> int: ...  # noqa: D102
    @property
    def interval_us(self) -> int: ...  # noqa: D102
    @property
    def sampled_blocks(self) -> int: ...  # noqa: D102
    @property
    def random_blocks(self) -> int: ...  # noqa: D102
    @property
    def packed_sum(self) -> float: ...  # noqa: D102
    @property
    def turned_blocks(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is written looks like an attack."""

    since_us: int
    """A moment before the first suspicious write, microseconds since the Unix epoch, by the clock of the samples."""
    score: float
    """The sum."""
    threshold: float
    """At which it was raised."""
    text: str
    """What was seen, for people."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One way in which an attack shows. Shares are of hits in all that speaks for or against it."""

    text: str
    """With `{share}` of what was written, `{usual}` of the history."""
    floor: float
    """The share which is usual for any volume."""
    attack: float
    """The share under attack."""
    threshold: float
    """A suspicion is raised at this sum: the evidence is so many powers of e to one."""


TURNED = Sign(
    "{share:.0%} of the dense blocks written turned from readable to random (usual: {usual:.0%})",
    0.2,
    0.9,
    14.0,
)
COPIED = Sign("{share:.0%} of the dense blocks written are random (usual: {usual:.0%})", 0.5, 0.95, 30.0)


@dataclass(slots=True)
class _Sum:
    """The test of one sign, and what is usual for it."""

    usual_hits: float = 0.0
    usual_blocks: float = 0.0
    score: float = 0.0
    since_us: int = 0
    streak_us: int = 0
    """A moment before the first hit of those that belong together."""
    hit_us: int = 0
    """The newest one."""
    hits: float = 0.0
    """Since the sum left zero: not part of the history before it is back there."""
    blocks: float = 0.0
    raised: bool = False

    @property
    def usual_share(self) -> float:
        return self.usual_hits / self.usual_blocks if self.usual_blocks else 0.0

    def note(self, sign: Sign, hits: float, misses: float, before_us: int) -> bool:
        """Take what was written after a moment; returns whether it speaks for an attack."""
        usual = max(sign.floor, min(1.0, USUAL_FACTOR * self.usual_share))
        if usual >= sign.attack:
            step = 0.0  # Of such a volume the sign says nothing.
        else:
            step = hits * log(sign.attack / usual) + misses * log((1 - sign.attack) / (1 - usual))
        if hits:
            if not 0 <= before_us - self.hit_us <= STREAK_US:
                self.streak_us = before_us
            self.hit_us = before_us
        if self.score <= 0:
            self.since_us = min(before_us, max(self.streak_us, before_us - STREAK_MAX_US))
        threshold = self.threshold(sign)
        self.hits += hits
        self.blocks += hits + misses
        self.score = min(max(0.0, self.score + step), SCORE_MAX_FACTOR * threshold)
        if self.score <= 0:
            self.end()
        elif self.score >= threshold:
            self.raised = True
        return step > 0

    def threshold(self, sign: Sign) -> float:
        """More while little is known."""
        return sign.threshold * (1.0 if self.usual_blocks >= LEARNT_BLOCKS else UNLEARNT_FACTOR)

    def end(self) -> None:
        """The sum is back at zero: what was seen meanwhile is usual, unless it was an alarm."""
        if not self.raised and self.blocks:
            kept = max(0.0, 1 - self.blocks / MEMORY_BLOCKS)
            self.usual_hits = self.usual_hits * kept + self.hits
            self.usual_blocks = self.usual_blocks * kept + self.blocks
        self.score = self.hits = self.blocks = 0.0
        self.raised = False


class AttackDetector:
    """Of one volume."""

    def __init__(self) -> None:
        self._at = 0
        self._spoke_at = 0
        self._sums = {"turned": _Sum(), "copied": _Sum()}

    def note(self, sample: Written) -> Suspicion | None:
        """Take the volume's next sample.

        Args:
            sample: of one second or more; samples that come late or twice are left out, missing ones are missing evidence.

        Returns:
            The suspicion that holds now, which has not changed its `since_us` while it holds; None: there is none.
        """
        if self._at - LATE_US < sample.at <= self._at:
            return self._suspicion()
        before_us = sample.at - sample.interval_us
        if 0 < self._at < sample.at:
            before_us = min(before_us, self._at)
        self._at = sample.at
        if sample.sampled_blocks > 0:
            self._take(sample, before_us - BEFORE_US)
        elif not 0 <= sample.at - self._spoke_at < QUIET_US:
            for found in self._sums.values():
                found.end()
        return self._suspicion()

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "at": self._at,
            "spoke_at": self._spoke_at,
            "sums": {
                name: {field.name: getattr(found, field.name) for field in fields(found)}
                for name, found in self._sums.items()
            },
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> AttackDetector:
        """What `to_document` made."""
        detector = cls()
        detector._at, detector._spoke_at = document["at"], document["spoke_at"]
        detector._sums = {name: _Sum(**document["sums"][name]) for name in detector._sums}
        return detector

    def _take(self, sample: Written, before_us: int) -> None:
        random = max(0, min(sample.random_blocks, sample.sampled_blocks))
        against = max(0.0, min(sample.packed_sum, sample.sampled_blocks) - random)
        turned = self._sums["turned"].note(
            TURNED, max(0, min(sample.turned_blocks, random)), against, before_us
        )
        copied = self._sums["copied"].note(COPIED, random, against, before_us)
        if turned or copied:
            self._spoke_at = sample.at

    def _suspicion(self) -> Suspicion | None:
        raised = [(TURNED, self._sums["turned"]), (COPIED, self._sums["copied"])]
        raised = [(sign, found) for sign, found in raised if found.raised]
        if not raised:
            return None
        sign, first = raised[0]
        return Suspicion(
            min(found.since_us for _, found in raised),
            first.score,
            first.threshold(sign),
            sign.text.format(share=first.hits / max(1.0, first.blocks), usual=first.usual_share),
        )
