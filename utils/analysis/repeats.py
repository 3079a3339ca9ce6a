"""Reliability of brain ages in repeated scans, and their change over years."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from utils.analysis.gap_correction import Correction, gaps_of
from utils.analysis.gap_figures import plot_bland_altman
from utils.analysis.gap_report import Section, Table, number
from utils.analysis.gap_tables import ages_of, one_scan_each, sorted_scans
from utils.evaluation.metrics import interval_of_mean

FEWEST_PAIRS = 5


def intraclass_correlation(values: np.ndarray) -> dict[str, float]:
    """Compute ICC(2,1), the absolute agreement of repeated measurements, and its 95 % interval.

    Parameters
    ----------
    values : (N, K) float array
        K measurements of each of N persons, N and K at least 2.

    References
    ----------
    McGraw and Wong, "Forming inferences about some intraclass correlation
    coefficients", Psychological Methods 1996: ICC(A,1) of table 4, its
    interval of table 7.
    """
    n, k = values.shape
    grand = values.mean()
    rows = k * ((values.mean(1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((values.mean(0) - grand) ** 2).sum() / (k - 1)
    freedom = (n - 1) * (k - 1)
    total = ((values - grand) ** 2).sum()
    # The lower limit avoids a division by zero if all repeats are equal.
    error = max((total - (n - 1) * rows - (k - 1) * columns) / freedom, 1e-12 * total, np.finfo(float).tiny)
    icc = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    a = k * icc / (n * (1 - icc))
    b = 1 + a * (n - 1)
    v = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / freedom)
    f_low, f_high = stats.f.ppf(0.975, n - 1, v), stats.f.ppf(0.975, v, n - 1)
    spread = k * columns + (k * n - k - n) * error
    return {
        "icc": float(icc),
        "icc_low": float(n * (rows - f_low * error) / (f_low * spread + n * rows)),
        "icc_high": float(n * (f_high * rows - error) / (spread + n * f_high * rows)),
    }


def bland_altman(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Describe the differences of two measurements of the same persons.

    Returns
    -------
    dict
        ``bias``, the mean of `other` minus `one`; ``lower_limit``,
        ``upper_limit``, the 95 % limits of agreement; ``within_subject_sd``; years.
    """
    difference = other - one
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    return {
        "bias": bias,
        "lower_limit": bias - 1.96 * sd,
        "upper_limit": bias + 1.96 * sd,
        "within_subject_sd": float(np.sqrt((difference**2).mean() / 2)),
    }


def retest_pairs(scans: pd.DataFrame, longest: float) -> np.ndarray:
    """Pair the two scans of each person that are closest in time, at most `longest` years apart.

    Returns
    -------
    (N, 2) int array
        The rows, numbered from 0, of the earlier and the later scan; `scans` are ordered by `sorted_scans`.
    """
    apart = scans.groupby("person")["chronological_age"].diff().rename("apart")
    previous = scans.index.to_series().groupby(scans["person"]).shift().rename("first")
    pairs = pd.concat([scans["person"], previous, apart], axis=1)[apart <= longest]
    closest = pairs.sort_values("apart", kind="stable").drop_duplicates("person").sort_index()
    return np.column_stack([closest["first"], closest.index]).astype(int)


def yearly_slopes(scans: pd.DataFrame, shortest: float) -> np.ndarray:
    """Return the slope of brain age over age of N persons followed for more than `shortest` years, (N,) float array."""
    slopes = [
        stats.linregress(own["chronological_age"], own["brain_age"]).slope
        for _, own in scans[scans.duplicated("person", keep=False)].groupby("person")
        if np.ptp(own["chronological_age"]) > shortest
    ]
    return np.array(slopes)


def repeats_section(
    test: pd.DataFrame, healthy_label: str, corrections: Sequence[Correction], retest_years: float, seed: int
) -> Section | None:
    """Describe repeated scans of each group, the healthy subjects first; None if there are none."""
    section = Section(
        "repeats",
        "Repeated scans",
        "Test-retest: the two scans of each person that are closest in time, no further apart than --retest_years "
        f"({retest_years:g}). A wide age range raises the ICC of brain ages, and of a gap that depends on age; compare "
        "it with the ICC of a corrected gap. Slope: change of the uncorrected brain age per year in persons followed "
        "for longer.",
    )
    scans = sorted_scans(test).reset_index(drop=True)
    diagnosis = scans["person"].map(one_scan_each(test).set_index("person")["diagnosis"])  # of the first scan
    retest: list[dict[str, Any]] = []
    followed: list[dict[str, Any]] = []
    for label in sorted(set(diagnosis), key=lambda label: (label != healthy_label, label)):
        table, group = scans[diagnosis == label].reset_index(drop=True), label or "all"
        pairs, slopes = retest_pairs(table, retest_years), yearly_slopes(table, retest_years)
        section.warnings += [
            f"{group}: {len(found)} persons are too few for {what}; at least {FEWEST_PAIRS} are needed."
            for found, what in ((pairs, "test-retest agreement"), (slopes, "a slope"))
            if 0 < len(found) < FEWEST_PAIRS
        ]
        if len(slopes) >= FEWEST_PAIRS:
            low, high = interval_of_mean(slopes, seed)
            mean, sd = float(slopes.mean()), float(slopes.std(ddof=1))
            row = {"group": group, "n": len(slopes), "slope": mean, "slope_low": low, "slope_high": high, "sd": sd}
            followed.append(row)
            section.headlines.append(
                f"Follow-up, {group}, {len(slopes)} persons: {mean:.2f} years of brain age per year"
            )
        if len(pairs) < FEWEST_PAIRS:
            continue
        first, second = pairs.T
        quantities = {"brain age": ages_of(table)[1]}
        quantities |= {f"gap ({name})": gap for name, gap in gaps_of(table, corrections).items()}
        rows: list[dict[str, Any]] = [
            {"group": group, "quantity": name, "n": len(pairs), **intraclass_correlation(values[pairs])}
            | bland_altman(values[first], values[second])
            for name, values in quantities.items()
        ]
        retest += rows
        lines = [rows[0][name] for name in ("bias", "lower_limit", "upper_limit")]
        brain_age = quantities["brain age"]
        section.figures[f"bland_altman_{len(section.figures) + 1}"] = (
            plot_bland_altman(brain_age[first], brain_age[second], lines),
            f"Differences of repeated brain ages against their means (Bland-Altman), {group}.",
        )
        section.headlines.append(
            f"Test-retest, {group}, {len(pairs)} persons: ICC(2,1) "
            + ", ".join(f"{row['quantity']} {number(row['icc'])}" for row in rows)
            + f"; within-subject SD of brain age {rows[0]['within_subject_sd']:.2f} years"
        )
    if retest:
        caption = "Test-retest of brain age and gaps: ICC(2,1), bias and 95 % limits of agreement (years)"
        section.tables["retest"] = Table(caption, pd.DataFrame(retest), transposed=True)
    if followed:
        section.tables["slopes"] = Table("Years of brain age per year of follow-up", pd.DataFrame(followed))
    return section if section.warnings or section.headlines else None
