"""Avro's zigzag variable-length longs, by table: two bytes a lookup.

Only non-negative numbers, which is all that journal headers hold. Spec: Avro 1.12, "Binary Encoding".
"""

from __future__ import annotations

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
