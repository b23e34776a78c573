"""Two thousand seeds of the whole data path, every kind of fault in them, and equal seeds are equal runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from simulation.faults import FIRED_MIN, KINDS
from simulation.run import Outcome, run_seed, run_seeds

SEEDS = 2000
STEP = 250

_total = Outcome()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged of a million faults helps nobody."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_the_promises_hold_whatever_fails(first: int) -> None:
    outcome = run_seeds(range(first, first + STEP))
    _total.add(outcome)
    assert not outcome.failures, "\n".join(
        f"make simulate SEED={seed}: {why}" for seed, why in outcome.failures
    )


def test_every_kind_of_fault_fired_often() -> None:
    """The last line of the run."""
    if _total.seeds < SEEDS:
        pytest.skip("counts only where all seeds ran before")
    print(_total.line())
    rare = {kind: _total.fired[kind] for kind in KINDS if _total.fired[kind] < FIRED_MIN}
    assert not rare, _total.line()


def test_a_seed_is_repeated_exactly() -> None:
    """Also by another process, where sets of strings have another order."""
    seed = 66
    here = run_seed(seed)
    lines = []
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "simulation.run", "--seed", str(seed)],
            env=os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},  # noqa: PTH120
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines.append(done.stdout)
    assert lines[0] == lines[1]
    assert f"steps={here.steps} " in lines[0]
