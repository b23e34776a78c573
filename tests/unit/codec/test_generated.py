"""The generated dataclasses are those of the schemas."""

from __future__ import annotations

import pytest

from rephub.schemas import generate


def test_nothing_is_out_of_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err
