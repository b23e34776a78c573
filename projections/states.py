"""The states of a volume and the facts that move it: one table, no code around it.

A fact that is missing in a state's row is forbidden there; `next_state` says so and names both states.
"""

from __future__ import annotations

from rephub.core.errors import ConflictError

STATES = ("syncing", "protected", "gap", "resyncing", "paused", "failed_over", "promoted", "failed")

TABLE: dict[str, dict[str, str]] = {
    # StartProtect, on a volume that was promoted or unprotected before
    "started": {"promoted": "syncing", "gap": "syncing"},
    # FilterAttached with a new epoch
    "attached": {
        "syncing": "syncing",
        "protected": "resyncing",
        "gap": "resyncing",
        "resyncing": "resyncing",
        "paused": "resyncing",
        "failed": "resyncing",
    },
    # CaptureLost
    "lost": {
        "syncing": "gap",
        "protected": "gap",
        "resyncing": "gap",
        "gap": "gap",
        "failed": "failed",
        "failed_over": "failed_over",
    },
    # VolumePaused; a volume that stopped meanwhile stays so
    "paused": {"protected": "paused", "failed": "failed"},
    # CaptureDetached
    "detached": {
        "syncing": "gap",
        "protected": "gap",
        "resyncing": "gap",
        "gap": "gap",
        "failed": "failed",
        "promoted": "promoted",
        "failed_over": "failed_over",
    },
    # VolumeSyncCompleted; in a gap it was late, the points before the gap count all the same
    "synced": {
        "syncing": "protected",
        "resyncing": "protected",
        "protected": "protected",
        "gap": "gap",
        "failed": "failed",
    },
    # VolumeSyncCompleted while the projector stands still
    "synced_stopped": {"syncing": "failed", "resyncing": "failed", "gap": "gap", "failed": "failed"},
    # VolumeStopped
    "stopped": {
        "syncing": "failed",
        "protected": "failed",
        "gap": "failed",
        "resyncing": "failed",
        "paused": "failed",
        "failed": "failed",
        "failed_over": "failed_over",
    },
    # VolumePlaced: its diskbox was lost, another one makes a new recovery volume
    "placed": {
        "syncing": "gap",
        "protected": "gap",
        "gap": "gap",
        "resyncing": "gap",
        "failed": "gap",
        "paused": "paused",
    },
    # VolumeResumed: by what holds of its capture
    "resumed_synced": {"failed": "protected", "protected": "protected"},
    "resumed_syncing": {"failed": "resyncing", "resyncing": "resyncing", "syncing": "syncing"},
    "resumed_detached": {"failed": "gap", "gap": "gap"},
    "resumed_paused": {"failed": "paused", "paused": "paused"},
    "resumed_failed_over": {"failed_over": "failed_over"},
    # FailoverStarted
    "failed_over": {
        "syncing": "failed_over",
        "protected": "failed_over",
        "gap": "failed_over",
        "resyncing": "failed_over",
        "failed": "failed_over",
        "paused": "failed_over",
    },
    # FailoverRolledBack or FailoverFailed
    "given_back": {"failed_over": "gap"},
    "given_back_paused": {"failed_over": "paused"},
    # Promoted, FailoverCommitted
    "promoted": {
        "syncing": "promoted",
        "protected": "promoted",
        "gap": "promoted",
        "resyncing": "promoted",
        "failed": "promoted",
        "paused": "promoted",
        "failed_over": "promoted",
    },
    # Unprotected
    "unprotected": dict.fromkeys(STATES, "gap"),
}


def may(state: str, fact: str) -> bool:
    """Whether the table allows the fact in the state."""
    return state in TABLE[fact]


def next_state(state: str, fact: str) -> str:
    """The state after the fact.

    Raises:
        ConflictError: the table forbids it; names both states.
    """
    row = TABLE[fact]
    if state not in row:
        targets = " or ".join(sorted(set(row.values())))
        raise ConflictError(
            f"a volume that is {state} cannot become {targets} ({fact.replace('_', ' ')})",
            hint="rephub status shows its state",
            state=state,
        )
    return row[state]


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation; self-loops left out."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for fact, row in TABLE.items():
        for before, after in row.items():
            if before != after:
                arrows.setdefault((before, after), []).append(fact.replace("_", " "))
    lines = ["stateDiagram-v2", "    [*] --> syncing: started"]
    lines += [
        f"    {before} --> {after}: {', '.join(facts)}" for (before, after), facts in sorted(arrows.items())
    ]
    return "\n".join(lines)
