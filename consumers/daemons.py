"""Asks agents and diskboxes how they are: for `rephub status` and for the hub's live page."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from rephub.core.fetch import fetch
from rephub.projections import status
from rephub.projections.catalogue import Catalogue

DAEMON_SECONDS = 2.0
"""Longest wait for them."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the daemons said; None for one that did not answer."""

    agents: dict[str, dict[str, Any] | None]
    diskboxes: dict[str, dict[str, Any] | None]
    waited_seconds: float

    def merged(
        self, catalogue: Catalogue, parts: list[dict[str, Any]], hub_problem: str = ""
    ) -> dict[str, Any]:
        """The document of `rephub status`; see `projections/status.py`."""
        now = time.time_ns() // 1000
        return status.merge(
            catalogue, now, self.agents, self.diskboxes, parts, hub_problem, self.waited_seconds
        )


async def ask(catalogue: Catalogue) -> Answers:
    """The `/status` documents of all agents and diskboxes, in at most DAEMON_SECONDS."""
    began = time.monotonic()
    names = [*catalogue.agents, *catalogue.diskboxes]
    urls = [agent.url for agent in catalogue.agents.values()]
    urls += [diskbox.url for diskbox in catalogue.diskboxes.values()]
    found = await asyncio.gather(*(fetch(f"{url}/status", DAEMON_SECONDS) for url in urls))
    answers = list(zip(names, found, strict=True))
    agents = len(catalogue.agents)
    return Answers(dict(answers[:agents]), dict(answers[agents:]), time.monotonic() - began)
