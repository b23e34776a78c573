"""What the control process's pieces share."""

from __future__ import annotations

from dataclasses import dataclass

from rephub.agent.announce import Announcer
from rephub.agent.vms import Vms
from rephub.agent.watch import Watch
from rephub.agent.workers import WorkerPool
from rephub.core.bitmap.port import BitmapStore
from rephub.core.config import Settings
from rephub.core.journal.port import JournalStore
from rephub.projections.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each, for the life of the process."""

    settings: Settings
    catalogue: Catalogue
    """The fold so far; only the follower changes it."""
    pool: WorkerPool
    vms: Vms
    announcer: Announcer
    watch: Watch
    journals: JournalStore
    bitmaps: BitmapStore
