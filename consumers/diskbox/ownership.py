"""Which recovery volumes are this diskbox's, by the log; and the end of copies that went elsewhere.

A diskbox that was called lost may come back at any moment, with all it had: as the same process, after a pause or a cut
network, or as a new one. Its volumes may be on another diskbox by then. So before it does what others would feel (delete
records, fence an epoch) it reads the log to its head; and what is not its own any more it stops serving at once.
A copy is deleted only when the new one is complete: until then it may be the last one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from rephub.consumers.diskbox.jobs import Jobs
from rephub.consumers.diskbox.position import load_position
from rephub.consumers.diskbox.signals import Signal
from rephub.consumers.diskbox.volume import BoxVolume
from rephub.core.control.port import ControlLog
from rephub.core.errors import DeadlineError, RephubError, UnavailableError
from rephub.core.names import EVENTS_TOPIC
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Volume

FOLD_SECONDS = 10.0
"""How long the head of the log may take to be folded; it is a second away at most where Kafka answers."""

log = logging.getLogger(__name__)


class Ownership:
    """Says what belongs here.

    Args:
        diskbox: name of this diskbox.
        catalogue: its fold of the log, which others keep going.
        control: the log.
        folded: notified when the catalogue went on.
    """

    def __init__(self, diskbox: str, catalogue: Catalogue, control: ControlLog, folded: Signal) -> None:
        self._diskbox, self._catalogue = diskbox, catalogue
        self._control, self._folded = control, folded

    async def owns(self, volume: str) -> bool:
        """Whether the volume was ours at the end of the log at some moment of this call.

        What is known of the journal before the call may then be acted on: a diskbox that takes the volume over later begins
        at a later head of the journal.

        Raises:
            UnavailableError: the log cannot be asked.
        """
        head = await self._control.next_offset(EVENTS_TOPIC)
        try:
            await self._folded.wait_for(
                lambda: self._catalogue.next_offset >= head, FOLD_SECONDS, "reading the log to its head"
            )
        except DeadlineError as exc:
            raise UnavailableError(exc.message) from exc
        found = self._catalogue.volumes.get(volume)
        return found is not None and found.diskbox == self._diskbox


class Strays:
    """Copies on this diskbox of volumes that the log has given to another one.

    Args:
        diskbox: name of this diskbox.
        directory: `volumes/`.
        catalogue, volumes, jobs: of the daemon.
        make_box: a BoxVolume for a name.
        stop_tests: ends all open tests of a volume, with a reason.
        expects: whether a volume is on its way to here.
    """

    def __init__(
        self,
        diskbox: str,
        directory: Path,
        catalogue: Catalogue,
        volumes: dict[str, BoxVolume],
        jobs: Jobs,
        make_box: Callable[[str], BoxVolume],
        stop_tests: Callable[[str, str], Awaitable[None]],
        expects: Callable[[str], bool],
    ) -> None:
        self._diskbox, self._directory = diskbox, directory
        self._catalogue, self._volumes, self._jobs = catalogue, volumes, jobs
        self._make_box, self._stop_tests, self._expects = make_box, stop_tests, expects
        self._kept: set[str] = set()
        """Copies that are not to be deleted."""

    def round(self) -> None:
        """Let go of what went elsewhere; delete it once that is safe."""
        here = {path.name for path in self._directory.iterdir() if path.is_dir()}
        for name in [*self._volumes, *(here - self._volumes.keys())]:
            volume = self._catalogue.volumes.get(name)
            if volume is None or volume.diskbox == self._diskbox or self._expects(name) or name in self._kept:
                continue
            if name in self._volumes:
                self._start(("let go", name), functools.partial(self._let_go, volume))
            elif is_replaced(volume) and not self._jobs.is_running("let go", name):
                self._start(("discard", name), functools.partial(self._discard, volume))

    def _start(self, key: tuple[str, str], job: Callable[[], Awaitable[None]]) -> None:
        self._jobs.forget(*key)  # the same volume may come and go again
        self._jobs.once(key, job)

    async def _let_go(self, volume: Volume) -> None:
        await self._stop_tests(volume.name, f"diskbox {volume.diskbox} took over")
        box = self._volumes.pop(volume.name, None)
        if box is not None:
            await box.close()
        log.warning("volume=%s moved_to=%s let_go=yes", volume.name, volume.diskbox)

    async def _discard(self, volume: Volume) -> None:
        """Promoted and unprotected copies are kept: they were finished, and somebody may use them."""
        try:
            position = load_position(self._directory / volume.name)
            if position is None or position.promoted or position.retired:
                self._kept.add(volume.name)
            else:
                await self._make_box(volume.name).release(purge=True)
                log.info("volume=%s stale_copy=deleted", volume.name)
        except RephubError as exc:
            raise UnavailableError(exc.message) from exc


def is_replaced(volume: Volume) -> bool:
    """Whether the recovery volume on the other diskbox is complete, or none is wanted any more."""
    complete = volume.state in ("protected", "promoted") and not volume.needs_full
    return volume.purged or (complete and bool(volume.path))
