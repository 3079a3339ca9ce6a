"""Several processes compute what one process with the joint batch computes; run with -s to see by how much they differ."""

from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch.multiprocessing import start_processes

from tests.training.processes import STEP_CASES, STEPS, join_and_run, run_cases
from utils.training.run_log import SPEEDS

PROCESSES = 2, 4
Outcomes = dict[str, dict[str, Any]]
TOLERANCE = 1e-5
STEP_NAMES = [", ".join(case) for case in STEP_CASES]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Outcomes]]:
    """By the number of processes, what each of them computed."""
    found = {1: [run_cases(tmp_path_factory.mktemp("one"))]}
    get_context("forkserver").set_forkserver_preload(["tests.training.processes"])  # imported once for all
    for number in PROCESSES:
        folder = tmp_path_factory.mktemp("several")
        start_processes(join_and_run, (number, folder), number, start_method="forkserver")
        files = [folder / f"outcomes_{rank}.pt" for rank in range(number)]
        found[number] = [torch.load(path, weights_only=False) for path in files]
    return found


def joined(state: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """Return all weights, or all running statistics, as one vector."""
    names = [name for name in state if (".running_" in name) == (kind == "statistics") and "num_" not in name]
    return torch.cat([state[name].double().flatten() for name in names])


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the length of the difference of two vectors, as a share of the expected one's."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", STEP_NAMES)
def test_five_steps_are_those_of_one_process(outcomes, case, processes) -> None:
    """Loss, gradient, weights, their change, and running statistics; the last batch is uneven."""
    (one,), (many, *_) = ([each[case] for each in outcomes[number]] for number in (1, processes))
    assert len(one["losses"]) == len(one["gradients"]) == STEPS
    changes = [joined(own["end"], "weights") - joined(own["start"], "weights") for own in (many, one)]
    found = {
        "loss": difference(*(torch.tensor(own["losses"], dtype=torch.float64) for own in (many, one))),
        "gradient": max(map(difference, many["gradients"], one["gradients"])),
        "weights": difference(*(joined(own["end"], "weights") for own in (many, one))),
        "their change": difference(*changes),
        "statistics": difference(*(joined(own["end"], "statistics") for own in (many, one))),
    }
    print(f"\n| {case} | {processes} | " + " | ".join(f"{value:.1e}" for value in found.values()) + " |", end="")
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", ["first stage", "second stage"])
def test_whole_trainings_are_those_of_one_process(outcomes, case, processes) -> None:
    """Augmentation, perturbation, accumulated gradients, recalibration and validation of two epochs, in float64."""
    (one,), (many, *_) = ([each[case] for each in outcomes[number]] for number in (1, processes))
    rows = [
        torch.tensor([[row[key] for key in row if key not in SPEEDS] for row in own["history"]]) for own in (many, one)
    ]
    assert one["history"][0].keys() >= {"train/loss", "train/mae", "valid/loss", "valid/mae"}
    torch.testing.assert_close(*rows, rtol=TOLERANCE, atol=1e-4)
    found = [difference(*(joined(own["end"], kind) for own in (many, one))) for kind in ("weights", "statistics")]
    print(f"\n| {case} | {processes} | " + " | ".join(f"{value:.1e}" for value in found) + " |", end="")
    assert max(found) < TOLERANCE


@pytest.mark.parametrize("processes", PROCESSES)
def test_predictions_are_those_of_one_process_bit_for_bit(outcomes, processes) -> None:
    (one,), several = ([each["prediction"] for each in outcomes[number]] for number in (1, processes))
    for many in several:
        assert {name: values.tolist() for name, values in many.items()} == {
            name: values.tolist() for name, values in one.items()
        }


@pytest.mark.parametrize("processes", PROCESSES)
def test_local_batch_norm_computes_something_else(outcomes, processes) -> None:
    """What differs by more than rounding is seen; the running statistics of all processes are averaged."""
    (one,), several = ([each["local batch norm"] for each in outcomes[number]] for number in (1, processes))
    for kind in ("weights", "statistics"):
        assert difference(joined(several[0]["end"], kind), joined(one["end"], kind)) > 100 * TOLERANCE


@pytest.mark.parametrize("processes", PROCESSES)
def test_all_processes_have_the_same_network(outcomes, processes) -> None:
    """Bit for bit, running statistics included, synchronized or not."""
    first, *others = outcomes[processes]
    for case, outcome in first.items():
        for other in others:
            if "end" in outcome:
                assert all(torch.equal(value, other[case]["end"][name]) for name, value in outcome["end"].items()), case
