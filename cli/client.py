"""The CLI's side of the control plane: a conversation with the hub, once that is there. Ctrl-C only stops the waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

from rephub.cli.endpoints import read_endpoints
from rephub.cli.output import Cli
from rephub.core.control.client import Answer, ControlClient, Done, error_of
from rephub.core.errors import UnavailableError
from rephub.core.fetch import fetch

__all__ = ["Answer", "ControlClient", "Done", "connect", "error_of"]

HUB_SECONDS_MAX = 15.0
"""How long a hub that does not answer is waited for: a restart fits in."""

HUB_POLL_SECONDS = 0.2

HEAD_SECONDS = 1.0
"""One try of the hub's status page."""


@contextlib.asynccontextmanager
async def connect(cli: Cli, seconds: float) -> AsyncIterator[ControlClient]:
    """A started client, closed at the end.

    Raises:
        UnavailableError: hub or Kafka do not answer in time; nothing was sent.
    """
    endpoints = read_endpoints(cli.state_dir)
    client = ControlClient(endpoints.bootstrap, f"cli/{socket.gethostname()}", seconds)
    try:
        await _wait_for_hub(endpoints.web, seconds)
        await client.start()
        yield client
    finally:
        await client.close()


async def _wait_for_hub(web: str, seconds: float) -> None:
    give_up = time.monotonic() + min(seconds, HUB_SECONDS_MAX)
    while True:
        document = await fetch(f"{web}/status", HEAD_SECONDS)
        if document is not None and document.get("ready"):
            return
        if time.monotonic() > give_up:
            state = "is not ready" if document else "does not answer"
            raise UnavailableError(
                f"the hub at {web or '(unknown address)'} {state}",
                hint="`rephub status` says which part is down; `rephub up` starts them",
            )
        await asyncio.sleep(HUB_POLL_SECONDS)
