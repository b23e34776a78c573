"""Open fail-over tests, as `rephub fot list` and the web page show them; pure."""

from __future__ import annotations

from typing import Any

from rephub.projections.catalogue import Catalogue
from rephub.projections.points import resolved
from rephub.projections.status import Documents

COSTS = ("scratch_bytes", "scratch_limit_bytes", "kept_bytes", "hydration", "rate_bytes_per_second")


def fot_documents(catalogue: Catalogue, diskboxes: Documents) -> list[dict[str, Any]]:
    """One entry for each test that is open.

    Args:
        catalogue: what was decided.
        diskboxes: their `/status` documents by name: what each view costs; those that do not answer say nothing.
    """
    costs = costs_of(diskboxes)
    found: list[dict[str, Any]] = []
    for entry in catalogue.fots.values():
        if entry.ended:
            continue
        views = [
            {
                "fot": entry.name,
                "volume": view["volume"],
                "offset": view["offset"],
                "uri": view["uri"],
                "resolved": resolved(view),
                **costs.get((entry.name, view["volume"]), {}),
            }
            for view in entry.views
        ]
        rest = {
            "fot": entry.name, "state": entry.state, "read_only": entry.read_only, "scratch_full": entry.full,
        }  # fmt: skip
        if entry.group is not None:
            found.append(rest | {"group": entry.group, "volumes": views})
        else:
            pending = {"volume": entry.volumes[0], "offset": None, "uri": None, "resolved": None}
            found.append((views[0] if views else pending) | rest)
    return found


def costs_of(diskboxes: Documents) -> dict[tuple[str, str], dict[str, Any]]:
    """By test and volume, from the diskboxes that answer: scratch, what is kept, hydration."""
    return {
        (view["fot"], view["volume"]): {name: view[name] for name in COSTS}
        for document in diskboxes.values()
        for view in (document or {}).get("fots", [])
    }
