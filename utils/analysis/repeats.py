"""How much of a brain age is the person, and how much the day of the scan."""

import numpy as np
import pandas as pd
from scipy import stats

from utils.evaluation.metrics import interval_of_mean

FEWEST_PAIRS = 5


def intraclass_correlations(values: np.ndarray) -> dict[str, dict[str, float]]:
    """Compute the agreement of repeated measurements.

    Parameters
    ----------
    values : (N, K) float array
        K measurements of each of N persons, N and K at least 2.

    Returns
    -------
    dict
        ``icc_2_1`` (absolute agreement: a shift between the sessions counts)
        and ``icc_3_1`` (consistency: it does not), each with ``value``,
        ``low``, ``high`` (95 %).

    References
    ----------
    McGraw and Wong, "Forming inferences about some intraclass correlation
    coefficients", Psychological Methods 1996: ICC(A,1) and ICC(C,1) of table 4,
    their intervals of table 7.
    """
    n, k = values.shape
    grand = values.mean()
    rows = k * ((values.mean(1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((values.mean(0) - grand) ** 2).sum() / (k - 1)
    freedom = (n - 1) * (k - 1)
    total = ((values - grand) ** 2).sum()
    # Rounding, and repeats that are the same to the last bit, must not leave nothing to divide by.
    error = max((total - (n - 1) * rows - (k - 1) * columns) / freedom, 1e-12 * total, np.finfo(float).tiny)

    consistency = (rows - error) / (rows + (k - 1) * error)
    ratio = rows / error
    low, high = ratio / stats.f.ppf(0.975, n - 1, freedom), ratio * stats.f.ppf(0.975, freedom, n - 1)
    icc3 = {"value": consistency, "low": (low - 1) / (low + k - 1), "high": (high - 1) / (high + k - 1)}

    agreement = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    a = k * agreement / (n * (1 - agreement))
    b = 1 + k * agreement * (n - 1) / (n * (1 - agreement))
    v = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / freedom)
    f_low, f_high = stats.f.ppf(0.975, n - 1, v), stats.f.ppf(0.975, v, n - 1)
    spread = k * columns + (k * n - k - n) * error
    icc2 = {
        "value": agreement,
        "low": n * (rows - f_low * error) / (f_low * spread + n * rows),
        "high": n * (f_high * rows - error) / (spread + n * f_high * rows),
    }
    return {
        name: {key: float(value) for key, value in figures.items()}
        for name, figures in {"icc_2_1": icc2, "icc_3_1": icc3}.items()
    }


def bland_altman(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Describe the differences of two measurements of the same persons.

    Parameters
    ----------
    one, other : (N,) float arrays, years

    Returns
    -------
    dict
        ``bias``, the mean of `other` minus `one`; ``limit_low``,
        ``limit_high``, the 95 % limits of agreement; ``within_subject_sd``; in years.

    References
    ----------
    Bland and Altman, "Statistical methods for assessing agreement between
    two methods of clinical measurement", Lancet 1986.
    """
    difference = other - one
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    return {
        "bias": bias,
        "limit_low": bias - 1.96 * sd,
        "limit_high": bias + 1.96 * sd,
        "within_subject_sd": float(np.sqrt((difference**2).mean() / 2)),
    }


def retest_pairs(scans: pd.DataFrame, longest: float) -> np.ndarray:
    """Pair the two scans of each person that lie closest to each other, no further apart than `longest` years.

    Parameters
    ----------
    scans : DataFrame with ``person``, ``chronological_age``; scans of one age in their order
    longest : float, years

    Returns
    -------
    (N, 2) int array
        The rows of the earlier and of the later scan of each of N persons.
    """
    ages = scans["chronological_age"].to_numpy()
    order = np.lexsort((ages, scans["person"]))
    persons = scans["person"].to_numpy()[order]
    apart = np.where(persons[1:] == persons[:-1], np.diff(ages[order]), np.inf)
    pairs = pd.DataFrame({"person": persons[1:], "first": order[:-1], "second": order[1:], "apart": apart})
    pairs = pairs[pairs["apart"] <= longest].sort_values("apart", kind="stable").drop_duplicates("person")
    return pairs.sort_index()[["first", "second"]].to_numpy()


def yearly_slopes(scans: pd.DataFrame, shortest: float) -> pd.DataFrame:
    """Fit a line to the brain ages of each person who was followed for more than `shortest` years.

    Returns
    -------
    DataFrame
        ``person``, ``years`` of follow-up, ``slope`` in years of brain age per year.
    """
    rows = []
    for person, own in scans[scans.duplicated("person", keep=False)].groupby("person"):
        years = np.ptp(own["chronological_age"])
        if years > shortest:
            slope = stats.linregress(own["chronological_age"], own["brain_age"]).slope
            rows.append((person, float(years), float(slope)))
    return pd.DataFrame(rows, columns=["person", "years", "slope"])


def describe_slopes(slopes: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return mean, 95 % interval and SD of slopes; 1 is ageing by the calendar."""
    low, high = interval_of_mean(slopes, seed)
    return {"slope": float(slopes.mean()), "slope_low": low, "slope_high": high, "sd": float(slopes.std(ddof=1))}
