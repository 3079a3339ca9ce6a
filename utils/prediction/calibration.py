"""Calibrate brain ages to a scanner by healthy people of known age who were scanned on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.evaluation.metrics import INTERVAL_COVERAGE

FEWEST_PEOPLE = 10
LEAST_AGE_SD = 10.0  # years; ages that spread less do not tell a slope from noise
SLOPE_SD = 0.2  # prior of the slope of the gap over age: scanners were seen to differ by about this much
LARGEST_FLATTENING = 0.5  # a scanner whose brain ages hardly follow the ages cannot be calibrated by a slope
PRIOR_PEOPLE = 10  # how many people's errors the residual deviation that is known beforehand counts for


@dataclass(frozen=True)
class Calibration:
    """How the brain ages of one scanner differ from the ages of healthy people.

    Parameters
    ----------
    offset : float, years
        Mean gap at the age `center`.
    slope : float
        Change of the gap in a year of age; 0 where it could not be told.
    center : float, years
    covariance : (2, 2) float array
        Of `offset` and `slope`.
    residual_sd : float, years
        Of the gap of a healthy person around this line.
    freedom : float
        Degrees of freedom of `residual_sd`.
    people : int
    """

    offset: float
    slope: float
    center: float
    covariance: np.ndarray
    residual_sd: float
    freedom: float
    people: int

    def __str__(self) -> str:
        slope = f", {self.slope:+.2f} per year of age" if self.slope else ""
        return (
            f"calibrated by {self.people} people: the estimated gap of healthy people is {self.offset:+.1f} years at "
            f"the age of {self.center:.0f}{slope}"
        )

    def apply(self, brain_age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return calibrated ages and the half widths of their 90 % intervals, two (N,) float arrays, years."""
        age = self.center + (np.asarray(brain_age, np.float64) - self.center - self.offset) / (1 + self.slope)
        age = np.maximum(age, 0)
        design = np.stack([np.ones_like(age), age - self.center], 1)
        variance = self.residual_sd**2 + np.einsum("ni,ij,nj->n", design, self.covariance, design)
        quantile = stats.t.ppf((1 + INTERVAL_COVERAGE) / 2, self.freedom)
        return age, quantile * np.sqrt(variance) / (1 + self.slope)


def prior_of(gaps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return what is known of a scanner before its people are: `offset_sd` and `residual_sd` of `fit_calibration`.

    Parameters
    ----------
    gaps : sequence of (N,) float arrays, years
        Of sites that were held out.
    """
    return (
        float(np.sqrt(np.mean([np.mean(own) ** 2 for own in gaps]))),
        float(np.sqrt(np.mean(np.concatenate([own - np.mean(own) for own in gaps]) ** 2))),
    )


def fit_calibration(age: np.ndarray, brain_age: np.ndarray, offset_sd: float, residual_sd: float) -> Calibration:
    """Fit a line to the gaps of healthy people, shrunken towards no difference between scanners.

    Parameters
    ----------
    age, brain_age : (N,) float arrays, years
    offset_sd : float, years
        How much the mean gaps of scanners differ.
    residual_sd : float, years
        Of the gap within a scanner, as known beforehand.

    Notes
    -----
    Bayesian linear regression of the gap on age with normal priors around 0.
    The gap is regressed on age, and the line inverted: a regression of age
    on brain age would pull everybody towards the mean of these people.
    """
    age, gap = np.asarray(age, np.float64), np.asarray(brain_age, np.float64) - age
    center = float(age.mean())
    design = np.stack([np.ones_like(age), age - center], 1)
    columns = [0, 1] if age.std() >= LEAST_AGE_SD else [0]
    prior = np.diag(1 / np.array([offset_sd, SLOPE_SD]) ** 2)[np.ix_(columns, columns)]
    own, variance = design[:, columns], residual_sd**2
    freedom = PRIOR_PEOPLE + len(age) - len(columns)
    for _ in range(20):  # coefficients and variance in turn; a few rounds settle both
        posterior = np.linalg.inv(prior + own.T @ own / variance)
        coefficients = posterior @ own.T @ gap / variance
        variance = (PRIOR_PEOPLE * residual_sd**2 + ((gap - own @ coefficients) ** 2).sum()) / freedom
    covariance = np.diag([0.0, SLOPE_SD**2])  # where no slope could be told, it stays as uncertain as before
    covariance[np.ix_(columns, columns)] = posterior
    offset, slope = np.append(coefficients, 0.0)[:2]
    slope = max(slope, -LARGEST_FLATTENING)
    return Calibration(
        float(offset), float(slope), center, covariance, float(np.sqrt(variance)), float(freedom), len(age)
    )
