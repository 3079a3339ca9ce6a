"""Intervals cover as often as stated, on simulated and on published residuals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.analysis.accuracy import accuracy_row, accuracy_section, fit_interval, uncertainty_section
from utils.common.errors import InputError


def draw(rng, n):
    """Brain ages whose errors grow with age."""
    age = rng.uniform(20, 80, n)
    return pd.DataFrame({"chronological_age": age, "brain_age": age + rng.normal(0, 1 + age / 15)})


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_of_simulated_subjects(coverage) -> None:
    """Over many calibration sets of 60, the mean coverage is at least the nominal one and at most 1 / 61 more."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        radius = fit_interval(draw(rng, 60), coverage)
        new = draw(rng, 200)
        shares.append(((new["brain_age"] - new["chronological_age"]).abs() <= radius).mean())
    error = np.std(shares) / np.sqrt(len(shares))
    assert coverage - 3 * error <= np.mean(shares) <= coverage + 1 / 61 + 3 * error


@pytest.mark.parametrize("network", ["6LayerCNN", "InceptionV1", "ResNet"])
def test_coverage_of_published_residuals(network, pac2019) -> None:
    """Intervals fitted on four of five parts cover the fifth within binomial error at 99.9 % (15 parts)."""
    names = {"true_age": "chronological_age", "predicted_age": "brain_age"}
    tables = [pd.read_csv(pac2019 / f"{network}_split-{k}.tsv", sep="\t").rename(columns=names) for k in range(5)]
    for k, test in enumerate(tables):
        radius = fit_interval(pd.concat(tables[:k] + tables[k + 1 :]), 0.9)
        row = uncertainty_section(test, radius, 2000, 0.9).tables["coverage"].frame.iloc[0]
        inside = round(row["n"] * row["coverage"])
        assert stats.binomtest(inside, len(test), 0.9).pvalue > 0.001, (k, row["coverage"])
        assert row["coverage_low"] == pytest.approx(stats.beta.ppf(0.025, inside, len(test) - inside + 1))
        assert row["coverage_high"] == pytest.approx(stats.beta.ppf(0.975, inside + 1, len(test) - inside))


def test_too_few_for_an_interval() -> None:
    rng = np.random.default_rng(0)
    fit_interval(draw(rng, 9), 0.9)
    for n in (0, 1, 8):
        with pytest.raises(InputError, match="give at least 9"):
            fit_interval(draw(rng, n), 0.9)


@pytest.mark.parametrize(("n", "worst"), [(6, "none"), (60, "70-79, MAE ")])
def test_the_worst_age_bin_has_enough_persons(n, worst) -> None:
    age = np.linspace(20, 79, n)
    healthy = pd.DataFrame({"chronological_age": age, "brain_age": age + age / 10, "first_stage_age": np.nan})
    healthy["sex"] = healthy["site"] = ""
    row = accuracy_row(age, healthy["brain_age"].to_numpy(), 0)
    assert f"Worst age bin with at least 5 persons: {worst}" in " ".join(accuracy_section(healthy, row, 0).headlines)
