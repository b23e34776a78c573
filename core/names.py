"""Every topic and Redis key name, and what a name may look like."""

from __future__ import annotations

import re

from rephub.core.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")

COMMANDS_TOPIC = "rephub.commands"
EVENTS_TOPIC = "rephub.events"
STATS_TOPIC = "rephub.stats"
ALERTS_TOPIC = "rephub.alerts"
JOURNAL_PREFIX = "journal."

MONITOR_APP = "rephub-monitor"
MONITOR_TABLES = ("subjects", "minutes")
"""The Faust application of the monitor and its tables; Faust names their changelogs."""


def check_name(name: str, what: str) -> str:
    """The name itself, if it may be one of a volume, group or checkpoint.

    Args:
        name: what was given.
        what: "volume", "group", "checkpoint": for the message.

    Raises:
        UsageError: it may not.
    """
    if NAME.match(name):
        return name
    raise UsageError(
        f"bad {what} name {name[:120]!r}",
        hint="letters, digits, '.', '_' and '-', at most 100, the first a letter or digit",
    )


def journal_topic(volume: str) -> str:
    """The topic that is the volume's journal."""
    return f"{JOURNAL_PREFIX}{volume}"


def dirty_key(volume: str, epoch: int) -> str:
    """Bitmap of the volume's dirty regions in an epoch."""
    return f"rephub:dirty:{volume}:{epoch}"


def generation_key(volume: str, epoch: int) -> str:
    """Hash {run_id, durable} that says which Redis took the marks of `dirty_key`."""
    return f"rephub:generation:{volume}:{epoch}"


def ack_key(volume: str) -> str:
    """Hash {epoch, seq, acked_offset, applied_offset, at}."""
    return f"rephub:ack:{volume}"


def agent_lease_key(agent: str) -> str:
    """Lease of a RepAgent."""
    return f"rephub:agent:{agent}"


def diskbox_lease_key(diskbox: str) -> str:
    """Lease of a diskbox."""
    return f"rephub:diskbox:{diskbox}"


def pin_key(volume: str, holder: str) -> str:
    """Mirror of a pin that a diskbox holds for a view."""
    return f"rephub:pin:{volume}:{holder}"
