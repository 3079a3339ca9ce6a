"""What the tests of faults share: a short training of each stage, and how it ends undisturbed."""

import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.helpers import Training, outcome


@dataclass
class Undisturbed:
    """A training that was left alone."""

    training: Training
    changes: int  # of files
    seconds: float
    outcome: dict[str, Any]


@pytest.fixture(scope="session")
def long_form(request) -> bool:
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def undisturbed(synthetic_cohort, first_stage, tmp_path_factory, long_form) -> dict[int, Undisturbed]:
    """Both stages; the first has folds in the long form."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), {}
    for stage in (1, 2):
        training = Training.of(stage, synthetic_cohort, first_stage, folds=2 if long_form else 0)
        started = time.perf_counter()
        changes = training.count_changes(folder / str(stage))
        made[stage] = Undisturbed(training, changes, time.perf_counter() - started, outcome(folder / str(stage)))
        assert made[stage].outcome["forgotten files"] == []
    return made
