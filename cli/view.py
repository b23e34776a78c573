"""How things stand, from whoever answers: the hub or its last snapshot, every agent and every diskbox.

Always done in under 5 s, with Kafka, Redis or hub down or hung.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rephub.cli.endpoints import Endpoints, read_endpoints
from rephub.cli.parts import parts
from rephub.consumers.daemons import ask
from rephub.consumers.hub import snapshot
from rephub.core.errors import NotFoundError, UnavailableError
from rephub.core.fetch import fetch
from rephub.projections import status
from rephub.projections.catalogue import Catalogue

HUB_SECONDS = 1.5
"""Longest wait for the hub; with that for the daemons and Python's start it stays below 5 s."""

SNAPSHOT = Path("hub") / snapshot.FILE
"""Below the state directory; written by the hub."""


async def catalogue_of(endpoints: Endpoints) -> tuple[Catalogue, str]:
    """The catalogue, and why it is not the hub's own; empty if it is.

    Raises:
        UnavailableError: neither hub nor snapshot can be read.
    """
    document = await fetch(f"{endpoints.web}/api/catalogue", HUB_SECONDS) if endpoints.web else None
    if document:
        return Catalogue.from_dict(document), ""
    problem = f"the hub at {endpoints.web or '(unknown address)'} does not answer"
    try:
        catalogue = snapshot.read(endpoints.state_dir / SNAPSHOT)
    except (OSError, ValueError) as exc:
        raise UnavailableError(
            f"{problem}, and there is no snapshot of it", hint="`rephub up` starts it", snapshot=str(exc)
        ) from exc
    return catalogue, f"{problem}, this is its last snapshot"


async def status_document(state_dir: Path, volume: str | None = None) -> dict[str, Any]:
    """The document of `rephub status`.

    Args:
        state_dir: of the stack.
        volume: only this one; None: all.

    Raises:
        UnavailableError: no stack was ever there, or nothing is known of it.
        NotFoundError: nobody protects the volume.
    """
    endpoints = read_endpoints(state_dir)
    catalogue, problem = await catalogue_of(endpoints)
    document = (await ask(catalogue)).merged(catalogue, parts(state_dir), problem)
    if volume is None:
        return document
    one = status.only(document, volume)
    if one is None:
        known = ", ".join(entry["volume"] for entry in document["volumes"][:10])
        raise NotFoundError(
            f"no volume {volume} is protected", hint=f"volumes: {known}" if known else "there are no volumes"
        )
    return one
