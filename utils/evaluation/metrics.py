"""How well brain ages match chronological ages."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

Predictions = dict[str, np.ndarray]  # (N,) float arrays by name, years
BOOTSTRAP_RESAMPLES = 2000
LARGEST_PART = 4_000_000  # resampled subjects at a time, so that large cohorts fit into memory
FEWEST_FOR_CORRELATION = 3
INTERVAL_COVERAGE = 0.9  # share of subjects whose age lies in their interval


def evaluate_ages(
    chronological_age: np.ndarray, brain_age: np.ndarray, seed: int = 0, persons: np.ndarray | None = None
) -> dict[str, Any]:
    """Compute the accuracy of brain ages, without any bias correction.

    Parameters
    ----------
    chronological_age, brain_age : (N,) float arrays, years
    seed : int
        Of the bootstrap over persons.
    persons : (N,) str array or None
        Whose scans they are; None if all are of different persons.

    Returns
    -------
    dict
        ``n``, ``age_min``, ``age_max``, ``age_sd``; all of `accuracy`;
        ``mae_low``, ``mae_high`` (95 % percentile bootstrap), years;
        ``mae_per_decade``, a dict of decade to ``n`` and ``mae``. None where
        it is not defined.
    """
    age = np.asarray(chronological_age, dtype=np.float64)
    brain_age = np.asarray(brain_age, dtype=np.float64)
    error = np.abs(brain_age - age)
    n = len(age)
    several = n > 1 if persons is None else len(np.unique(persons)) > 1
    low, high = interval_of_mean(error, seed, persons) if several else (None, None)
    decades = decade_of(age)
    return {
        "n": n,
        "age_min": float(age.min()),
        "age_max": float(age.max()),
        "age_sd": float(age.std(ddof=1)) if n > 1 else None,
        **{name: float(value) if np.isfinite(value) else None for name, value in accuracy(age, brain_age).items()},
        "mae_low": low,
        "mae_high": high,
        "mae_per_decade": {
            decade: {"n": int((decades == decade).sum()), "mae": float(error[decades == decade].mean())}
            for decade in sorted(set(decades), key=_by_number)
        },
    }


def accuracy(age: np.ndarray, brain_age: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the figures that tell how well brain ages match ages.

    Parameters
    ----------
    age, brain_age : (..., N) float64 arrays, years

    Returns
    -------
    dict of str to (...) float64 array
        ``mae``, ``rmse``, ``mean_gap`` in years; ``r2`` (1 minus the squared
        errors' share of the ages' variance), ``pearson``, ``spearman``,
        ``gap_age_pearson``, ``gap_age_spearman``. NaN where it is not defined.
    """
    gap = brain_age - age
    age_ranks, brain_age_ranks, gap_ranks = (stats.rankdata(values, axis=-1) for values in (age, brain_age, gap))
    spread = ((age - age.mean(-1, keepdims=True)) ** 2).mean(-1)
    squared = (gap**2).mean(-1)
    return {
        "mae": np.abs(gap).mean(-1),
        "rmse": np.sqrt(squared),
        "mean_gap": gap.mean(-1),
        "r2": 1 - squared / np.where(spread > 0, spread, np.nan),
        "pearson": correlation(brain_age, age),
        "spearman": correlation(brain_age_ranks, age_ranks),
        "gap_age_pearson": correlation(gap, age),
        "gap_age_spearman": correlation(gap_ranks, age_ranks),
    }


def bootstrap(figures: Callable[[np.ndarray], dict[str, np.ndarray]], n: int, seed: int = 0) -> dict[str, float]:
    """Return 95 % intervals by the percentile bootstrap over subjects.

    Parameters
    ----------
    figures : callable
        Computes figures, (R,) arrays by name, of an (R, N) int array with the
        indices of the subjects of R resamples.
    n : int
        Subjects.
    seed : int

    Returns
    -------
    dict
        ``<name>_low`` and ``<name>_high`` of each figure; NaN where it is not defined.
    """
    rng = np.random.default_rng(seed)
    parts = [figures(rng.integers(0, n, (count, n))) for count in in_parts(BOOTSTRAP_RESAMPLES, n)]
    intervals: dict[str, float] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
        intervals |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return intervals


