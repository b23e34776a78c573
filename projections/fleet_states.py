"""The states of the parts of the fleet: tables alone, no code around them.

That a part is *silent* is no state: silence is an input of a decision, like the time, and not in the log.
"""

from __future__ import annotations

from collections.abc import Iterable

from rephub.core.errors import ConflictError
from rephub.projections.state_table import StateTable

DISKBOX = StateTable(
    what="diskbox",
    first="ready",
    appears="announced",
    rows={
        # DiskboxAnnounced: a new process, or one that was called lost and has let go of what went elsewhere
        "announced": {"ready": "ready", "draining": "draining", "lost": "ready"},
        # DiskboxLost; a second one only says that it is surely off
        "lost": {"ready": "lost", "draining": "lost", "lost": "lost"},
        # DiskboxDrainRequested: on, and off again
        "drain": {"ready": "draining", "draining": "draining"},
        "undrain": {"draining": "ready", "ready": "ready"},
    },
)

AGENT = StateTable(
    what="agent",
    first="ready",
    appears="announced",
    rows={
        # AgentAnnounced: a new process; what it was asked about stays to be answered
        "announced": {"ready": "ready", "probing": "probing"},
        # VmProbeRequested
        "asked": {"ready": "probing", "probing": "probing"},
        # VmAnnounced or VmProbeFailed that leaves other monitors to be answered
        "answered": {"probing": "probing"},
        # VmAnnounced or VmProbeFailed with which nothing is left; a VM may also be announced without being asked about
        "answered_last": {"probing": "ready", "ready": "ready"},
    },
)

GROUP_ORDER = ("failed", "gap", "paused", "syncing", "resyncing", "failed_over", "protected", "promoted")
"""States of volumes, the worst first. A group has no events: it is as its worst member, so that it is protected only if all
are, and promoted only if all are."""


def group_state(states: Iterable[str]) -> str:
    """The state of a group whose members have these states, at least one.

    Raises:
        ConflictError: a state that no volume has; names it and those there are.
    """
    found = set(states)
    unknown = found - set(GROUP_ORDER)
    if unknown or not found:
        raise ConflictError(
            f"a group cannot be as {', '.join(sorted(unknown)) or 'no member'}: its members are "
            f"{' or '.join(GROUP_ORDER)}",
            hint="rephub status",
        )
    return min(found, key=GROUP_ORDER.index)


def group_diagram() -> str:
    """The order as a Mermaid flow chart, for the documentation."""
    return "flowchart LR\n    " + " -->|is worse than| ".join(GROUP_ORDER)
