"""JSON that comes back from a file or a socket: what is damaged is a ValueError, whatever is wrong with it.

Python's parser lets more out: a RecursionError for deep nesting, NaN and Infinity that no number field expects, and lists
or numbers where an object was due.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any, TypeVar

from crc32c import crc32c
from pydantic import TypeAdapter

T = TypeVar("T")


def parse_json(content: str | bytes) -> Any:
    """The value that a text describes.

    Raises:
        ValueError: it is no JSON (RFC 8259), or nested beyond reason.
    """
    try:
        return json.loads(content, parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_object(content: str | bytes) -> dict[str, Any]:
    """The JSON object that a text describes. Raises ValueError."""
    found = parse_json(content)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - the text is wrong, not the caller
    return found


def record_of(cls: type[T], fields: Any) -> T:
    """The dataclass `cls` with these fields; fields with defaults may be missing.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    try:
        record = cls(**fields)
    except TypeError as exc:
        raise ValueError(str(exc)) from exc
    _adapter(cls).validate_json(json.dumps(asdict(record), default=str), strict=True)  # type: ignore[call-overload, arg-type]
    return record


@functools.cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def checksum(value: Any) -> str:
    """The crc32c of a JSON value as 8 hex digits: the same for each text that describes it with its keys in this order."""
    return f"{crc32c(json.dumps(value, separators=(',', ':')).encode()):08x}"


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
