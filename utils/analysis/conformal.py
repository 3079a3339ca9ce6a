"""Intervals around a brain age that hold the age for a stated share of new subjects."""

from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy import stats

from utils.common.errors import InputError
from utils.evaluation.metrics import decade_of, interval_radius

PRIOR_SUBJECTS = 10  # a bin's scale counts as much as the overall one when it has so many subjects


@dataclass(frozen=True)
class Intervals:
    """Half widths of intervals, learned from subjects that the networks were not trained on.

    Parameters
    ----------
    coverage : float, nominal
    radius : float, years, the same for everybody
    scales : dict of decade of the brain age to float, years
        Typical error of each.
    overall_scale : float, years, where a decade did not occur
    factor : float
        The normalized interval's half width, in scales.
    n : int, calibration subjects
    """

    coverage: float
    radius: float
    scales: dict[str, float]
    overall_scale: float
    factor: float
    n: int

    def half_width(self, brain_age: np.ndarray, normalized: bool) -> np.ndarray:
        """Return the half width of each interval.

        Parameters
        ----------
        brain_age : (N,) float array, years
        normalized : bool
            By the decade of the brain age, or the same for everybody.

        Returns
        -------
        (N,) float64 array, years
        """
        if not normalized:
            return np.full(len(brain_age), self.radius)
        return self.factor * np.array([self.scales.get(bin_, self.overall_scale) for bin_ in decade_of(brain_age)])


def fit_intervals(age: np.ndarray, brain_age: np.ndarray, coverage: float, seed: int = 0) -> Intervals:
    """Learn intervals from a calibration set, one scan of each person.

    Parameters
    ----------
    age, brain_age : (N,) float arrays, years
    coverage : float
        The share of new subjects whose age the interval shall hold.
    seed : int
        Of the halving.

    Notes
    -----
    Normalized: the error is divided by the typical error among brain ages of
    the same decade, for a new subject's age is what one does not know. A
    random half of the subjects tells those scales and the other half the
    quantile, without which the promised coverage would not be exact.

    References
    ----------
    Lei et al., "Distribution-free predictive inference for regression", JASA 2018;
    Papadopoulos, Vovk and Gammerman, "Regression conformal prediction with
    nearest neighbours", JAIR 2011.

    Raises
    ------
    InputError
        If there are too few subjects for that coverage.
    """
    errors = np.abs(brain_age - age)
    order = np.random.default_rng(seed).permutation(len(errors))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    bins = decade_of(brain_age)
    overall = float(errors[first].mean()) if len(first) else float("nan")
    scales = {
        str(bin_): float(errors[first][bins[first] == bin_].sum() + PRIOR_SUBJECTS * overall)
        / (int((bins[first] == bin_).sum()) + PRIOR_SUBJECTS)
        for bin_ in np.unique(bins[first])
    }
    draft = Intervals(coverage, interval_radius(errors, coverage), scales, overall, 1.0, len(errors))
    factor = interval_radius(errors[second] / draft.half_width(brain_age[second], True), coverage)
    if not np.isfinite(factor):
        least = next(2 * n - 1 for n in count(1) if np.isfinite(interval_radius(np.zeros(n), coverage)))
        raise InputError(
            f"--calibration_predictions: {len(errors)} healthy persons are too few for intervals of {coverage:.0%}; at "
            f"least {least} are needed, or a lower --coverage"
        )
    return Intervals(coverage, draft.radius, scales, overall, factor, len(errors))


def observed_coverage(inside: np.ndarray) -> dict[str, float]:
    """Return the share of intervals that hold the age, with its exact 95 % binomial interval.

    Parameters
    ----------
    inside : (N,) bool array
    """
    interval = stats.binomtest(int(inside.sum()), len(inside)).proportion_ci(0.95, "exact")
    return {
        "coverage": float(inside.mean()),
        "coverage_low": float(interval.low),
        "coverage_high": float(interval.high),
    }
