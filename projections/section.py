"""A section: what the head fold makes of a stretch of records, so that nobody has to read them again.

It holds the state of the fold before and after, the events' extents (`index.Segment`), and what they add to the timeline.
Whoever folds the same journal and is in the state before is, with a section, in the state after: there is nothing else that
a section depends on, and no other way to tell that it fits.

As bytes: a line of magic, crc32c and length; JSON; the arrays one after the other. The crc is over all that follows it.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from pydantic import TypeAdapter, ValidationError

from rephub.core.documents import parse_object
from rephub.projections import index
from rephub.projections.index import Segment
from rephub.projections.journal_fold import FoldState
from rephub.projections.rot import Readable
from rephub.projections.timeline import CURVES, Stretch

MAGIC = b"RepHubS1"
HEADER = struct.Struct(">8sII")
"""Magic, crc32c of the rest, length of the JSON."""
_KINDS: dict[str, type[Any]] = {**index.ARRAYS, **dict.fromkeys(CURVES, np.int64)}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a section says besides its arrays."""

    before: FoldState
    """Of the fold before its first record."""
    after: FoldState
    """Of the fold after its last record."""
    floor_offset: int
    """Of the timeline when the section was made."""
    stretch: Stretch
    readable: Readable
    """After its last record."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of records, folded."""

    facts: Facts
    segment: Segment | None
    """None: no record changes bytes."""
    curves: dict[str, npt.NDArray[np.int64]]

    @property
    def first_offset(self) -> int:
        """Of its first record."""
        return self.facts.before.last_offset + 1

    @property
    def last_offset(self) -> int:
        """Of its last record."""
        return self.facts.after.last_offset


@functools.cache
def _adapter() -> TypeAdapter[Facts]:
    return TypeAdapter(Facts)


def encoded(section: Section) -> bytes:
    """The section as bytes."""
    arrays: dict[str, npt.NDArray[Any]] = dict(section.curves)
    if section.segment is not None:
        arrays |= section.segment.arrays()
    document = {
        "facts": _adapter().dump_python(section.facts, mode="json"),
        "base": None if section.segment is None else section.segment.base,
        "rows": {name: len(array) for name, array in arrays.items()},
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    rest = b"".join([text, *(array.tobytes() for array in arrays.values())])
    return HEADER.pack(MAGIC, crc32c(rest), len(text)) + rest


def decoded(content: bytes) -> Section:
    """The section in a file's content; its arrays are read-only and share the content's memory.

    Raises:
        ValueError: it is none, or not what was written.
    """
    if len(content) < HEADER.size:
        raise ValueError("it is too short")
    magic, checksum, length = HEADER.unpack_from(content)
    rest = memoryview(content)[HEADER.size :]
    if magic != MAGIC:
        raise ValueError("it is no section of this format")
    if checksum != crc32c(rest):
        raise ValueError("its checksum is wrong")
    document = parse_object(bytes(rest[:length]))
    try:
        facts = _adapter().validate_json(json.dumps(document["facts"]), strict=True)
        base, rows = document["base"], dict(document["rows"])
    except (KeyError, TypeError, ValidationError) as exc:
        raise ValueError(f"its document is wrong: {exc}") from exc
    names = CURVES if base is None else (*CURVES, *index.ARRAYS)
    if (base is not None and type(base) is not int) or tuple(rows) != names:
        raise ValueError("its document is wrong: base, rows")
    arrays = _arrays(rest[length:], rows)
    section = Section(
        facts,
        None if base is None else Segment(base, {name: arrays[name] for name in index.ARRAYS}),
        {name: arrays[name] for name in CURVES},
    )
    _check(section)
    return section


def _arrays(content: memoryview, rows: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    found, start = {}, 0
    for name, count in rows.items():
        kind = np.dtype(_KINDS[name])
        if type(count) is not int or count < 0:
            raise ValueError(f"{name} cannot have {count!r} rows")
        end = start + count * kind.itemsize
        if end > len(content):
            raise ValueError(f"{name} is cut off")
        found[name] = np.frombuffer(content[start:end], kind)
        start = end
    if start != len(content):
        raise ValueError("more follows than it tells of")
    return found


def _check(section: Section) -> None:
    """Raises ValueError: the parts of a section do not belong together."""
    first, last = section.first_offset, section.last_offset
    curves, segment = section.curves, section.segment
    if last < first:
        raise ValueError("it ends before it begins")
    for offsets, values in (CURVES[:2], CURVES[2:]):
        if len(curves[offsets]) != len(curves[values]):
            raise ValueError(f"{offsets} and {values} differ in length")
        _check_offsets(curves[offsets], first, last)
    if segment is not None:
        segment.check()
        _check_offsets(segment.offsets.astype(np.int64) + segment.base, first, last)


def _check_offsets(offsets: npt.NDArray[np.int64], first: int, last: int) -> None:
    if len(offsets) and (offsets[0] < first or offsets[-1] > last or (np.diff(offsets) < 0).any()):
        raise ValueError(f"offsets are not within {first} to {last}")
