"""Serves requests for new diskboxes: runs the provider, waits for the announcement, says what failed.

Acts on the catalogue, so that a hub which takes over serves what the one before left: the provider may be asked for
the same diskbox again.
"""

from __future__ import annotations

import asyncio
import logging
import time

from rephub.consumers.hub.provider import Provider
from rephub.consumers.hub.runtime import Hub
from rephub.core.errors import DeadlineError, RephubError, UnavailableError
from rephub.projections.entities import DiskboxRequest

POLL_SECONDS = 0.1
"""Between looks at the catalogue, which is in memory."""

RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


async def serve_requests(hub: Hub, provider: Provider) -> None:
    """Serve one request after the other, for ever.

    Raises:
        FencedError: another hub is in charge, and serves them.
    """
    while True:
        for request in list(hub.catalogue.diskbox_requests.values()):
            try:
                await _serve(hub, provider, request)
            except RephubError as error:
                log.warning("no new diskbox", extra={"diskbox": request.name, "reason": error.message})
                await _say(hub, request, error)
        await asyncio.sleep(POLL_SECONDS)


async def _say(hub: Hub, request: DiskboxRequest, error: RephubError) -> None:
    """Write the failure, however long Kafka is away: the provider need not fail twice for it."""
    while True:
        try:
            await hub.diskbox_failed(request, error)
        except UnavailableError as exc:
            log.warning("failure not written yet", extra={"diskbox": request.name, "reason": exc.message})
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def _serve(hub: Hub, provider: Provider, request: DiskboxRequest) -> None:
    log.info("new diskbox asked for", extra={"diskbox": request.name, "volume": request.volume})
    await provider.bring(request.name)
    deadline = time.monotonic() + provider.announce_seconds
    while hub.catalogue.diskbox_requests.get(request.name) == request:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"diskbox {request.name} did not announce itself within {provider.announce_seconds:g} s after "
                f"{provider.name} had brought it",
                hint=provider.hint(request.name),
            )
        await asyncio.sleep(POLL_SECONDS)
