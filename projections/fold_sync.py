"""The sync of mode "compare" in the catalogue: a comparison that the agent ends with a copy; see `Comparison`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rephub.projections.entities import Comparison, Volume, message
from rephub.schemas import events as ev

if TYPE_CHECKING:
    from rephub.projections.catalogue import Catalogue

ROUNDS_MAX = 3
"""Times that the whole volume is compared before it is copied in full: each failure is a restart of the diskbox."""


def begin_sync(catalogue: Catalogue, volume: Volume, event: ev.VolumeSyncStarted) -> None:
    """The agent waits for the diskbox to take note of digests."""
    name = volume.attachment_id
    catalogue.comparisons.setdefault(
        name,
        Comparison(
            name=name,
            volume=volume.name,
            epoch=event.epoch,
            repair=True,
            rate_bytes=None,
            deadline_at=0,
            requested_at=event.at,
            sync=True,
            event_id=event.id,
            command_id=event.command_id or "",
        ),
    )


def cannot_compare(catalogue: Catalogue, volume: Volume, reason: str) -> None:
    """The recovery volume has stopped: there is nothing sound to compare with, and the agent copies in full."""
    comparison = catalogue.comparison_of(volume.name)
    if comparison is not None and comparison.sync and not comparison.ended:
        comparison.state, comparison.extents, comparison.reason = "failed", [], reason
    volume.to_compare = False


def end_sync(catalogue: Catalogue, volume: Volume) -> None:
    """Sync is complete."""
    comparison = catalogue.comparison_of(volume.name)
    if comparison is not None and comparison.sync:
        comparison.state, comparison.extents = "completed", []


def failed(catalogue: Catalogue, comparison: Comparison, event: ev.VerifyFailed) -> None:
    """Begin a round anew; at last, the agent copies in full. The hub's word is final: the attachment is over."""
    volume = catalogue.volumes.get(comparison.volume)
    comparison.extents, comparison.reason = [], message(event.error)
    if event.hub_epoch or volume is None or volume.epoch != comparison.epoch:
        comparison.state = "failed"
    elif comparison.round < ROUNDS_MAX:
        comparison.state, comparison.round = "requested", comparison.round + 1
    else:
        comparison.state = "failed"
        volume.to_compare = False
