"""Which diskboxes answer: nothing new is placed on one that is silent, and one that stays silent is lost.

Two lines of evidence, of which one is enough: its status page, which `rephub status` asks too, and its lease in Redis,
for sites where the hub cannot reach the page. A Redis that is away silences nobody who serves the page.
Silence is counted in failed looks, not in time: a hub that was held up itself blames nobody.

To be lost takes more than silence. A hub that is cut off hears nobody, and must not move everything: a failed look counts
only if Redis says that there is no lease, or another diskbox answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from enum import Enum

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


class Answer(Enum):
    """What one look at a diskbox gave."""

    GOOD = "good"
    NO_LEASE = "no lease"
    """Its page does not answer, and Redis says that it renews no lease."""
    NOTHING = "nothing"
    """Neither page nor Redis answers: it may be us."""


class Liveness:
    """Looks at all diskboxes, again and again.

    Args:
        redis_url: where leases are.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._boxes: Mapping[str, Diskbox] = {}
        self._failed: dict[str, tuple[str, int]] = {}
        """By name: the announcement that the looks are about, and failed ones in a row."""
        self._missing: dict[str, tuple[str, int]] = {}
        """The same, of the failed ones that count for being lost."""

    def silent(self) -> Collection[str]:
        """Names of those that do not answer now; one that was never looked at does."""
        return {
            name
            for name, (life, count) in self._failed.items()
            if count >= FAILED_LOOKS_MAX
            and (name not in self._boxes or self._boxes[name].announced_id == life)
        }

    def gone(self, seconds: float) -> Mapping[str, str]:
        """Those that have been missing for at least so long: name → the announcement of the process that is missing."""
        return {
            name: life for name, (life, count) in self._missing.items() if count * LOOK_SECONDS >= seconds
        }

    async def watch(self, catalogue: Catalogue) -> None:
        """Look for ever.

        Args:
            catalogue: says who there is; changes under way are followed.
        """
        self._boxes = catalogue.diskboxes
        leases = RedisBitmapStore(self._redis_url)
        timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while True:
                    boxes = list(catalogue.diskboxes.values())
                    answers = await asyncio.gather(*(_answers(session, leases, box) for box in boxes))
                    self.note(list(zip(boxes, answers, strict=True)))
                    await asyncio.sleep(LOOK_SECONDS)
        finally:
            await leases.close()

    def note(self, answers: list[tuple[Diskbox, Answer]]) -> None:
        """Count one look at all diskboxes."""
        anybody = any(answer is Answer.GOOD for _, answer in answers)
        for box, answer in answers:
            name, life = box.name, box.announced_id
            failed, missing = self._count(self._failed, box), self._count(self._missing, box)
            if answer is Answer.GOOD:
                failed = missing = 0
            else:
                failed += 1
                missing += answer is Answer.NO_LEASE or anybody
            if failed == FAILED_LOOKS_MAX:
                log.warning("diskbox is silent, nothing new is placed there", extra={"diskbox": name})
            self._failed[name], self._missing[name] = (life, failed), (life, missing)

    @staticmethod
    def _count(counts: Mapping[str, tuple[str, int]], box: Diskbox) -> int:
        """Looks in a row at this process of the diskbox, before this one."""
        life, count = counts.get(box.name, ("", 0))
        return count if life == box.announced_id else 0


async def _answers(session: aiohttp.ClientSession, leases: RedisBitmapStore, box: Diskbox) -> Answer:
    try:
        async with session.get(f"{box.url}/status") as answer:
            document = await answer.json()
            if isinstance(document, dict) and document.get("id") == box.name:
                return Answer.GOOD
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # the lease may still speak for it
    try:
        lease = await leases.get_lease(diskbox_lease_key(box.name))
    except UnavailableError:
        return Answer.NOTHING
    return Answer.GOOD if lease is not None else Answer.NO_LEASE