def in_parts(resamples: int, n: int) -> Iterator[int]:
    """Split resamples of `n` subjects into parts that fit into memory; give the size of each."""
    most = max(1, LARGEST_PART // n)
    for begin in range(0, resamples, most):
        yield min(most, resamples - begin)


def errors_by_group(
    age: np.ndarray, brain_age: np.ndarray, groups: np.ndarray, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute the error within each group.

    Parameters
    ----------
    age, brain_age : (N,) float arrays, years
    groups : (N,) str array
    seed : int

    Returns
    -------
    dict of group to dict
        ``n``, ``mae``, ``mae_low``, ``mae_high`` (95 % bootstrap; None for one
        subject), ``mean_gap``, years; groups in order.
    """
    result = {}
    for group in sorted(np.unique(groups).tolist(), key=_by_number):
        gap = (brain_age - age)[groups == group]
        low, high = interval_of_mean(np.abs(gap), seed) if len(gap) > 1 else (None, None)
        result[group] = {
            "n": len(gap), "mae": float(np.abs(gap).mean()), "mae_low": low, "mae_high": high,
            "mean_gap": float(gap.mean()),
        }  # fmt: skip
    return result


def _by_number(name: str) -> list[str | int]:
    """Order names by the numbers in them: 9 before 10, 90-99 before 100-109."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def decade_of(age: np.ndarray) -> np.ndarray:
    """Return the age bin of each subject, (N,) str array.

    >>> decade_of(np.array([29.9, 30.0])).tolist()
    ['20-29', '30-39']
    """
    return np.array([f"{decade}-{decade + 9}" for decade in (age // 10 * 10).astype(int).tolist()], dtype=str)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of (..., N) arrays along the last axis; NaN where it is not defined."""
    a, b = (values - values.mean(-1, keepdims=True) for values in (a, b))
    undefined = (np.ptp(a, axis=-1) == 0) | (np.ptp(b, axis=-1) == 0) | (a.shape[-1] < FEWEST_FOR_CORRELATION)
    spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return (a * b).sum(-1) / np.where(undefined, np.nan, spread)


def interval_of_mean(values: np.ndarray, seed: int, persons: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the percentile bootstrap over persons, all scans of one together."""
    own = np.arange(len(values)) if persons is None else np.unique(persons, return_inverse=True)[1]
    sums, counts = np.bincount(own, values), np.bincount(own)
    rng = np.random.default_rng(seed)
    n = len(sums)
    draws = (rng.integers(0, n, (count, n)) for count in in_parts(BOOTSTRAP_RESAMPLES, n))
    means = [sums[draw].sum(1) / counts[draw].sum(1) for draw in draws]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def compare_errors(
    chronological_age: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    seed: int = 0,
    persons: np.ndarray | None = None,
) -> dict[str, float]:
    """Compare the MAE of two estimates of the same subjects.

    Parameters
    ----------
    chronological_age, one, other : (N,) float arrays, years
    seed : int
        Of the bootstrap over persons.
    persons : (N,) str array or None
        Whose scans they are; None if all are of different persons.

    Returns
    -------
    dict
        ``difference`` of the MAE, that of `other` minus that of `one`, so
        that it is positive where `one` is better; ``low``, ``high``, its 95 %
        interval by the paired percentile bootstrap.
    """
    age = np.asarray(chronological_age, np.float64)
    gains = np.abs(other - age) - np.abs(one - age)
    low, high = interval_of_mean(gains, seed, persons)
    return {"difference": float(gains.mean()), "low": low, "high": high}


def interval_radius(errors: np.ndarray, coverage: float) -> float:
    """Return the half width of an interval that holds the age of a new subject.

    Parameters
    ----------
    errors : (N,) float array, years
        Absolute errors of subjects that the networks were not trained on.
    coverage : float
        The share of subjects for whom it shall hold.

    Returns
    -------
    float, years
        Infinite if there are too few errors.

    References
    ----------
    Lei et al., "Distribution-free predictive inference for regression",
    JASA 2018: the split-conformal quantile.

    >>> interval_radius(np.arange(1.0, 20.0), 0.9)
    18.0
    """
    rank = int(np.ceil(coverage * (len(errors) + 1)))
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else float("inf")


def residual_sd_within_bins(residual_age: np.ndarray, discretized_age: np.ndarray) -> float:
    """Pool the standard deviation of residuals over equal discretized ages.

    A second stage that adds a constant to each bin has 0.

    Parameters
    ----------
    residual_age, discretized_age : (N,) float arrays, years

    Returns
    -------
    float, years
        NaN if no two subjects share a discretized age.
    """
    squares, freedom = 0.0, 0
    for value in np.unique(discretized_age):
        inside = np.asarray(residual_age, dtype=np.float64)[discretized_age == value]
        squares += float(((inside - inside.mean()) ** 2).sum())
        freedom += len(inside) - 1
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")
