"""Alert rules on a stream of samples: raised once, cleared with hysteresis, and the same after a restart."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_world import START, World
from rephub.projections.alerts import Key, OpenAlerts
from rephub.projections.rules import MARK_SECONDS, RULES, SECOND_US, Rules, Targets, Transition
from rephub.schemas import alerts, commands, stats
from sample_factory import capture, process, projection


class Site:
    """A catalogue with one protected volume, the topic rephub.alerts and a monitor that may be started anew."""

    def __init__(self) -> None:
        self.world = World()
        self.world.protected("v1", group="g")
        self.alerts = OpenAlerts()
        self.records: list[alerts.Record] = []
        self.table: dict[str, Any] = {}
        self.stream: list[tuple[int, Any]] = []
        self.second = 0
        self.restart()

    def restart(self) -> None:
        """A new monitor: what is open comes from the topic, the rest from the table."""
        self.alerts = OpenAlerts()
        for offset, record in enumerate(self.records):
            self.alerts.apply(offset, record)
        self.rules = Rules(lambda: self.world.catalogue, self.alerts, Targets(), self.table.get)

    def bring(self, offset: int, *, store: bool = True) -> list[Transition]:
        """Deliver the sample at an offset, perhaps once more."""
        at, sample = self.stream[offset]
        found = self.rules.note(offset, at, sample)
        for one in found:
            record = as_record(self.alerts, one, offset)
            self.records.append(record)
            assert self.alerts.apply(len(self.records) - 1, record), "each record changes something"
        if store:
            self.table |= dict(self.rules.to_store(at))
        return found

    def second_of(self, *samples: Any) -> list[Transition]:
        """One second of the stream."""
        at = START + self.second * SECOND_US
        self.second += 1
        found = []
        for sample in samples:
            self.stream.append((at, sample))
            found += self.bring(len(self.stream) - 1)
        return found

    def healthy(self, **changes: Any) -> list[Transition]:
        """All daemons speak; changes are of the capture sample."""
        second = self.second
        hub = self.world.catalogue.hub
        return self.second_of(
            process(second, f"hub/{hub}"), process(second, "agent/a1"), process(second, "diskbox/d1"),
            projection(second), capture(second, **changes),
        )  # fmt: skip


def as_record(open_alerts: OpenAlerts, one: Transition, offset: int) -> alerts.Record:
    """As the monitor writes it, but for texts."""
    key, base = one.key, {"at": offset, "source": "monitor/m1", "stats_offset": offset}
    of = {"rule": key.rule, "subject_kind": key.subject_kind, "subject": key.subject}
    if one.raised:
        return alerts.AlertRaised(
            **base, **of, id=f"r{offset}{key}", alert=f"{offset}{key}", severity=one.finding.rule.severity,
            since=one.since, text=one.finding.text, hint="", value=one.finding.value,
            threshold=one.finding.threshold, unit=one.finding.rule.unit,
        )  # fmt: skip
    raised = open_alerts.by_key[key]
    return alerts.AlertCleared(
        **base, **of, id=f"c{offset}{key}", alert=raised.alert, raised_at=raised.at, text=""
    )


def names(found: list[Transition]) -> list[tuple[str, bool]]:
    return [(one.key.rule, one.raised) for one in found]


def test_nothing_is_raised_while_all_is_well() -> None:
    site = Site()
    assert [site.healthy() for _ in range(120)] == [[]] * 120


CONDITIONS: dict[str, Callable[[Site], list[Transition]]] = {
    "rpo_over_target": lambda site: site.healthy(rpo_us=9 * SECOND_US),
    "gap_open": lambda site: site.healthy(attached=False),
    "projector_stopped": lambda site: site.second_of(
        *everyone(site), projection(site.second, stopped="bad crc"), capture(site.second)
    ),
    "lag_growing": lambda site: site.second_of(
        *everyone(site), projection(site.second, head_offset=5), capture(site.second)
    ),
    "history_nearly_full": lambda site: site.second_of(
        *everyone(site), projection(site.second, journal_bytes=1 << 50), capture(site.second)
    ),
    "disk_nearly_full": lambda site: site.second_of(
        *everyone(site, disk_free_bytes=50), projection(site.second), capture(site.second)
    ),
    "clock_skew": lambda site: site.second_of(
        *everyone(site, at=START + (site.second + 7) * SECOND_US), projection(site.second), capture(site.second)
    ),
    "agent_silent": lambda site: site.second_of(
        *(one for one in everyone(site) if one.source != "agent/a1"), projection(site.second)
    ),
    "diskbox_silent": lambda site: site.second_of(
        *(one for one in everyone(site) if one.source != "diskbox/d1"), capture(site.second)
    ),
    "hub_silent": lambda site: site.second_of(
        *(one for one in everyone(site) if not one.source.startswith("hub/")), projection(site.second),
        capture(site.second),
    ),
}  # fmt: skip


def everyone(site: Site, **changes: Any) -> list[stats.ProcessSample]:
    """All daemons; changes are of the diskbox."""
    second, hub = site.second, site.world.catalogue.hub
    return [
        process(second, f"hub/{hub}"),
        process(second, "agent/a1"),
        process(second, "diskbox/d1", **changes),
    ]


@pytest.mark.parametrize("rule", CONDITIONS)
def test_a_condition_is_raised_once_and_cleared_once(rule: str) -> None:
    site = Site()
    for _ in range(40):
        assert site.healthy() == []
    raised = [one for _ in range(120) for one in CONDITIONS[rule](site) if one.key.rule == rule]
    assert names(raised) == [(rule, True)]
    assert raised[0].finding.text
    open_for = site.second
    cleared = [one for _ in range(400) for one in site.healthy() if one.key.rule == rule]
    assert names(cleared) == [(rule, False)]
    assert RULES[rule].clear_seconds > 0
    assert site.second > open_for


def test_a_condition_that_comes_and_goes_does_not_flap() -> None:
    site = Site()
    found = []
    for number in range(300):
        found += site.healthy(rpo_us=6 * SECOND_US if number % 4 else 20_000)
    assert found == [], "never for ten seconds on end"
    for _ in range(11):
        found += site.healthy(rpo_us=6 * SECOND_US)
    assert names(found) == [("rpo_over_target", True)]
    for number in range(300):
        found += site.healthy(rpo_us=int(4.5 * SECOND_US) if number % 2 else int(5.5 * SECOND_US))
    assert names(found) == [("rpo_over_target", True)], "around the threshold it stays open"


def test_a_silent_agent_means_gap_of_its_volumes() -> None:
    site = Site()
    site.healthy()
    found = [one for _ in range(20) for one in CONDITIONS["agent_silent"](site)]
    assert {("agent_silent", True), ("gap_open", True)} <= set(names(found))


def test_when_all_are_silent_nobody_is_blamed() -> None:
    """Kafka was away: its time stands still, and goes on with all daemons at once."""
    site = Site()
    for _ in range(10):
        site.healthy()
    site.second += 600
    assert site.healthy() == []
    assert site.healthy() == []


def test_what_is_gone_is_cleared() -> None:
    site = Site()
    for _ in range(20):
        site.healthy(rpo_us=60 * SECOND_US)
    assert Key("rpo_over_target", "volume", "v1") in site.alerts.by_key
    site.world.done(site.world.command(commands.Unprotect, volume="v1", purge=False))
    found = site.healthy()
    assert names(found) == [("rpo_over_target", False)]
    site.second_of(process(site.second, "agent/a1"))
    kept = {name: value for name, value in vars(site.rules).items() if "v1" in str(value)}
    assert not kept.keys() - {"_catalogue", "_alerts"}, "what is gone takes no memory"


def test_the_last_good_offset_is_from_before_the_suspicion() -> None:
    site = Site()
    for _ in range(200):
        site.healthy(
            writes=100,
            written_bytes=409_600,
            sampled_blocks=20,
            entropy_sum=80.0,
            packed_sum=8.0,
            rewritten_blocks=15,
        )
    began = site.second
    found = []
    for _ in range(60):
        found += site.healthy(
            writes=5000, written_bytes=20_480_000, sampled_blocks=300, entropy_sum=300 * 7.96, packed_sum=300.0,
            random_blocks=300, turned_blocks=280, rewritten_blocks=290,
        )  # fmt: skip
    ((rule, raised),) = set(names(found))
    assert (rule, raised) == ("encryption_suspected", True)
    (one,) = found
    assert one.finding.last_good is not None
    offset, at = one.finding.last_good
    assert at <= one.since <= START + (began + 1) * SECOND_US
    assert 10 * (began - 2 * MARK_SECONDS - 5) <= offset <= 10 * began


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000))
@example(seed=239)
def test_a_monitor_that_is_killed_loses_nothing_and_says_nothing_twice(seed: int) -> None:
    """Killed at any sample, started on one that Faust delivers again, with a table as old as its last write."""
    rng = random.Random(seed)
    calm, killed = Site(), Site()
    for _ in range(30):
        kind = rng.choice([*CONDITIONS, "well", "well"])
        for _ in range(rng.choice([4, 47])):
            for site in (calm, killed):
                if kind == "well":
                    site.healthy()
                else:
                    CONDITIONS[kind](site)
            if rng.random() < 0.05:
                again = len(killed.stream) - rng.randint(0, min(12, len(killed.stream)))
                killed.restart()
                for at, sample in killed.stream[:again]:
                    killed.rules.remember(at, sample)
                for offset in range(again, len(killed.stream)):
                    killed.bring(offset)
    said = [
        sorted((one.rule, one.subject, number) for number, one in counted(site.records))
        for site in (calm, killed)
    ]
    assert said[0] == said[1]


def counted(records: list[alerts.Record]) -> list[tuple[int, alerts.Record]]:
    """With the number of each among those of its key; raises and clears take turns."""
    numbers: dict[tuple[str, str], int] = {}
    found = []
    for one in records:
        number = numbers[one.rule, one.subject] = numbers.get((one.rule, one.subject), -1) + 1
        assert isinstance(one, (alerts.AlertRaised, alerts.AlertCleared)[number % 2])
        found.append((number, one))
    return found


def test_the_page_lists_every_rule_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs/monitoring.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    listed = {
        (name.strip(" `"), severity, raised, cleared)
        for names, _, severity, raised, cleared, _ in rows
        for name in names.split(",")
    }
    assert listed == {
        (rule.name, rule.severity, f"{rule.raise_seconds} s", f"{rule.clear_seconds} s")
        for rule in RULES.values()
    }
