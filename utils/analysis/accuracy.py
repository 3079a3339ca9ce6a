"""The report's sections on accuracy, correction for age, and coverage of intervals."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from utils.analysis import gap_figures as figures
from utils.analysis.gap_correction import COVARIATE, FEWEST_FOR_TRUST, UNCORRECTED, Correction, gaps_of
from utils.analysis.gap_report import Section, Table, cell, number
from utils.analysis.gap_tables import ages_of, one_scan_each
from utils.common.errors import InputError
from utils.evaluation import metrics
from utils.evaluation.reports import plot_ages

FEWEST_FOR_WORST_BIN = 5
CORRECTED = (
    "Fitted on healthy subjects outside the test set; corrections.json has the coefficients and the subjects. The "
    "corrected age of linear-gap uses the chronological age, so its smaller error does not show a better estimate: "
    "judge the network by the uncorrected figures. covariate serves to compare groups and gives no age."
)
NOT_CORRECTED = (
    "No correction was requested (--correction), so all figures of this report are uncorrected. Brain ages are biased "
    "towards the mean age, so the gap decreases with age, and groups of different ages differ in their gap for that "
    "reason alone."
)


def accuracy_row(age: np.ndarray, brain_age: np.ndarray, seed: int) -> dict[str, Any]:
    """Return N and the figures of `metrics.accuracy` with their bootstrap intervals."""
    intervals = metrics.bootstrap(lambda draw: metrics.accuracy(age[draw], brain_age[draw]), len(age), seed)
    values = {name: float(value) for name, value in metrics.accuracy(age, brain_age).items()}
    return {"n": len(age), **values, **intervals}


def accuracy_section(healthy: pd.DataFrame, uncorrected: dict[str, Any], seed: int) -> Section:
    """Report the accuracy without any correction, given as `accuracy_row`, overall and by group."""
    age, brain_age = ages_of(healthy)
    parts = {"age": metrics.decade_of(age)} | {name: healthy[name].to_numpy(str) for name in ("sex", "site")}
    groups = pd.DataFrame(
        [
            {"by": by, "group": group or "unknown", **values}
            for by, labels in parts.items()
            if (labels != "").any()
            for group, values in metrics.errors_by_group(age, brain_age, labels, seed).items()
        ]
    )
    bins = groups[groups["by"] == "age"]
    counted = bins[bins["n"] >= FEWEST_FOR_WORST_BIN]
    worst = counted.sort_values("mae").iloc[-1] if len(counted) else None
    section = Section(
        "accuracy",
        "Accuracy, uncorrected",
        f"Healthy subjects of {age.min():.1f} to {age.max():.1f} years (SD {age.std(ddof=1):.1f}); errors depend on "
        "this range. In brackets: 95 % intervals by the bootstrap over subjects.",
        [
            f"Uncorrected MAE {cell(uncorrected, 'mae')} years, Pearson {number(uncorrected['pearson'])}, N = "
            f"{len(age)}, {age.min():.0f} to {age.max():.0f} years",
            f"Worst age bin with at least {FEWEST_FOR_WORST_BIN} persons: "
            + ("none" if worst is None else f"{worst['group']}, MAE {worst['mae']:.2f} years (N = {worst['n']})"),
            f"Gap and age, uncorrected: Pearson {number(uncorrected['gap_age_pearson'])}, Spearman "
            f"{number(uncorrected['gap_age_spearman'])}",
        ],
    )
    first = healthy["first_stage_age"].to_numpy(np.float64)
    staged = np.isfinite(first).all()
    rows = [{"estimate": "brain age", **uncorrected}]
    rows += [{"estimate": "first stage", **accuracy_row(age, first, seed)}] if staged else []
    section.tables["accuracy"] = Table("Agreement of brain age and age", pd.DataFrame(rows), transposed=True)
    if staged:
        gain = metrics.compare_errors(age, brain_age, first, seed)
        row = {"comparison": "first stage minus brain age", "n": len(age), "difference": gain["difference"]}
        row |= {"difference_low": gain["low"], "difference_high": gain["high"]}
        section.tables["stages"] = Table("Paired difference of the MAE (years)", pd.DataFrame([row]))
    section.tables["errors_by_group"] = Table("Error by age, sex and site", groups)
    drawn = plot_ages(age, brain_age, "Brain age, uncorrected")
    section.figures["brain_age"] = drawn, "Brain age against age, with its fit."
    drawn = figures.plot_intervals(bins, "mae", "MAE (years), 95 % interval")
    section.figures["errors_by_age"] = drawn, "MAE of each age bin with its 95 % interval."
    return section


def correction_section(
    healthy: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    corrections: Sequence[Correction],
    uncorrected: dict[str, Any],
    seed: int,
) -> Section:
    """Show the gap before and after each correction."""
    age, _ = ages_of(healthy)
    gaps = gaps_of(healthy, corrections)
    section = Section("correction", "Correction for age", CORRECTED if corrections else NOT_CORRECTED)
    drawn = figures.plot_gaps(age, gaps, "Chronological age (years)", "Brain-age gap (years)", 0)
    section.figures["gap_and_age"] = drawn, "The gap against age, healthy subjects."
    rows = [{"correction": UNCORRECTED, **uncorrected}]
    for c in corrections:
        row = accuracy_row(age, age + gaps[c.kind], seed)
        kept = {
            k: v for k, v in row.items() if c.kind != COVARIATE or k == "n" or k.startswith(("mean_gap", "gap_age"))
        }
        rows.append({"correction": c.kind, **kept})
    if corrections:
        pearson = ", ".join(f"{row['correction']} {number(row['gap_age_pearson'])}" for row in rows)
        section.headlines.append(f"Gap and age, Pearson: {pearson}")
        section.tables["correction"] = Table("Before and after correction", pd.DataFrame(rows), transposed=True)
    section.warnings = _correction_warnings(corrections, tables) + [
        f"After {row['correction']} the mean gap of the healthy test subjects is {cell(row, 'mean_gap')} years instead "
        "of 0: they differ from the subjects of the fit, and the gaps of patients are shifted by the same amount."
        for row in rows[1:]
        if row["mean_gap_low"] > 0 or row["mean_gap_high"] < 0
    ]
    _add_truth(section, one_scan_each(tables["test"]), corrections, seed)
    return section


def _correction_warnings(corrections: Sequence[Correction], tables: dict[str, pd.DataFrame]) -> list[str]:
    """Return warnings about fits on few subjects, on other ages than those tested, or without the sex."""
    age, _ = ages_of(one_scan_each(tables["test"]))
    warnings = []
    for c in corrections:
        if c.n < FEWEST_FOR_TRUST:
            warnings.append(
                f"The correction was fitted on {c.n} healthy subjects; with fewer than {FEWEST_FOR_TRUST} its slope, "
                "and thus every corrected figure, is uncertain."
            )
        outside = ((age < c.age_min) | (age > c.age_max)).sum()
        if outside:
            warnings.append(
                f"The correction was fitted on ages {c.age_min:.1f} to {c.age_max:.1f}; it extrapolates for {outside} "
                f"of {len(age)} test subjects."
            )
        if c.kind == COVARIATE and "sex" not in c.coefficients:
            unknown = [(tables[role]["sex"] == "").sum() for role in ("fit", "test")]
            warnings.append(
                f"covariate does not include the sex, which is unknown for {unknown[0]} scans of the fit and "
                f"{unknown[1]} of the test set."
            )
    return list(dict.fromkeys(warnings))


def _agreement(gap: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Return the correlation of estimated with true gaps, (..., N) float arrays, and the slope of the estimate."""
    pearson = metrics.correlation(gap, true)
    return {"pearson": pearson, "slope": pearson * gap.std(-1) / true.std(-1)}


