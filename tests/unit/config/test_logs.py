"""Log lines: one per record, readable by logfmt parsers, whatever is in them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rephub.core import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("rephub").setLevel(logging.NOTSET)


def test_a_record_is_one_line_with_its_facts() -> None:
    stream = io.StringIO()
    logs.configure("INFO", stream)
    log = logging.getLogger("rephub.agent.worker")
    log.debug("not said")
    log.info("attached", extra={"volume": "vol 1", "epoch": 3})
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("at=2")
    assert line.endswith('level=INFO logger=agent.worker msg=attached volume="vol 1" epoch=3')


def test_a_traceback_stays_on_its_line() -> None:
    stream = io.StringIO()
    logs.configure("INFO", stream)
    try:
        int("first\nsecond")
    except ValueError:
        logging.getLogger("rephub.x").exception("bad")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in line
    assert "Traceback (most recent call last):\\n" in line


@given(st.text())
def test_any_value_is_one_printable_token(text: str) -> None:
    token = logs.quoted(text)
    assert token.isprintable()
    assert " " not in token or (token[0] == token[-1] == '"')
