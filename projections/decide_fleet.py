"""What the hub decides about the fleet of diskboxes; pure."""

from __future__ import annotations

from collections.abc import Collection

from rephub.core.errors import ConflictError, NotFoundError
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, listed, make
from rephub.projections.entities import Diskbox
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev


def known_diskbox(catalogue: Catalogue, name: str) -> Diskbox:
    """The diskbox. Raises NotFoundError: none of that name announced itself; the hint lists those that did."""
    box = catalogue.diskboxes.get(check_name(name, "diskbox"))
    if box is None:
        raise NotFoundError(f"no diskbox {name}", hint=listed(list(catalogue.diskboxes), "diskboxes"))
    return box


def lose(catalogue: Catalogue, command: cmd.LoseDiskbox, now: int, silent: Collection[str]) -> ev.Record:
    """Give up a diskbox that is off: at once, and also what it could still write to over the network.

    Raises:
        NotFoundError: unknown diskbox.
        ConflictError: it answers, or did a moment ago.
    """
    box = known_diskbox(catalogue, command.diskbox)
    if box.lost and box.off:
        return fulfilled(catalogue, command, now, {"diskbox": box.name})
    if box.name not in silent and not box.lost:
        raise ConflictError(
            f"diskbox {box.name} answers, or did within the last seconds",
            hint="stop it first; one that is off counts as silent after about 10 s",
            diskbox=box.name,
        )
    return make(
        catalogue,
        ev.DiskboxLost,
        now,
        command.id,
        box.name,
        command_id=command.id,
        diskbox=box.name,
        reason="given up by an operator",
        off=True,
    )
