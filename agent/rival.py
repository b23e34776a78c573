"""One process for one agent id: a second one would report the first one's attachments as lost."""

from __future__ import annotations

import json
import os
from typing import Any

import aiohttp

from rephub.core.bitmap.port import BitmapStore
from rephub.core.errors import ConflictError, UnavailableError
from rephub.core.names import agent_lease_key

LOOK_SECONDS = 2.0
"""A process that hangs for so long is not waited for: its volumes are taken over."""


async def check_alone(store: BitmapStore, agent: str) -> None:
    """See whether another process of this agent id answers; one that cannot be found is not there.

    Args:
        store: where leases are.
        agent: id of this agent.

    Raises:
        ConflictError: it does.
    """
    try:
        lease = await store.get_lease(agent_lease_key(agent))
        url = str(json.loads(lease or "{}").get("url", ""))
    except (UnavailableError, ValueError, AttributeError):
        return
    status = await _status(url) if url else None
    if status and status.get("id") == agent and status.get("pid") != os.getpid():
        raise ConflictError(
            f"agent {agent} runs already: process {status.get('pid')} at {url}",
            hint="stop it, or give this one another agent.id",
        )


async def _status(url: str) -> dict[str, Any] | None:
    """The status document at an agent's address; None if nobody answers with one."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LOOK_SECONDS)) as session,
            session.get(f"{url}/status") as answer,
        ):
            document = await answer.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return document if isinstance(document, dict) else None
