"""Intervals hold as often as promised, on simulated and on published residuals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.analysis.conformal import fit_intervals, observed_coverage
from utils.common.errors import InputError


def draw(rng, n):
    """Errors that grow with age."""
    age = rng.uniform(20, 80, n)
    return age, age + rng.normal(0, 1 + age / 15)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_of_simulated_subjects(coverage) -> None:
    """Over many calibration sets of 60, the mean coverage is at least the promise and at most 1 / 31 more."""
    rng = np.random.default_rng(0)
    found = {False: [], True: []}
    for seed in range(300):
        intervals = fit_intervals(*draw(rng, 60), coverage, seed)
        age, brain_age = draw(rng, 200)
        for normalized, shares in found.items():
            shares.append((np.abs(brain_age - age) <= intervals.half_width(brain_age, normalized)).mean())
    for shares in found.values():
        error = np.std(shares) / np.sqrt(len(shares))
        assert coverage - 3 * error <= np.mean(shares) <= coverage + 1 / 31 + 3 * error


def test_normalized_intervals_follow_the_error() -> None:
    rng = np.random.default_rng(0)
    intervals = fit_intervals(*draw(rng, 2000), 0.9)
    young, old = intervals.half_width(np.array([25.0, 75.0]), True)
    assert old > 1.5 * young
    assert intervals.half_width(np.array([300.0]), True) == intervals.factor * intervals.overall_scale
    assert set(intervals.half_width(np.array([25.0, 75.0]), False)) == {intervals.radius}


@pytest.mark.parametrize("network", ["6LayerCNN", "InceptionV1", "ResNet"])
def test_coverage_of_published_residuals(network, pac2019) -> None:
    """Each of five parts is covered by the other four within binomial error at 99.9 % (15 parts, two kinds)."""
    tables = [pd.read_csv(pac2019 / f"{network}_split-{k}.tsv", sep="\t") for k in range(5)]
    for k, test in enumerate(tables):
        others = pd.concat(tables[:k] + tables[k + 1 :])
        intervals = fit_intervals(others["true_age"].to_numpy(), others["predicted_age"].to_numpy(), 0.9)
        age, brain_age = test["true_age"].to_numpy(), test["predicted_age"].to_numpy()
        for normalized in (False, True):
            inside = np.abs(brain_age - age) <= intervals.half_width(brain_age, normalized)
            assert stats.binomtest(int(inside.sum()), len(inside), 0.9).pvalue > 0.001, (k, normalized, inside.mean())


def test_observed_coverage() -> None:
    found = observed_coverage(np.repeat([True, False], [9, 1]))
    assert found["coverage"] == 0.9
    assert found["coverage_low"] == pytest.approx(stats.beta.ppf(0.025, 9, 2))
    assert found["coverage_high"] == pytest.approx(stats.beta.ppf(0.975, 10, 1))


def test_too_few() -> None:
    rng = np.random.default_rng(0)
    fit_intervals(*draw(rng, 17), 0.9)
    for n in (0, 1, 16):
        with pytest.raises(InputError, match="at least 17 are needed"):
            fit_intervals(*draw(rng, n), 0.9)
