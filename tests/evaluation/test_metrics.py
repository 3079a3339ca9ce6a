"""Metrics against other implementations, and where they are not defined."""

import csv

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from tests.conftest import SHARED
from utils.evaluation.metrics import (
    accuracy,
    bootstrap,
    compare_errors,
    errors_by_group,
    evaluate_ages,
    interval_radius,
    residual_sd_within_bins,
)


def test_against_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 90, 200)
    brain_age = 0.8 * age + 10 + rng.normal(0, 5, 200)
    metrics = evaluate_ages(age, brain_age)
    assert metrics["n"] == 200
    assert metrics["mae"] == pytest.approx(mean_absolute_error(age, brain_age))
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(age, brain_age))
    assert metrics["pearson"] == pytest.approx(np.corrcoef(age, brain_age)[0, 1])
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(age, brain_age)[0])
    assert metrics["gap_age_spearman"] == pytest.approx(stats.spearmanr(age, brain_age - age)[0])
    assert metrics["mean_gap"] == pytest.approx(np.mean(brain_age - age))
    assert metrics["age_sd"] == pytest.approx(np.std(age, ddof=1))
    interval = stats.bootstrap((np.abs(brain_age - age),), np.mean, method="percentile", n_resamples=4000, rng=1)
    assert metrics["mae_low"] == pytest.approx(interval.confidence_interval.low, abs=0.1)
    assert metrics["mae_high"] == pytest.approx(interval.confidence_interval.high, abs=0.1)
    decades = metrics["mae_per_decade"]
    assert sum(part["n"] for part in decades.values()) == 200
    thirties = (age >= 30) & (age < 40)
    assert decades["30-39"]["mae"] == pytest.approx(np.abs(brain_age - age)[thirties].mean())


def test_published_predictions_of_real_subjects() -> None:
    """PAC 2019 (MIT licence, ARAMIS Lab): real ages beside real predictions."""
    files = sorted((SHARED / "data" / "pac2019_predictions").glob("*_split-*.tsv"))
    if not files:
        pytest.skip("the published predictions are not in ../shared/data")
    with files[0].open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    age, brain_age = (np.array([float(row[key]) for row in rows]) for key in ("true_age", "predicted_age"))
    metrics = evaluate_ages(age, brain_age)
    assert metrics["mae"] == pytest.approx(sum(abs(a - b) for a, b in zip(age, brain_age, strict=True)) / len(rows))
    assert 2 < metrics["mae"] < 10
    assert metrics["mae_low"] < metrics["mae"] < metrics["mae_high"]


@pytest.mark.parametrize("size", [1, 2])
def test_too_few_for_a_correlation(size) -> None:
    metrics = evaluate_ages(np.full(size, 50.0), np.full(size, 53.0))
    assert metrics["mae"] == 3
    assert metrics["pearson"] is None
    assert (metrics["mae_low"] is None) == (size == 1)


def test_constant_predictions_have_no_correlation() -> None:
    metrics = evaluate_ages(np.arange(20.0, 60), np.full(40, 40.0))
    assert metrics["pearson"] is None
    assert metrics["gap_age_spearman"] == pytest.approx(-1)


def test_residual_sd_within_bins() -> None:
    bins = np.repeat([40.0, 60.0], 50)
    assert residual_sd_within_bins(np.where(bins == 40, 3.0, -2.0), bins) == 0  # collapsed
    residual = np.random.default_rng(0).normal(0, 2, 100) + bins
    expected = np.sqrt((residual[:50].var(ddof=1) + residual[50:].var(ddof=1)) / 2)
    assert residual_sd_within_bins(residual, bins) == pytest.approx(expected)
    assert np.isnan(residual_sd_within_bins(np.ones(2), np.array([1.0, 2.0])))


def test_paired_comparison() -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, 200)
    error = rng.normal(0, 5, 200)
    better, worse = age + error, age + 1.5 * error
    result = compare_errors(age, better, worse)
    assert result["difference"] == pytest.approx(np.abs(worse - age).mean() - np.abs(better - age).mean())
    assert 0 < result["low"] < result["difference"] < result["high"]
    same = compare_errors(age, better, better)
    assert same == {"difference": 0, "low": 0, "high": 0}


def test_interval_radius_covers_new_subjects() -> None:
    rng = np.random.default_rng(0)
    held = [(rng.exponential(1, 1) <= interval_radius(rng.exponential(1, 60), 0.9)).item() for _ in range(2000)]
    assert 0.88 < np.mean(held) < 0.935
    assert interval_radius(np.ones(8), 0.9) == np.inf


def test_bootstrap_of_every_figure() -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, 100)
    brain_age = age + rng.normal(0, 5, 100)
    found = bootstrap(lambda draw: accuracy(age[draw], brain_age[draw]), 100, seed=1)
    for name, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        by_scipy = stats.bootstrap(
            (age, brain_age), lambda a, b, f=function: f(a, b).statistic, paired=True, vectorized=False,
            method="percentile", n_resamples=1500, rng=2,
        ).confidence_interval  # fmt: skip
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((by_scipy.low, by_scipy.high), abs=0.005)
    assert np.isnan(bootstrap(lambda draw: accuracy(age[draw], age[draw]), 100)["gap_age_pearson_low"])


def test_many_resamples_at_once_are_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    age, brain_age = rng.uniform(20, 80, (2, 7, 30)).round()  # with ties
    together = accuracy(age, brain_age)
    for row in range(7):
        alone = accuracy(age[row], brain_age[row])
        assert all(together[name][row] == pytest.approx(alone[name]) for name in alone)
        assert alone["r2"] == pytest.approx(r2_score(age[row], brain_age[row]))


def test_scans_of_one_person_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 90, 40)
    brain_age, other = age + rng.normal(0, 5, (2, 40))
    persons = np.array([f"sub-{number:02d}" for number in range(40)])
    once, thrice = evaluate_ages(age, brain_age), [np.repeat(a, 3) for a in (age, brain_age, other, persons)]
    for persons_of, same in ((thrice[3], True), (None, False)):
        found = evaluate_ages(*thrice[:2], persons=persons_of)
        assert found["n"] == 120
        assert (found["mae_low"] == pytest.approx(once["mae_low"])) is same
        assert (found["mae_high"] == pytest.approx(once["mae_high"])) is same
        assert (
            compare_errors(*thrice[:3], persons=persons_of) == pytest.approx(compare_errors(age, brain_age, other))
        ) is same
    assert evaluate_ages(age[:2], brain_age[:2], persons=persons[[0, 0]])["mae_low"] is None


def test_errors_by_group() -> None:
    found = errors_by_group(np.array([50.0, 60, 70]), np.array([51.0, 57, 75]), np.array(["b", "b", "a"]))
    assert list(found) == ["a", "b"]
    assert found["a"] == {"n": 1, "mae": 5.0, "mae_low": None, "mae_high": None, "mean_gap": 5.0}
    assert (found["b"]["mae"], found["b"]["mean_gap"], found["b"]["mae_low"], found["b"]["mae_high"]) == (2, -1, 1, 3)
