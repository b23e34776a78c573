"""A fail-over: what the catalogue knows of one, and the states it goes through.

Before `started` nothing has happened that a cancel would have to undo, but that a planned one may have stopped its VM.
From `opened` on a VM may run from the views; `commit` is the point of no return.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rephub.projections.state_table import StateTable

FAILOVER = StateTable(
    what="fail-over",
    first="requested",
    appears="requested",
    rows={
        # FailoverDrained of the last volume of a planned one
        "drained": {"requested": "drained"},
        "planned": {"requested": "planned", "drained": "planned"},
        "started": {"planned": "started"},
        "opened": {"started": "opened"},
        # CommitRequested
        "commit": {"opened": "committing"},
        "committed": {"committing": "committed"},
        # FailoverCloseRequested
        "close": {"committed": "closing"},
        "closed": {"committed": "closed", "closing": "closed"},
        # RollbackRequested: also a cancel; of one that is committing only until the journal is folded
        "rollback": {
            "requested": "rolling_back",
            "drained": "rolling_back",
            "planned": "rolling_back",
            "started": "rolling_back",
            "opened": "rolling_back",
            "committing": "rolling_back",
        },
        "rolled_back": {"rolling_back": "rolled_back"},
        "failed": {
            "requested": "failed",
            "drained": "failed",
            "planned": "failed",
            "started": "failed",
        },
    },
)

TAKEN = ("started", "opened", "committing", "rolling_back")
"""States in which its volumes are the diskbox's alone: no agent captures them."""

SERVED = ("opened", "committing", "committed")
"""States in which a VM may use the views."""

HELD = ("planned", "started", "opened")
"""States in which the point is pinned."""


@dataclass(slots=True)
class Failover:
    """A fail-over, or its plan."""

    name: str
    volumes: list[str]
    group: str | None
    diskbox: str
    point_kind: str
    point_value: str
    dry_run: bool
    planned: bool
    """A move: the protected VM is stopped and drained first."""
    qmp: str | None
    agent: str = ""
    """Who gives the views to the VM behind `qmp`."""
    rollback_seconds: int = 0
    """Rolled back by itself so long after it was opened, unless committed; 0: never."""
    state: str = "requested"
    """One of `FAILOVER`."""
    drained: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By volume: {"offset", "captured_at", "stopped", "agent"}."""
    resumed: list[str] = field(default_factory=list)
    """Agents that let the VMs of a move run again after it was undone."""
    plans: list[dict[str, Any]] = field(default_factory=list)
    """PlanItem as dicts, once planned; with what was lost by the fence, once opened."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """ViewItem as dicts, once opened."""
    opened_at: int = 0
    """Microseconds since the Unix epoch."""
    folded: bool = False
    """The recovery volumes hold all events up to the point."""
    close: bool = False
    """Nothing is to be served once it is committed."""
    redirect: str = ""
    """due, attached, done; empty without `qmp`, or before the views are open."""
    reason: str = ""
    deadline_at: int = 0
    """The hub gives up waiting for drain and plan after this; 0: never."""
    event_id: str = ""
    command_id: str = ""
    commit_id: str = ""
    """The CommitRequested at work."""
    end_id: str = ""
    """The RollbackRequested or FailoverCloseRequested at work."""

    @property
    def ended(self) -> bool:
        """Nothing is served and nothing will be."""
        return self.state in ("closed", "rolled_back", "failed") or (self.dry_run and self.state == "planned")

    @property
    def redirected(self) -> bool:
        """A VM has the views as disks, or may have: it lets go before they close."""
        return self.redirect in ("due", "attached")

    @property
    def final(self) -> bool:
        """There is no way back: what the VM wrote goes, or may have gone, into the recovery volume."""
        return self.state in ("committed", "closing", "closed") or (
            self.state == "committing" and self.folded
        )

    @property
    def to_drain(self) -> bool:
        """Agents are to stop and drain what it names."""
        return self.planned and not self.dry_run and self.state == "requested"

    @property
    def to_resume(self) -> bool:
        """A VM that was stopped for it is to run again."""
        return self.state in ("failed", "rolled_back") and any(
            item["stopped"] and item["agent"] not in self.resumed for item in self.drained.values()
        )
