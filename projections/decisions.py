"""What the hub decides: `decide` answers a command, `pending` says what is due because of what is.

Both are pure: the same catalogue, command and time give the same events with the same ids. A command is answered
by exactly one event; all that follows from it follows from the catalogue (`reactions.py`), so that a hub which was
killed after that one event loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from rephub.core.errors import RephubError
from rephub.projections import (
    decide_checkpoint,
    decide_compare,
    decide_failover,
    decide_fleet,
    decide_history,
    decide_moves,
    decide_pause,
    decide_points,
    decide_sync,
    decide_volume,
)
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import expired, make, too_late
from rephub.projections.reactions import pending
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

__all__ = ["decide", "pending"]

_DECISIONS: dict[type[Any], Callable[[Catalogue, Any, int], ev.Record]] = {
    cmd.Unprotect: decide_volume.unprotect,
    cmd.Resync: decide_volume.resync,
    cmd.Pause: decide_pause.pause,
    cmd.Resume: decide_pause.resume,
    cmd.CreateCheckpoint: decide_checkpoint.create_checkpoint,
    cmd.DeleteCheckpoint: decide_checkpoint.delete_checkpoint,
    cmd.StartFot: decide_points.start_fot,
    cmd.StopFot: decide_points.stop_fot,
    cmd.SetHydration: decide_points.set_hydration,
    cmd.Promote: decide_points.promote,
    cmd.CancelPromote: decide_points.cancel_promote,
    cmd.Failover: decide_failover.failover,
    cmd.Commit: decide_failover.commit,
    cmd.Rollback: decide_failover.rollback,
    cmd.Verify: decide_compare.verify,
    cmd.CancelVerify: decide_compare.cancel,
    cmd.SetSyncPace: decide_sync.set_pace,
    cmd.CancelMove: decide_moves.cancel,
    cmd.DrainDiskbox: decide_moves.drain,
    cmd.SetHistory: decide_history.set_history,
}

_PLACING: dict[type[Any], Callable[[Catalogue, Any, int, Collection[str]], ev.Record]] = {
    cmd.Protect: decide_volume.protect,
    cmd.Failback: decide_failover.failback,
    cmd.LoseDiskbox: decide_fleet.lose,
    cmd.MoveVolumes: decide_moves.move,
}
"""Commands that may bind something to a diskbox: also told which ones do not answer."""


def decide(
    catalogue: Catalogue, command: cmd.Record, now: int, silent: Collection[str] = ()
) -> list[ev.Record]:
    """The hub's answer to a command.

    Args:
        catalogue: folded up to the head.
        command: any record of `rephub.commands`.
        now: microseconds since the Unix epoch.
        silent: diskboxes that do not answer; nothing new is bound to them.

    Returns:
        One event, CommandRejected if the command cannot be; none if a command of this id was answered before.
    """
    if catalogue.knows_command(command.id):
        return []
    try:
        if expired(command.deadline_at, now):
            raise too_late(f"the hub did not get to this {type(command).__name__}")
        placing = _PLACING.get(type(command))
        if placing is not None:
            return [placing(catalogue, command, now, silent)]
        return [_DECISIONS[type(command)](catalogue, command, now)]
    except RephubError as error:
        return [
            make(
                catalogue,
                ev.CommandRejected,
                now,
                command.id,
                "",
                command_id=command.id,
                error=error.to_json(),
            )
        ]
