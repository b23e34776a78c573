"""Sections on disk: `volumes/<volume>/index/<first offset>.section`, so that a restart reads a small part of a journal.

They are a cache of the journal and nothing else: one that is missing, damaged, or of another life of the volume costs time,
never content. So they are written without fsync, in one step each; what a power cut leaves of one has a wrong checksum.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rephub.consumers.diskbox.files import storage_errors
from rephub.consumers.diskbox.journal_source import JournalSource
from rephub.core.errors import IntegrityError, StorageError, UnavailableError
from rephub.core.journal.port import StoredRecords
from rephub.projections.head import Head
from rephub.projections.section import Section, decoded, encoded

SUFFIX = ".section"
DIRECTORY = "index"
READ_BYTES = 2 << 20
"""Of the journal, at once: other volumes have their turn in between."""
RETRY_SECONDS = 1.0
"""Between two tries while no broker answers."""

log = logging.getLogger(__name__)


class Sections:
    """The sections of one volume.

    Args:
        directory: of the volume.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / DIRECTORY
        self._files: dict[int, Path] = {}
        """By first offset: those of lives before, which may still be adopted, and our own."""
        self._failed = False
        for path in self._listed():
            if path.suffix == SUFFIX and path.stem.isdecimal():
                self._files[int(path.stem)] = path
            else:
                path.unlink(missing_ok=True)  # a half-written one

    def _listed(self) -> list[Path]:
        try:
            return sorted(self.directory.iterdir())
        except OSError:
            return []

    def next(self, journal_offset: int) -> int | None:
        """Where the first section that begins at or after an offset does; None: there is none."""
        return min((first for first in self._files if first >= journal_offset), default=None)

    async def chain(self, first_offset: int) -> list[Section]:
        """The section that begins at an offset and those that follow it without a hole; damaged ones are deleted."""
        # Threads never touch what is known of the files: others drop some meanwhile.
        found = await asyncio.to_thread(lambda files: list(_chain(files, first_offset)), dict(self._files))
        next_offset = found[-1].last_offset + 1 if found else first_offset
        if next_offset in self._files:
            self.forget(next_offset)
        return found

    def forget(self, first_offset: int) -> None:
        """Delete the section that begins at an offset, and all that begin after it."""
        for first in [first for first in self._files if first >= first_offset]:
            self._unlink(first)

    def drop(self, applied_offset: int) -> None:
        """Delete sections that begin at or below the applied offset: no life begins before it."""
        for first in [first for first in self._files if first <= applied_offset]:
            self._unlink(first)

    def _unlink(self, first_offset: int) -> None:
        path = self._files.pop(first_offset)
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("section=%s not_deleted=%s", path, exc.strerror)

    async def keep(self, section: Section) -> None:
        """Write a section; a disk that refuses costs nothing but a longer restart."""
        try:
            await asyncio.to_thread(self._write, section)
        except StorageError as exc:
            if not self._failed:
                log.warning("section not written: %s", exc.message)
            self._failed = True
        else:
            self._files[section.first_offset] = self._path(section)
            self._failed = False

    def _path(self, section: Section) -> Path:
        return self.directory / f"{section.first_offset:020d}{SUFFIX}"

    def _write(self, section: Section) -> None:
        path = self._path(section)
        temporary = path.with_suffix(".new")
        with storage_errors("write", path):
            try:
                self.directory.mkdir(mode=0o700, exist_ok=True)
                temporary.write_bytes(encoded(section))
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise


def _chain(files: Mapping[int, Path], first_offset: int) -> Iterator[Section]:
    """Sections without a hole between them, up to one that is not there or damaged."""
    while (path := files.get(first_offset)) is not None:
        try:
            section = decoded(path.read_bytes())
            if section.first_offset != first_offset:
                raise ValueError(f"it begins at {section.first_offset}")  # noqa: TRY301 - damaged like others
        except (OSError, ValueError) as exc:
            log.warning("section=%s not_used=%s", path, exc)
            return
        yield section
        first_offset = section.last_offset + 1


async def restore(
    head: Head,
    sections: Sections,
    source: JournalSource,
    take: Callable[[StoredRecords], None],
    adopted: Callable[[int | None], None],
) -> None:
    """Bring a head to where the sections end: they are taken in, and only what lies before and between is read.

    Args:
        head: of the fold, at the applied offset.
        sections: of lives before; what does not fit is deleted.
        source: of the journal. While no broker answers it is waited for.
        take: takes in records.
        adopted: called after each section with the poison of before.
    """
    while (first := sections.next(head.offset + 1)) is not None:
        try:
            while head.offset + 1 < first:
                take((await source.records(head.offset + 1, READ_BYTES)).upto(first - 1))
            await _adopt(head, sections, source, first, adopted)
        except IntegrityError as exc:
            log.warning("section=%d not_in_the_log=%s", first, exc.message)
            sections.forget(first)
        except UnavailableError:
            await asyncio.sleep(RETRY_SECONDS)


async def _adopt(
    head: Head, sections: Sections, source: JournalSource, first: int, adopted: Callable[[int | None], None]
) -> None:
    """Take in the sections from the next record on, or forget them."""
    chain = await sections.chain(first)
    genuine = bool(chain) and await source.holds(chain[-1].facts.after)
    for section in chain if genuine else ():
        poison_before = head.state.poison_offset
        if not head.adopt(section):
            break
        adopted(poison_before)
        await asyncio.sleep(0)
    log.info("sections=%s adopted=%d upto=%d", sections.directory, head.offset + 1 - first, head.offset)
    if chain and head.offset < chain[-1].last_offset:
        log.warning("sections=%s of_another_life=%d", sections.directory, head.offset + 1)
        sections.forget(head.offset + 1)
