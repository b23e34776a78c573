"""Seeded bugs: for each promise at least one rule that is broken, as patches of the product.

A mutant that no judge notices means that the judges do not see what the promise says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from rephub.agent import capture, dirty, extents, marks, publisher, queue
from rephub.consumers.diskbox import (
    applier,
    files,
    journal_source,
    projector,
    recovery,
    volume,
)
from rephub.core.bitmap.memory import MemoryDirtyBitmap
from rephub.core.codec import journal as codec
from rephub.core.codec import runs
from rephub.projections import coalesce, index, journal_fold, rot

SEEDS_MAX = 150
"""A mutant is caught by one of so many seeds."""

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken rule.

    Args:
        promise: of design.md §3.
        patches: (where, name, what is there instead).
        faults: that show it; the simulation has only these.
    """

    promise: int
    patches: tuple[Patch, ...]
    faults: tuple[str, ...] = ()


@contextlib.contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The product with the bug in it."""
    with contextlib.ExitStack() as stack:
        for where, name, instead in mutant.patches:
            stack.enter_context(patch.object(where, name, instead, create=True))
        yield


def unchecked(value: bytes) -> Any:
    """Decode as if the crc were right."""
    with patch.object(codec, "crc32c", lambda _data, _crc=0: int.from_bytes(bytes(value[10:14]), "big")):
        return codec.decode_journal(value)


take_batch = queue.EventQueue.take_batch


def two_change_places(self: Any, bytes_max: int) -> list[Any]:
    """Two writes of a batch have each other's place."""
    batch = take_batch(self, bytes_max)
    writes = [event for event in batch if event.kind is queue.Kind.WRITE]
    for event in writes:
        if event.record is not None:
            event.data, event.record = codec.decode_journal(event.record).data, None
    for one, other in zip(writes[::2], writes[1::2], strict=False):
        for name in ("start", "length", "data"):
            mine = getattr(one, name)
            setattr(one, name, getattr(other, name))
            setattr(other, name, mine)
    return batch


def nothing_is_fresh(_self: Any, _start: int, _length: int) -> list[int]:
    """No region ever needs a mark."""
    return []


want = marks.Marks.want


def answered_at_once(self: Any, regions: Any, event: Any) -> None:
    """The answer does not wait for the mark."""
    want(self, regions, None)
    if event is not None:
        self._marked([event])


touch = dirty.DirtyRegions.touch


def quiet_at_once(self: Any, start: int, length: int) -> list[int]:
    """A region may lose its mark while events of it are not acked."""
    fresh = touch(self, start, length)
    for region in extents.regions(start, length):
        self._quiet[region] = -1e9
    return fresh


async def intent_in_memory(self: Any, intent_offset: int) -> None:
    """The intent is not recorded durably."""
    self.position = replace(self.position, intent_offset=intent_offset)


async def nothing(*_: Any, **__: Any) -> None:
    """What should be done is not."""


apply = applier.Applier.apply


async def applied_first(self: Any, events: Any) -> None:
    """What is applied is recorded before it is on disk."""
    fold = journal_fold.JournalFold(replace(self.position.applied))
    for event in events:
        fold.feed(*event)
    old = self.position
    await self._save(replace(old, applied=fold.state))
    self.position = old
    await apply(self, events)


async def trusts(self: Any) -> set[int]:
    """Marks count although the store lost some."""
    return set(self._store.bitmaps.get(self._key, (0, set()))[1])


drop = index.Index.drop


def forgets_more(self: Any, applied_offset: int) -> None:
    """The index forgets one event that is not applied."""
    drop(self, applied_offset + 1)


def open_gap_late(self: Any, journal_offset: int, reason: str) -> None:
    """The gap begins a few events after its EpochStarted."""
    if self.state.gap_first_offset is None:
        self.state.gap_first_offset, self.state.gap_reason = journal_offset + 3, reason


def visible(add: int) -> Callable[[Any, int, int], Any]:
    """A wrong limit of what a point shows."""
    return lambda at, low, high: (at > low) & (at <= high + add)


MUTANTS: dict[str, Mutant] = {
    "merge takes the older event": Mutant(1, ((index, "newest_first", iter),)),
    "a view shows one event more": Mutant(1, ((index, "visible", visible(1)),)),
    "a view shows one event less": Mutant(1, ((index, "visible", visible(-1)),)),
    "the index forgets an event": Mutant(1, ((index.Index, "drop", forgets_more),)),
    "coalescing keeps the first": Mutant(1, ((coalesce, "last_first", iter),)),
    "two events change places": Mutant(2, ((queue.EventQueue, "take_batch", two_change_places),), ("delayed_batch",)),
    "the sync mask is dropped": Mutant(3, ((queue, "unmasked", lambda _read, start, length: [(start, length)]),)),
    "the mask sees equal starts only": Mutant(3, ((queue, "covers", lambda read, start, _length: read.start == start),)),
    "no mark": Mutant(4, ((dirty.DirtyRegions, "touch", nothing_is_fresh), (dirty.DirtyRegions, "acked", lambda *_: None)),
                      ("agent_crash", "delayed_batch")),
    "answered before the mark": Mutant(4, ((marks.Marks, "want", answered_at_once),), ("delayed_batch",)),
    "cleared before the ack": Mutant(
        4, ((dirty.DirtyRegions, "touch", quiet_at_once), (dirty, "may_clear", lambda **_: True)),
        ("delayed_batch", "lost_batch", "agent_crash"),
    ),
    "lost marks are trusted": Mutant(4, ((MemoryDirtyBitmap, "load", trusts),), ("bitmap_emptied", "delayed_batch", "agent_crash")),
    "no fence is looked for": Mutant(4, ((publisher.Publisher, "_look_between", nothing),), ("agent_takeover",)),
    "applied is recorded before the data": Mutant(5, ((applier.Applier, "apply", applied_first),), ("diskbox_power_cut",)),
    "no fdatasync": Mutant(5, ((recovery.RawFile, "fdatasync", nothing),), ("diskbox_power_cut",)),
    "the intent is forgotten": Mutant(6, ((applier.Applier, "set_intent", intent_in_memory),), ("diskbox_kill", "diskbox_power_cut")),
    "the directory is not synced": Mutant(6, ((files, "sync_directory", lambda _path: None),), ("diskbox_power_cut",)),
    "the crc is ignored": Mutant(
        7, ((journal_source, "decode_journal", unchecked), (runs, "decode_journal", unchecked)), ("bitrot",)
    ),
    "rot after reading is ignored": Mutant(7, ((rot.Readable, "rotten", lambda _self, _events: None),), ("bitrot",)),
    "seq is unchecked": Mutant(8, ((journal_fold, "seq_fault", lambda _state, _record: ""),), ("duplicate_batch",)),
    "the fence is forgotten": Mutant(
        9, ((journal_fold, "is_current", lambda state, record: record.epoch <= state.epoch),),
        ("agent_takeover", "late_batch"),
    ),
    "deleted above a pin": Mutant(10, ((volume, "min", max),)),
    "pins do not hold": Mutant(10, ((projector.Projector, "pin", lambda *_: None),)),
    "an answer may wait a minute": Mutant(11, ((capture, "HOLD_SECONDS_MAX", 60.0),), ("lost_ack",)),
    "a gap begins late": Mutant(13, ((journal_fold.JournalFold, "_open_gap", open_gap_late),), ("agent_crash",)),
}  # fmt: skip
