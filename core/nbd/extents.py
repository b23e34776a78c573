"""Lists of extents: joined, cut to what was asked, decoded. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from struct import Struct
from typing import Final

from rephub.core.nbd.export import Extents

DESCRIPTOR: Final = Struct(">II")
"""Block status descriptor: length, flags."""


def coalesce(extents: Iterable[tuple[int, int]], length: int, count_max: int = sys.maxsize) -> Extents:
    """Join neighbours of equal flags, drop empty ones, cut at `length` and at `count_max` extents.

    Args:
        extents: (length, flags), consecutive.
        length: where to cut, in bytes from the first extent's start.
        count_max: 1 for a request with REQ_ONE.

    Returns:
        Extents that cover at most `length` bytes; empty only if the input covers nothing.
    """
    joined: Extents = []
    covered = 0
    for extent_length, flags in extents:
        piece = min(extent_length, length - covered)
        if piece <= 0:
            continue
        if joined and joined[-1][1] == flags:
            joined[-1] = (joined[-1][0] + piece, flags)
        elif len(joined) == count_max:
            break
        else:
            joined.append((piece, flags))
        covered += piece
    return joined
