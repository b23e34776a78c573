"""Avro's zigzag variable-length longs, by table: two bytes a lookup.

Only non-negative numbers, which is all that journal headers hold. Spec: Avro 1.12, "Binary Encoding".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rephub.core.errors import IntegrityError

LONG_BITS_MAX = 63

_LOW = 0x3FFF
_CONTINUED = [bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(_LOW + 1)]
_LAST = [bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(_LOW + 1)]


def encode_long(number: int) -> bytes:
    """The Avro long; `number` must be in [0, 2^63), which the caller has checked."""
    number <<= 1
    if number <= _LOW:
        return _LAST[number]
    encoded = _CONTINUED[number & _LOW]
    number >>= 14
    while number > _LOW:
        encoded += _CONTINUED[number & _LOW]
        number >>= 14
    return encoded + _LAST[number]


def decode_long(value: bytes | memoryview, at: int) -> tuple[int, int]:
    """The Avro long at index `at`, and the index after it.

    Raises:
        IndexError: the value ends inside it.
        IntegrityError: longer than 64 bits.
    """
    byte = value[at]
    at += 1
    number = byte & 0x7F
    shift = 7
    while byte > 0x7F:
        if shift > LONG_BITS_MAX:
            raise IntegrityError("a number of an event has more than 64 bits", reason="malformed")
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
    if number >> 64:
        raise IntegrityError("a number of an event has more than 64 bits", reason="malformed")
    return (number >> 1) ^ -(number & 1), at


def decode_longs(
    data: npt.NDArray[np.uint8], at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `decode_long`, at many indexes at once; returns the numbers, and the indexes after them.

    Raises:
        IndexError: the data end inside one.
        IntegrityError: one is longer than 64 bits.
    """
    byte = data[at]
    number = (byte & 0x7F).astype(np.uint64)
    at = at + 1
    rows: npt.NDArray[np.intp] | slice = slice(None)
    shift = 7
    while (more := byte > 0x7F).any():
        if shift > LONG_BITS_MAX:
            raise IntegrityError("a number has more than 64 bits", reason="malformed")
        if not more.all():
            rows = np.nonzero(more)[0] if isinstance(rows, slice) else rows[more]
        byte = data[at[rows]]
        if shift == LONG_BITS_MAX and (byte > 1).any():
            raise IntegrityError("a number has more than 64 bits", reason="malformed")
        number[rows] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
        at[rows] += 1
        shift += 7
    return (number >> np.uint64(1)).view(np.int64) ^ -(number & np.uint64(1)).view(np.int64), at
