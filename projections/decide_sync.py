"""What the hub decides about the pace of syncs, and whose turn it is; pure.

The pace belongs to the volume and not to one sync: it holds for the one that runs and for any later one.
"""

from __future__ import annotations

from typing import Any

from rephub.core.errors import UsageError
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, make, protected_volume, undisturbed
from rephub.projections.entities import Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

RATE_MIN = 64 << 10
"""Bytes per second: a chunk of 1 MiB then takes 16 s, and a sync at least seems to move."""

PRIORITY_MAX = 100
"""Of either sign; more steps than anybody has volumes on one agent would order nothing."""


def set_pace(catalogue: Catalogue, command: cmd.SetSyncPace, now: int) -> ev.Record:
    """Change what the command names of the volume's pace.

    Raises:
        UsageError: a rate or priority beyond its limits.
        NotFoundError: unknown volume.
        ConflictError: it is being unprotected or promoted.
    """
    volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    before = pace(volume)
    after = dict(before)
    if command.paused is not None:
        after["paused"] = command.paused
    if command.rate_bytes_per_second is not None:
        after["rate_bytes_per_second"] = _checked_rate(command.rate_bytes_per_second) or None
    if command.priority is not None:
        after["priority"] = _checked_priority(command.priority)
    if after == before:
        return fulfilled(catalogue, command, now, {"volume": volume.name} | before)
    return make(
        catalogue,
        ev.SyncPaceSet,
        now,
        command.id,
        volume.name,
        command_id=command.id,
        volume=volume.name,
        paused=after["paused"],
        rate_bytes_per_second=after["rate_bytes_per_second"] or 0,
        priority=after["priority"],
    )


def pace(volume: Volume) -> dict[str, Any]:
    """As the verbs answer it: {"paused", "rate_bytes_per_second": null where there is no limit, "priority"}."""
    return {
        "paused": volume.sync_paused,
        "rate_bytes_per_second": volume.sync_rate_bytes_per_second or None,
        "priority": volume.sync_priority,
    }


def turns(catalogue: Catalogue, agent: str, syncs_max: int) -> set[str]:
    """The volumes of an agent whose sync runs now: the highest priorities, of equal ones who began to wait first.

    A paused one takes nobody's place. A sync that is under way stands still when one of higher priority takes its.

    Args:
        catalogue: the fold so far.
        agent: its name.
        syncs_max: how many run at a time.
    """
    due = [
        volume
        for volume in catalogue.live_volumes()
        if volume.agent == agent and not volume.sync_paused and catalogue.wants_sync(volume)
    ]
    due.sort(key=lambda volume: (-volume.sync_priority, volume.since_at, volume.name))
    return {volume.name for volume in due[:syncs_max]}


def _checked_rate(rate: int) -> int:
    if rate and rate < RATE_MIN:
        raise UsageError(
            f"a rate of {rate} bytes per second is too low",
            hint=f"at least {RATE_MIN >> 10} KiB, or none; to stop it: rephub sync pause",
        )
    return rate


def _checked_priority(priority: int) -> int:
    if abs(priority) > PRIORITY_MAX:
        raise UsageError(f"priority {priority} is out of range", hint=f"-{PRIORITY_MAX} to {PRIORITY_MAX}")
    return priority
