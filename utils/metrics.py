"""How well brain ages match chronological ages."""

from typing import Any

import numpy as np
from scipy import stats

Predictions = dict[str, np.ndarray]  # (N,) float arrays by name, years
BOOTSTRAP_RESAMPLES = 2000
FEWEST_FOR_CORRELATION = 3
INTERVAL_COVERAGE = 0.9  # share of subjects whose age lies in their interval


def evaluate_ages(chronological_age: np.ndarray, brain_age: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Compute the accuracy of brain ages, without any bias correction.

    Parameters
    ----------
    chronological_age, brain_age : (N,) float arrays, years
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    dict
        ``n``, ``age_min``, ``age_max``, ``age_sd``, ``mae``, ``mae_low``, ``mae_high``
        (95 % percentile bootstrap), ``rmse``, ``mean_gap`` in years;
        ``pearson``, ``spearman``, ``gap_age_spearman``; ``mae_per_decade``, a
        dict of decade to ``n`` and ``mae``. None where it is not defined.
    """
    age = np.asarray(chronological_age, dtype=np.float64)
    gap = np.asarray(brain_age, dtype=np.float64) - age
    error = np.abs(gap)
    n = len(age)
    low, high = _interval_of_mean(error, seed) if n > 1 else (None, None)
    decades = (age // 10 * 10).astype(int)
    return {
        "n": n,
        "age_min": float(age.min()),
        "age_max": float(age.max()),
        "age_sd": float(age.std(ddof=1)) if n > 1 else None,
        "mae": float(error.mean()),
        "mae_low": low,
        "mae_high": high,
        "rmse": float(np.sqrt((gap**2).mean())),
        "pearson": _correlation(stats.pearsonr, age + gap, age),
        "spearman": _correlation(stats.spearmanr, age + gap, age),
        "mean_gap": float(gap.mean()),
        "gap_age_spearman": _correlation(stats.spearmanr, gap, age),
        "mae_per_decade": {
            f"{decade}-{decade + 9}": {
                "n": int((decades == decade).sum()),
                "mae": float(error[decades == decade].mean()),
            }
            for decade in np.unique(decades).tolist()
        },
    }


def _correlation(function: Any, a: np.ndarray, b: np.ndarray) -> float | None:
    """Return a correlation where it is defined."""
    if len(a) < FEWEST_FOR_CORRELATION or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(function(a, b).statistic)


def _interval_of_mean(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the percentile bootstrap."""
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def compare_errors(
    chronological_age: np.ndarray, one: np.ndarray, other: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Compare the MAE of two estimates of the same subjects.

    Parameters
    ----------
    chronological_age, one, other : (N,) float arrays, years
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    dict
        ``difference`` of the MAE, that of `other` minus that of `one`, so
        that it is positive where `one` is better; ``low``, ``high``, its 95 %
        interval by the paired percentile bootstrap.
    """
    age = np.asarray(chronological_age, np.float64)
    gains = np.abs(other - age) - np.abs(one - age)
    low, high = _interval_of_mean(gains, seed)
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
