"""What the hub decides about the history that volumes keep; pure."""

from __future__ import annotations

from rephub.core.errors import UsageError
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, make, targets
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def set_history(catalogue: Catalogue, command: cmd.SetHistory, now: int) -> ev.Record:
    """Change the history of a volume, or of each volume of a group; the diskbox goes by it at once.

    Raises:
        UsageError: nothing is named, or zero.
        NotFoundError: unknown volume or group.
        ConflictError: one is promoted, or busy.
    """
    seconds, size = command.history_seconds, command.history_bytes
    if seconds is None and size is None:
        raise UsageError("no history is named", hint="a time, a size, or both: 24h,20GiB")
    if (seconds is not None and seconds <= 0) or (size is not None and size <= 0):
        raise UsageError("a history of zero keeps no point", hint="for example 24h,20GiB")
    volumes = targets(catalogue, command.volume, command.group, one_diskbox=False)
    if all(
        seconds in (None, volume.history_seconds) and size in (None, volume.history_bytes)
        for volume in volumes
    ):
        items = [
            {
                "volume": volume.name,
                "history_seconds": volume.history_seconds,
                "history_bytes": volume.history_bytes,
            }
            for volume in volumes
        ]
        return fulfilled(catalogue, command, now, {"volumes": items})
    return make(
        catalogue,
        ev.HistorySet,
        now,
        command.id,
        command.group or str(command.volume),
        command_id=command.id,
        volumes=tuple(volume.name for volume in volumes),
        group=command.group,
        history_seconds=seconds,
        history_bytes=size,
    )
