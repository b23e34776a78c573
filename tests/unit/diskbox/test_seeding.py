"""What may be a seed, and that copying it leaves it as it is."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from rephub.consumers.diskbox import seeding
from rephub.consumers.diskbox.position import load_position
from rephub.consumers.diskbox.volume import BoxVolume, Wanted
from rephub.core.errors import ConflictError, NotFoundError, RephubError, StorageError, UsageError
from rephub.core.journal.memory import MemoryJournalStore
from rephub.projections.window import History

MIB = 1 << 20


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """2 MiB, the second half a hole."""
    path = tmp_path / "seed.raw"
    path.write_bytes(os.urandom(MIB))
    os.truncate(path, 2 * MIB)
    return path


def error_of(seed: Path, size: int = 2 * MIB) -> RephubError:
    with pytest.raises(RephubError) as caught:
        seeding.check_seed(seed, size)
    assert caught.value.message
    assert caught.value.hint
    return caught.value


def test_what_is_no_seed_has_its_own_error(tmp_path: Path, seed: Path) -> None:
    seeding.check_seed(seed, 2 * MIB)
    assert isinstance(error_of(Path("seed.raw")), UsageError)
    assert isinstance(error_of(tmp_path / "none"), NotFoundError)
    assert "no plain file" in error_of(tmp_path).message
    for size in (MIB, 3 * MIB):
        error = error_of(seed, size)
        assert isinstance(error, ConflictError)
        assert (error.fields["seed_bytes"], error.fields["disk_bytes"]) == (2 * MIB, size)
    image = tmp_path / "seed.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(2 * MIB - 4))
    assert "qcow2" in error_of(image).message
    assert "convert" in error_of(image).hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_seed_that_may_not_be_read(seed: Path) -> None:
    seed.chmod(0)
    error = error_of(seed)
    assert isinstance(error, StorageError)
    assert error.fields["errno"] == errno.EACCES


def test_a_copy_has_the_content_and_the_holes(tmp_path: Path, seed: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"x" * 3 * MIB)
    seeding.copy_seed(seed, copy, threading.Event())
    assert copy.read_bytes() == seed.read_bytes()
    assert copy.stat().st_blocks <= seed.stat().st_blocks + 64
    stopped = threading.Event()
    stopped.set()
    if not seeding._clone(os.open(seed, os.O_RDONLY), os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)):
        with pytest.raises(StorageError):
            seeding.copy_seed(seed, copy, stopped)


class Site:
    """A volume that is made from a seed."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryJournalStore()
        self.directory = folder / "volumes" / "v"

    async def make(self, seed: Path, recovery: Path | None = None) -> BoxVolume:
        await self.store.create("v")
        box = BoxVolume(
            "v", self.directory, self.store, on_stopped=lambda *_: None, on_resumed=lambda *_: None
        )
        path = str(recovery) if recovery else None
        await box.make(Wanted("v", 2 * MIB, "s", 0, -1, path, History(1, 1), seed=str(seed)))
        return box


async def test_the_seed_stays_unharmed(tmp_path: Path, seed: Path) -> None:
    before = seed.read_bytes()
    box = await Site(tmp_path).make(seed)
    position = load_position(box.directory)
    assert position is not None
    assert (position.ready, position.taken_over) == (True, False)
    copy = Path(position.path)
    assert copy.read_bytes() == before
    copy.write_bytes(b"changed")
    await box.release(purge=True)
    assert not copy.exists()
    assert seed.read_bytes() == before


async def test_a_seed_that_is_the_recovery_path_is_taken_over_and_never_deleted(
    tmp_path: Path, seed: Path
) -> None:
    before = seed.read_bytes()
    box = await Site(tmp_path).make(seed, recovery=seed)
    position = load_position(box.directory)
    assert position is not None
    assert (position.path, position.taken_over, position.ready) == (str(seed), True, True)
    assert seed.read_bytes() == before
    await box.release(purge=True)
    assert seed.read_bytes() == before
    assert not box.directory.exists()


async def test_a_wrong_seed_changes_nothing(tmp_path: Path, seed: Path) -> None:
    os.truncate(seed, MIB)
    site = Site(tmp_path)
    with pytest.raises(ConflictError):
        await site.make(seed)
    assert not site.directory.exists()
    with pytest.raises(ConflictError, match="only to a recovery volume that is a file"):
        await site.make(seed, recovery=Path("/dev/null"))
    other = tmp_path / "taken"
    other.write_bytes(b"somebody's")
    os.truncate(seed, 2 * MIB)
    with pytest.raises(ConflictError, match="not empty"):
        await site.make(seed, recovery=other)
    assert other.read_bytes() == b"somebody's"
    assert not site.directory.exists()
