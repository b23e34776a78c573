"""Which diskboxes answer: nothing new is placed on one that is silent.

Two lines of evidence, of which one is enough: its status page, which `rephub status` asks too, and its lease in Redis,
for sites where the hub cannot reach the page. A Redis that is away silences nobody who serves the page.
Silence is counted in failed looks, not in time: a hub that was held up itself blames nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

import aiohttp

from rephub.core.bitmap.redis import RedisBitmapStore
from rephub.core.errors import UnavailableError
from rephub.core.names import diskbox_lease_key
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Diskbox

LOOK_SECONDS = 2.0
"""Between looks, and the longest wait for one page."""

FAILED_LOOKS_MAX = 5
"""In a row, about 10 s: a restart by the supervisor fits in."""

log = logging.getLogger(__name__)


class Liveness:
    """Looks at all diskboxes, again and again.

    Args:
        redis_url: where leases are.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._failed: dict[str, int] = {}

    def silent(self) -> Collection[str]:
        """Names of those that do not answer now; one that was never looked at does."""
        return {name for name, count in self._failed.items() if count >= FAILED_LOOKS_MAX}

    async def watch(self, catalogue: Catalogue) -> None:
        """Look for ever.

        Args:
            catalogue: says who there is; changes under way are followed.
        """
        leases = RedisBitmapStore(self._redis_url)
        timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while True:
                    boxes = list(catalogue.diskboxes.values())
                    answers = await asyncio.gather(*(_answers(session, leases, box) for box in boxes))
                    for box, good in zip(boxes, answers, strict=True):
                        self._note(box.name, good=good)
                    await asyncio.sleep(LOOK_SECONDS)
        finally:
            await leases.close()

    def _note(self, name: str, *, good: bool) -> None:
        failed = 0 if good else self._failed.get(name, 0) + 1
        if failed == FAILED_LOOKS_MAX:
            log.warning("diskbox is silent, nothing new is placed there", extra={"diskbox": name})
        self._failed[name] = failed


async def _answers(session: aiohttp.ClientSession, leases: RedisBitmapStore, box: Diskbox) -> bool:
    try:
        async with session.get(f"{box.url}/status") as answer:
            document = await answer.json()
            if isinstance(document, dict) and document.get("id") == box.name:
                return True
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # the lease may still speak for it
    try:
        return await leases.get_lease(diskbox_lease_key(box.name)) is not None
    except UnavailableError:
        return False