def _add_truth(section: Section, persons: pd.DataFrame, corrections: Sequence[Correction], seed: int) -> None:
    """Compare estimated with true gaps if the subjects are simulated."""
    true = (persons["true_brain_age"] - persons["chronological_age"]).to_numpy(np.float64)
    if not np.isfinite(true).all():
        return
    gaps = gaps_of(persons, corrections)
    rows = []
    for name, gap in gaps.items():
        values: dict[str, Any] = {key: float(value) for key, value in _agreement(gap, true).items()}
        values |= metrics.bootstrap(lambda draw, gap=gap: _agreement(gap[draw], true[draw]), len(gap), seed)  # type: ignore[misc]
        values |= {"mean_error": float((gap - true).mean()), "sd_of_error": float((gap - true).std(ddof=1))}
        rows.append({"correction": name, "n": len(gap), **values})
    caption = "SIMULATED subjects: agreement of estimated and true gap (years); the ideal slope is 1"
    section.tables["truth"] = Table(caption, pd.DataFrame(rows))
    drawn = figures.plot_gaps(true, gaps, "True gap (years)", "Estimated gap (years)", 1)
    section.figures["truth"] = drawn, "Estimated against true gap of simulated subjects."


def fit_interval(calibration: pd.DataFrame, coverage: float) -> float:
    """Return the half width, years, of split-conformal intervals; refuse a calibration set that is too small."""
    age, brain_age = ages_of(calibration)
    radius = metrics.interval_radius(np.abs(brain_age - age), coverage)
    if not np.isfinite(radius):
        fewest = next(n for n in count(1) if np.isfinite(metrics.interval_radius(np.zeros(n), coverage)))
        raise InputError(
            f"--calibration_predictions: {len(age)} healthy persons are too few for intervals of {coverage:.0%}; give "
            f"at least {fewest}, or a lower --coverage"
        )
    return radius


def uncertainty_section(healthy: pd.DataFrame, radius: float, n: int, nominal: float) -> Section:
    """Compare nominal and observed coverage of the intervals of `fit_interval` on n subjects, overall and by age."""
    age, brain_age = ages_of(healthy)
    bins = metrics.decade_of(age)
    rows = []
    for group in ["all", *np.unique(bins)]:
        inside = (np.abs(brain_age - age) <= radius)[(bins == group) | (group == "all")]
        interval = stats.binomtest(int(inside.sum()), len(inside)).proportion_ci(0.95, "exact")
        rows.append({"group": group, "n": len(inside), "coverage": float(inside.mean())})
        rows[-1] |= {"coverage_low": float(interval.low), "coverage_high": float(interval.high)}
    table = pd.DataFrame(rows)
    section = Section(
        "uncertainty",
        "Uncertainty",
        f"Split-conformal intervals: uncorrected brain age ± {radius:.2f} years, from the errors of {n} "
        "calibration subjects. The nominal coverage holds on average over new subjects like these; it may fail within "
        "an age bin, most often for the youngest and oldest. In brackets: exact 95 % binomial intervals.",
        [f"Intervals of {nominal:.0%}: observed coverage {cell(rows[0], 'coverage')}"],
    )
    section.tables["coverage"] = Table("Observed coverage by age", table)
    drawn = figures.plot_intervals(table[1:], "coverage", "Share of intervals that contain the age", nominal)
    section.figures["coverage"] = drawn, "Coverage in each age bin, with exact binomial intervals."
    return section
