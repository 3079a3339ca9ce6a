"""The second stage's report calls a collapse by its name."""

import numpy as np
import pytest
import torch

from model.scaledense import NetworkConfig, ScaleDense
from utils.common.distributed import Share
from utils.training.stages import FirstStage, SecondStage


def predictions(residual):
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, 60)
    first = age + rng.normal(0, 4, 60)
    discretized = np.round(first / 5) * 5
    residual = residual(age, discretized)
    return {"chronological_age": age, "first_stage_age": first, "discretized_age": discretized,
            "residual_age": residual, "brain_age": discretized + residual}  # fmt: skip


def test_a_collapsed_stage_is_called_so() -> None:
    scalars, warning = SecondStage(5.0).report(predictions(lambda age, d: np.full_like(age, 1.3)))
    assert warning.startswith("SECOND STAGE COLLAPSED")
    assert scalars["residual_sd"] < 1e-6


def test_a_useful_stage_is_not() -> None:
    scalars, warning = SecondStage(5.0).report(predictions(lambda age, d: 0.5 * (age - d)))
    assert warning == ""
    assert scalars["residual_sd"] > 1
    assert scalars["gain_over_first_stage"] > 0.5


def test_a_first_stage_that_is_stuck_is_called_so() -> None:
    ages = np.linspace(20, 80, 30)
    for slope, stuck in ((0.0, True), (0.04, True), (0.1, False), (1.0, False)):
        scalars, warning = FirstStage().report({"chronological_age": ages, "brain_age": 50 + slope * (ages - 50)})
        assert scalars["brain_age_sd"] == pytest.approx(slope * ages.std())
        assert warning.startswith("FIRST STAGE STUCK") == stuck
    same_age = {"chronological_age": np.full(5, 50.0), "brain_age": np.full(5, 48.0)}
    assert FirstStage().report(same_age)[1] == ""


def test_predictions_of_both_stages() -> None:
    batch = {
        "volume": torch.ones(2, 1, 2, 2, 2),
        "sex": torch.tensor([0, 1]),
        "discretized_age": torch.tensor([50.0, 60]),
    }
    first = FirstStage().predict(lambda volume, sex: volume.mean((1, 2, 3, 4)) + sex, batch)
    assert first["brain_age"].tolist() == [1, 2]
    second = SecondStage(5.0).predict(lambda volume, sex, age: age / 10, batch)
    assert second["residual_age"].tolist() == [5, 6]
    assert second["brain_age"].tolist() == [55, 66]


def test_the_age_jitter_leaves_out_of_fold_ages_alone() -> None:
    batch = {
        "first_stage_age": torch.full((400,), 52.0),
        "discretized_age": torch.full((400,), 50.0),
        "out_of_fold": torch.arange(400) % 2 == 0,
    }
    changed = SecondStage(5.0, 6.0).perturb(batch, (0, 1))["discretized_age"]
    assert (changed[::2] == 50).all()
    assert ((changed % 5) == 0).all()
    assert changed[1::2].std() == pytest.approx(np.hypot(6.0, 5 / np.sqrt(12)), rel=0.15)
    assert torch.equal(changed, SecondStage(5.0, 6.0).perturb(batch, (0, 1))["discretized_age"])
    assert SecondStage(5.0).perturb(batch, (0, 1)) is batch
    shares = [Share(400, rank, 3) for rank in range(3)]
    own = [{key: values[share.own] for key, values in batch.items()} for share in shares]
    parts = [SecondStage(5.0, 6.0).perturb(part, (0, 1), share) for part, share in zip(own, shares, strict=True)]
    assert torch.equal(torch.cat([part["discretized_age"] for part in parts]), changed)


def recalibrated(stage: int, slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ages, and the output, years, before and after recalibration; the output grows by the slope in a year."""
    torch.manual_seed(0)
    network = ScaleDense(NetworkConfig(stage, "scaledense_paper", False, (16, 16, 16), 2, 4, 40.0, 10.0)).eval()
    torch.nn.init.normal_(network.output_layer[-1].weight, std=0.1)
    given = (torch.randn(12, 1, 16, 16, 16), None, torch.linspace(30, 70, 12))[: stage + 1]
    with torch.no_grad():
        before = network(*given).numpy()
        assert stage == 2 or before.min() > 10  # years; no age is cut at 0
        age = (55 + (before - before.mean()) / slope).astype(np.float32)
        predictions = {"brain_age": before, "chronological_age": age}
        (FirstStage() if stage == 1 else SecondStage(5.0)).recalibrate(network, predictions)
        return age, before, network(*given).numpy()


@pytest.mark.parametrize("slope", [0.7, 1.4])
def test_recalibration_of_a_first_stage_corrects_level_and_slope(slope) -> None:
    age, before, after = recalibrated(1, slope)
    assert np.abs(before - age).mean() > 1
    np.testing.assert_allclose(after, age, atol=1e-2)


@pytest.mark.parametrize(("stage", "slope"), [(1, 0.2), (1, 4.0), (2, 0.7)])
def test_recalibration_corrects_only_the_level_where_the_slope_tells_nothing(stage, slope) -> None:
    age, before, after = recalibrated(stage, slope)
    assert before.std() > 0.1
    np.testing.assert_allclose(after, before + age.mean() - before.mean(), atol=1e-2)
