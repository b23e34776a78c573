"""The judges are judged: each seeded bug is seen by the simulation, and only because of the bug."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from simulation.mutants import MUTANTS, SEEDS_MAX, applied
from simulation.run import run_seed

PROMISES = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13}
"""Those that the data path alone can break; 12, 14 and 15 have tests on the real parts."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What a broken product logs is no matter."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_each_promise_has_a_mutant() -> None:
    assert {mutant.promise for mutant in MUTANTS.values()} == PROMISES
    assert len(MUTANTS) >= 15


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    with applied(mutant):
        caught = next((seed for seed in range(SEEDS_MAX) if run_seed(seed, mutant.faults).failures), None)
    assert caught is not None, f"{name}: nobody notices"
    assert not run_seed(caught, mutant.faults).failures, "the seed fails without the bug, too"
    print(f"mutant={name!r} promise={mutant.promise} caught_by_seed={caught}")
