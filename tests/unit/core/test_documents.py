"""What comes back from files, events and Redis: of the right shape, or refused."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from rephub.core.bitmap import redis
from rephub.core.bitmap.redis import regions_of
from rephub.core.documents import parse_json, parse_object, record_of
from rephub.core.errors import NotFoundError, RephubError, RequestError, from_dict, from_json


@dataclass(frozen=True, slots=True)
class Thing:
    name: str
    count: int
    at: float = 0.0


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", '{"a": Infinity}', "[" * 100_000, b"\xff", '{"a":' * 50_000]
)
def test_a_text_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["5", "null", "[]", '"x"'])
def test_a_text_that_is_no_object_is_a_value_error(text):
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a"},
        {"name": "a", "count": "1"},
        {"name": "a", "count": 1.5},
        {"name": "a", "count": True},
        {"name": None, "count": 1},
        {"name": "a", "count": 1, "more": 1},
        {"name": "a", "count": 1, "at": "now"},
    ],
)
def test_a_record_of_other_fields_or_types_is_a_value_error(fields):
    with pytest.raises(ValueError):
        record_of(Thing, fields)


def test_a_record_is_made_of_its_fields():
    assert record_of(Thing, {"name": "a", "count": 1}) == Thing("a", 1)


def test_an_error_of_any_text_is_an_error():
    """A RequestError without errno, and a field named self, raised a TypeError in whoever read the event."""
    assert isinstance(from_json('{"class": "RequestError", "message": "m"}'), RequestError)
    assert from_json('{"class": "RequestError", "errno": "x"}').errno == errno.EIO
    assert from_json('{"class": "NotFoundError", "message": "m", "self": 1}').message == "m"
    assert isinstance(from_json('{"class": "NotFoundError"}'), NotFoundError)
    assert from_dict({"class": ["x"], "message": None, "hint": 5}).hint == "5"
    for text in ("", "plain words", "5", "[" * 100_000, "[]"):
        found = from_json(text)
        assert type(found) is RephubError
        assert found.message == text


def test_marks_without_sentinel_or_beyond_the_limit_count_as_lost(monkeypatch):
    assert regions_of(b"") is None
    assert regions_of(b"\x40") is None
    assert regions_of(b"\x80") == set()
    assert regions_of(b"\xc0" + bytes(1000) + b"\x01") == {0, 8014}
    monkeypatch.setattr(redis, "BITMAP_BYTES_MAX", 2)
    assert regions_of(b"\x80\x01") == {14}
    assert regions_of(b"\x80\x01\x00") is None
