"""The states of the parts of the fleet: tables alone, no code around them.

That a part is *silent* is no state: silence is an input of a decision, like the time, and not in the log.
"""

from __future__ import annotations

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
