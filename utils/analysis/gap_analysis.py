"""The parts of the report on the brain-age gap, in the order in which they are read."""

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from utils.analysis import gap_figures as figures
from utils.analysis.conformal import Intervals, fit_intervals, observed_coverage
from utils.analysis.diagnosis import (
    FEWEST_OF_A_CLASS,
    LARGEST_AGE_DIFFERENCE,
    PROTOCOLS,
    Classification,
    age_imbalance,
    classify,
    match_by_age,
    permutation_p_value,
    without_classifier,
)
from utils.analysis.gap_correction import Correction, doubts, fit_correction, load_corrections
from utils.analysis.gap_report import Section, Table, cell, number
from utils.analysis.gap_tables import check_healthy, one_scan_each, sorted_scans
from utils.analysis.leakage import (
    SHOWN,
    Seen,
    find_leaks,
    names_of,
    seen_by_checkpoints,
    seen_by_weights,
    suspect_leaks,
)
from utils.analysis.repeats import (
    FEWEST_PAIRS,
    bland_altman,
    describe_slopes,
    intraclass_correlations,
    retest_pairs,
    yearly_slopes,
)
from utils.common.errors import InputError
from utils.evaluation.metrics import (
    accuracy,
    bootstrap,
    compare_errors,
    correlation,
    decade_of,
    errors_by_group,
    interval_of_mean,
)
from utils.evaluation.reports import plot_ages

UNCORRECTED = "uncorrected"
FEWEST_FOR_WORST_BIN = 5
FEWEST_FOR_INTERVALS = 30  # of a class: with fewer, bootstrap intervals of an AUC cover too seldom
LARGEST_LABEL_DIFFERENCE = 1.0  # years, between the ages that two tables give a scan
UNLIKELY = 0.05  # p below which sites and diagnoses count as linked
MACHINE = "SVM on the gap, "
PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "matplotlib")


def ages_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return chronological and brain ages, (N,) float64 arrays, years."""
    return table["chronological_age"].to_numpy(np.float64), table["brain_age"].to_numpy(np.float64)


def gaps_of(table: pd.DataFrame, corrections: Sequence[Correction]) -> dict[str, np.ndarray]:
    """Return the uncorrected gap, and after it each corrected one, (N,) float64 arrays, years."""
    age, brain_age = ages_of(table)
    return {UNCORRECTED: brain_age - age} | {c.kind: c.corrected_gap(table) for c in corrections}


def prepare_corrections(args: Namespace, fit: pd.DataFrame, test: pd.DataFrame) -> list[Correction]:
    """Fit the corrections asked for, or read saved ones.

    The covariates hold the sex where it is known of everybody, tested or fitted on.

    Raises
    ------
    InputError
        If the fit holds too few subjects, or the file lacks a kind.
    """
    if args.correction_file:
        saved = load_corrections(args.correction_file)
        missing = set(args.correction) - {c.kind for c in saved}
        if missing:
            raise InputError(f"{args.correction_file}: holds no {', '.join(sorted(missing))}; leave --correction out")
        return [c for c in saved if c.kind in (args.correction or {c.kind})]
    with_sex = set(fit["sex"]) == {"F", "M"} and bool((test["sex"] != "").all())
    return [fit_correction(kind, one_scan_each(fit), args.fit_predictions, with_sex) for kind in args.correction]


def leakage_section(
    args: Namespace, tables: dict[str, pd.DataFrame], corrections: Sequence[Correction], shipped: Seen
) -> tuple[Section, list[tuple[float, float]]]:
    """Look for persons on both sides; also return the range of each network's training ages.

    `shipped` tells whom the networks of `args.weights_dir` have seen.

    Raises
    ------
    InputError
        If there are any and ``--allow_leakage`` is not set.
    """
    seen = seen_by_checkpoints(args.checkpoints)
    names = {role: names_of(table) for role, table in tables.items()}
    if args.correction_file:
        names["fit"] = {person: {person} for c in corrections for person in c.persons}
    others: dict[str, set[str]] = {f"the fit of {c.kind}": set(c.persons) for c in corrections}
    if len(tables["calibration"]):
        others["the calibration set"] = set().union(*names["calibration"].values())
    others |= seen.training | seen.validation | shipped.training
    leaks = find_leaks(names["test"], others, "the test set")
    # Out-of-fold ages of those whom ready weights were trained on are fit for both.
    for role, name in (("fit", "the correction's fit"), ("calibration", "the calibration set")):
        leaks += find_leaks(names[role], seen.training, name)
    if leaks and not args.allow_leakage:
        raise InputError(
            [f"leakage: {leak}; take them out, or say that it is meant (--allow_leakage true)" for leak in leaks]
        )
    warnings = [*seen.warnings, *suspect_leaks(names["test"], others)]
    if not args.checkpoints and not args.weights_dir:
        warnings.append(
            "Whom the networks were trained on is not known here (--checkpoints, --weights_dir), so that leakage from "
            "training cannot be excluded."
        )
    for role, what in (("fit", "correction rests"), ("calibration", "intervals rest")):
        unknown = (tables[role]["diagnosis"] == "").sum()
        if unknown:
            warnings.append(
                f"The {what} on {unknown} scans without a diagnosis, taken to be of healthy subjects because you "
                "gave them as such."
            )
        known = find_leaks(names[role], shipped.training, f"those that the {what} on")
        warnings += [
            f"{line}. Their brain ages must be of networks that never saw them (out of folds)." for line in known
        ]
    text = "No person of the test set may have taken part in anything that the figures below rest on. "
    text += f"Compared with the test set: {'; '.join(others)}." if others else "There was nothing to compare with."
    alarms = [f"LEAKAGE, allowed by --allow_leakage: {leak}. What rests on it is too good." for leak in leaks]
    headlines = ["No leakage was found in what was compared"] if others and not leaks else []
    return Section("leakage", "Leakage", text, headlines, warnings, alarms), [*seen.age_ranges, *shipped.age_ranges]


def data_section(
    test: pd.DataFrame, healthy: pd.DataFrame, age_ranges: Sequence[tuple[float, float]], with_labels: bool
) -> Section:
    """Say who was tested, and what is odd about them."""
    persons = one_scan_each(test)
    rows = []
    for name, group in persons.groupby(persons["diagnosis"].replace("", "all"), sort=False):
        age, brain_age = ages_of(group)
        sexes = group["sex"][group["sex"] != ""]
        rows.append({
            "group": name, "persons": len(group), "scans": int(test["person"].isin(group["person"]).sum()),
            "age_mean": age.mean(), "age_sd": age.std(ddof=1) if len(age) > 1 else np.nan,
            "age_min": age.min(), "age_max": age.max(), "share_of_women": (sexes == "F").mean(),
            "sex_unknown": len(group) - len(sexes), "mean_gap": (brain_age - age).mean(),
        })  # fmt: skip
    section = Section(
        "data", "Subjects",
        "Each person counts once, with the first scan. Accuracy is that of the healthy subjects, or of everybody where no "
        "diagnosis is known. Gap: brain age minus chronological age; the one in this table is uncorrected.",
        [f"{len(persons)} persons, {len(test)} scans; accuracy on {len(healthy)}"],
    )  # fmt: skip
    section.tables["data"] = Table("Who was tested", pd.DataFrame(rows))
    if (persons["site"] != "").any() and (persons["diagnosis"] != "").any():
        counts = pd.crosstab(persons["site"].replace("", "unknown"), persons["diagnosis"])
        section.tables["sites"] = Table("Persons of each site", counts.reset_index())
        if min(counts.shape) > 1 and stats.chi2_contingency(counts).pvalue < UNLIKELY:
            section.warnings.append(
                "Sites differ in the diagnoses of their subjects, so that what differs between scanners looks like disease. "
                "Compare patients with healthy subjects of the same site."
            )
    if persons["diagnosis"].nunique() == 1 and (persons["diagnosis"] != "").any():
        section.warnings.append(
            "There is one diagnosis only, so nothing is said of telling patients from healthy subjects."
        )
    changed = test[test["diagnosis"] != ""].groupby("person")["diagnosis"].nunique()
    outside = persons[outside_training(persons, age_ranges)]
    differ = test[(test["label_age"] - test["chronological_age"]).abs() > LARGEST_LABEL_DIFFERENCE]
    for found, says in (
        (changed[changed > 1].index, "have a diagnosis that changes between scans, and count with that of the first"),
        (outside["subject_id"], "are outside the networks' training ages; their brain ages are extrapolations"),
        (test["subject_id"][~test["labelled"]] if with_labels else [], "have no row in the label table"),
        (differ["subject_id"], "have another age in the label table; that beside the brain age was taken"),
    ):
        if len(found):
            names = ", ".join(found[:SHOWN]) + (" and more" if len(found) > SHOWN else "")
            section.warnings.append(f"{len(found)} of {len(test)} scans or persons {says}: {names}.")
    return section


def outside_training(table: pd.DataFrame, age_ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """Tell who is younger or older than anybody that one of the networks was trained on, (N,) bool array."""
    age, _ = ages_of(table)
    return np.any([(age < low) | (age > high) for low, high in age_ranges] or [age < 0], axis=0)


def accuracy_section(healthy: pd.DataFrame, uncorrected: dict[str, Any], seed: int) -> Section:
    """State the accuracy without any correction, which `accuracy_row` gives, overall and where it is worst."""
    age, brain_age = ages_of(healthy)
    rows = [{"estimate": "brain age", **uncorrected}]
    first = healthy["first_stage_age"].to_numpy(np.float64)
    if np.isfinite(first).all():
        rows.append({"estimate": "first stage", **accuracy_row(age, first, seed)})
    parts = {"age": decade_of(age)} | {name: healthy[name].to_numpy(str) for name in ("sex", "site")}
    by_group = [
        {"by": by, "group": group or "unknown", **values}
        for by, groups in parts.items()
        if (groups != "").any()
        for group, values in errors_by_group(age, brain_age, groups, seed).items()
    ]
    groups = pd.DataFrame(by_group)
    bins = groups[groups["by"] == "age"]
    counted = bins[bins["n"] >= FEWEST_FOR_WORST_BIN]
    worst = (counted if len(counted) else bins).sort_values("mae").iloc[-1]
    best = rows[0]
    section = Section(
        "accuracy", "Accuracy, uncorrected",
        f"Healthy subjects of {age.min():.1f} to {age.max():.1f} years (SD {age.std(ddof=1):.1f}); an error is to be read "
        "beside that range. In brackets: 95 % intervals by the bootstrap over subjects.",
        [
            f"Uncorrected MAE {best['mae']:.2f} years ({best['mae_low']:.2f} to {best['mae_high']:.2f}), Pearson "
            f"{number(best['pearson'])}, N = {len(age)}, {age.min():.0f} to {age.max():.0f} years",
            f"Worst age bin of those with {FEWEST_FOR_WORST_BIN} persons or more: {worst['group']}, MAE {worst['mae']:.2f} years "
            f"(N = {worst['n']})",
            f"Gap and age, uncorrected: Pearson {number(best['gap_age_pearson'])}, Spearman "
            f"{number(best['gap_age_spearman'])}",
        ],
    )  # fmt: skip
    section.tables["accuracy"] = Table("How well brain ages match ages", pd.DataFrame(rows), upright=True)
    if len(rows) > 1:
        change = np.abs(first - age) - np.abs(brain_age - age)
        p_value = float(stats.wilcoxon(change).pvalue) if change.any() else 1.0
        gain = compare_errors(age, brain_age, first, seed)
        row = {
            "comparison": "MAE of the first stage minus MAE of the brain age (years)", "n": len(age),
            "difference": gain["difference"], "difference_low": gain["low"], "difference_high": gain["high"],
            "p_value": p_value,
        }  # fmt: skip
        section.tables["stages"] = Table(
            "The two stages, paired; p of Wilcoxon's signed-rank test on absolute errors", pd.DataFrame([row])
        )
    section.tables["errors_by_group"] = Table("Error by age, sex and site", groups)
    section.figures["brain_age"] = (
        plot_ages(age, brain_age, "Brain age, uncorrected"), "Brain age against age; the dashed line is the fit.",
    )  # fmt: skip
    section.figures["errors_by_age"] = (
        figures.plot_errors(bins.astype({"mae_low": float, "mae_high": float}), "Error by age"),
        "MAE of each age bin with its 95 % interval.",
    )
    return section


def accuracy_row(age: np.ndarray, brain_age: np.ndarray, seed: int) -> dict[str, Any]:
    """Return N and the figures of `accuracy` with their intervals."""
    values = {name: float(value) for name, value in accuracy(age, brain_age).items()}
    return {"n": len(age), **values, **bootstrap(lambda draw: accuracy(age[draw], brain_age[draw]), len(age), seed)}


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
    figure = {"gap_and_age": (figures.plot_gap_against_age(age, gaps), "The gap against age, healthy subjects.")}
    if not corrections:
        return Section(
            "correction", "Correction for age",
            "None was asked for (--correction), so every figure of this report is uncorrected. Brain ages lean towards the "
            "mean age, so that the gap falls with age; groups of different ages then differ in the gap for that alone.",
            figures=figure,
        )  # fmt: skip
    no_ages = {c.kind for c in corrections if not c.gives_ages}
    rows = []
    for name, gap in gaps.items():
        row = uncorrected if name == UNCORRECTED else accuracy_row(age, age + gap, seed)
        gap_only = name in no_ages
        keep = {k: v for k, v in row.items() if not gap_only or k == "n" or k.startswith(("mean_gap", "gap_age"))}
        rows.append({"correction": name, **keep})
    coefficients = [
        {"correction": c.kind, "coefficient": name, "value": value, "n": c.n, "fit_age_min": c.age_min,
         "fit_age_max": c.age_max, "fitted_on": ", ".join(c.files)}
        for c in corrections for name, value in c.coefficients.items()
    ]  # fmt: skip
    section = Section(
        "correction", "Correction for age",
        "Fitted on healthy subjects outside the test set; the coefficients and whom they were fitted on are in "
        "corrections.json. A corrected age of linear-gap makes use of the chronological age, so its smaller error is no "
        "evidence of a better estimate: judge the network by the first column. covariate serves to compare groups and "
        "gives no age.",
        [
            "Gap and age, Pearson: "
            + ", ".join(f"{row['correction']} {number(row['gap_age_pearson'])}" for row in rows)
        ],
        list(dict.fromkeys(line for c in corrections for line in doubts(c, ages_of(one_scan_each(tables["test"]))[0]))),
        figures=figure,
    )  # fmt: skip
    section.warnings += [
        f"After {row['correction']} the gap of the healthy test subjects is {cell(row, 'mean_gap')} years in the mean instead of "
        "0: they differ from those it was fitted on, and the gaps of patients are shifted alike."
        for row in rows[1:]
        if row["mean_gap_low"] > 0 or row["mean_gap_high"] < 0
    ]
    unknown = [(tables[role]["sex"] == "").sum() for role in ("fit", "test")]
    if any(c.kind == "covariate" and "sex" not in c.coefficients for c in corrections) and sum(unknown) > 0:
        section.warnings.append(
            f"covariate leaves the sex out, for it is not known of {unknown[0]} scans of the fit and {unknown[1]} of the test set."
        )
    section.tables["correction"] = Table("Before and after", pd.DataFrame(rows), upright=True)
    section.tables["coefficients"] = Table("Coefficients", pd.DataFrame(coefficients))
    return section


def diagnosis_section(
    args: Namespace, test: pd.DataFrame, patient_labels: Sequence[str], corrections: Sequence[Correction]
) -> Section:
    """Tell each group of patients from the healthy subjects.

    Raises
    ------
    InputError
        If a group that ``--patient_labels`` names has too few subjects.
    """
    persons = one_scan_each(test)
    protocol = PROTOCOLS[args.protocol]
    matched = " Pairs matched by age." if args.match_ages else ""
    section = Section("diagnosis", "Diagnosis", protocol.text + matched)
    section.text += (
        f" p: share of {args.permutations} permutations of the labels that do as well in one repeat. AUC compares "
        "patients and healthy subjects tested by the same machine; where the direction is given, a machine adds a threshold to "
        "the gap and leaves its AUC nearly as it is. A machine that learns the direction too has no interval, which would miss "
        "0.5 too often where there is nothing to find; its AUC may lie below 0.5 by chance. Read the gap's AUC beside "
        "that of age and sex, whose direction is chosen to suit. Intervals and p take the two groups as independent samples."
    )
    pairs = {}
    problems = []
    skipped = []
    for label in patient_labels:
        pair = persons[persons["diagnosis"].isin([args.healthy_label, label])]
        if args.match_ages:
            pair = pair.iloc[match_by_age(ages_of(pair)[0], (pair["diagnosis"] == label).to_numpy())]
        counts = {name: int((pair["diagnosis"] == name).sum()) for name in (label, args.healthy_label)}
        too_few = [
            f"{label}: {count} persons with {name}{' after matching by age' if args.match_ages else ''}; at least "
            f"{FEWEST_OF_A_CLASS} are needed for a cross-validation"
            for name, count in counts.items()
            if count < FEWEST_OF_A_CLASS
        ]
        if not too_few:
            pairs[label] = pair
        elif args.patient_labels:
            problems += [f"--patient_labels {line} (leave {label} out, or add subjects)" for line in too_few]
        else:
            skipped += [f"Left out, {line}." for line in too_few]
    if problems:
        raise InputError(problems)
    section.warnings += skipped
    total = args.permutations * len(pairs) * (1 + len(corrections))
    rows: list[dict[str, Any]] = []
    with tqdm(total=total, desc="permutations", unit="", disable=None, leave=False) as bar:
        for label, pair in pairs.items():
            comparison = f"{label} against {args.healthy_label}"
            found = list(_compare_scores(args, section, pair, label, corrections, bar))
            rows += [{"comparison": comparison, **row} for row in found]
            how = ", the released script's protocol" if args.protocol == "paper" else ""
            section.headlines.append(f"{comparison}{how}, AUC of scores of the gap: " + "; ".join(
                f"{row['score'].removeprefix(MACHINE)} {cell(row, 'auc')}, p {cell(row, 'p_value')}"
                for row in found if row["score"].startswith(MACHINE)
            ))  # fmt: skip
    groups = group_gaps(persons, [args.healthy_label, *patient_labels], corrections, args.seed)
    everybody = " (everybody, not matched)" if args.match_ages else ""
    section.tables["group_gaps"] = Table(
        f"Gaps of the groups{everybody}, years, and how they differ from the healthy subjects'", groups
    )
    if rows:
        section.tables["diagnosis"] = Table("Telling patients from healthy subjects", pd.DataFrame(rows))
    for name, gap in gaps_of(persons, corrections).items():
        parts = {
            label: gap[(persons["diagnosis"] == label).to_numpy()] for label in [args.healthy_label, *patient_labels]
        }
        section.figures[f"gap_by_diagnosis_{name}"] = (
            figures.plot_groups(parts, name),
            f"The gap ({name}) of each group{everybody}.",
        )
    return section


def group_gaps(
    persons: pd.DataFrame, labels: Sequence[str], corrections: Sequence[Correction], seed: int
) -> pd.DataFrame:
    """Give each group's gap, and by how much it differs from that of the first, the healthy one.

    Parameters
    ----------
    persons : DataFrame, one scan each
    labels : sequence of str
    corrections : sequence of Correction
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        ``mean_gap``, ``difference`` (years) with 95 % intervals, Cohen's d,
        and p of Welch's test.
    """
    rows = []
    for name, gap in gaps_of(persons, corrections).items():
        healthy = gap[(persons["diagnosis"] == labels[0]).to_numpy()]
        for label in labels:
            own = gap[(persons["diagnosis"] == label).to_numpy()]
            row: dict[str, Any] = {"gap": name, "group": label, "n": len(own), "mean_gap": float(own.mean())}
            if min(len(own), len(healthy)) > 1:
                row["mean_gap_low"], row["mean_gap_high"] = interval_of_mean(own, seed)
            if label != labels[0] and min(len(own), len(healthy)) > 1:
                test = stats.ttest_ind(own, healthy, equal_var=False)
                interval = test.confidence_interval(0.95)
                spread = np.sqrt(((len(own) - 1) * own.var(ddof=1) + (len(healthy) - 1) * healthy.var(ddof=1))
                                 / (len(own) + len(healthy) - 2))  # fmt: skip
                row |= {
                    "difference": float(own.mean() - healthy.mean()), "difference_low": float(interval.low),
                    "difference_high": float(interval.high), "cohens_d": float((own.mean() - healthy.mean()) / spread),
                    "p_value": float(test.pvalue),
                }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def _compare_scores(
    args: Namespace, section: Section, pair: pd.DataFrame, label: str, corrections: Sequence[Correction], bar: Any
) -> Iterator[dict[str, Any]]:
    """Give a row for each score that shall tell the two groups apart; add figures and warnings."""
    protocol = PROTOCOLS[args.protocol]
    age, _ = ages_of(pair)
    patient = (pair["diagnosis"] == label).to_numpy()
    title = f"{label} against {args.healthy_label}"
    counts = {"n_patients": int(patient.sum()), "n_healthy": int((~patient).sum())}

    def row(score: str, result: Classification, p_value: float = np.nan) -> dict[str, Any]:
        low, high = result.auc_interval(args.seed) if result.direction_given else (np.nan, np.nan)
        own = {"score": score, **counts, "auc": result.auc(), "auc_low": low, "auc_high": high, "p_value": p_value}
        if score.startswith("SVM"):
            own |= result.rates()
            if args.protocol == "paper":
                own["hard_label_auc"] = result.hard_label_auc()
        return own

    def machine(*columns: np.ndarray) -> Classification:
        features = np.column_stack(columns)
        return classify(features, patient, protocol, args.repeats, args.seed, rising=len(columns) == 1)

    gaps = gaps_of(pair, corrections)
    for name, gap in gaps.items():
        result, plain = machine(gap), without_classifier(gap, patient)
        p_value = permutation_p_value(gap, patient, protocol, args.permutations, args.seed, bar.update)
        yield row(f"{MACHINE}{name}", result, p_value)
        yield row(f"the gap itself, {name}", plain)
        # The number keeps labels apart that differ in punctuation alone.
        section.figures[re.sub(r"\W+", "_", f"roc_{len(section.figures) + 1:02d}_{label}_{name}")] = (
            figures.plot_roc(f"{title}, gap {name}", result, plain), f"ROC of the gap ({name}) for {title}.",
        )  # fmt: skip

    def either_way(what: str, score: np.ndarray, more: str, less: str) -> dict[str, Any]:
        result = without_classifier(score, patient)
        turned = result.auc() < 0.5
        return row(
            f"{what} itself, {less if turned else more} is ill",
            without_classifier(-score, patient) if turned else result,
        )

    yield either_way("age", age, "older", "younger")
    if (pair["sex"] != "").all():
        sex = (pair["sex"] == "M").to_numpy(np.float64)
        yield either_way("sex", sex, "male", "female")
        yield row("SVM on age and sex", machine(age, sex))
        yield row("SVM on age, sex and gap, uncorrected", machine(age, sex, gaps[UNCORRECTED]))
    else:
        section.warnings.append(f"{title}: the sex of some subjects is not known, so it serves as no baseline.")
        yield row("SVM on age and gap, uncorrected", machine(age, gaps[UNCORRECTED]))
    if min(counts.values()) < FEWEST_FOR_INTERVALS:
        section.warnings.append(
            f"{title}: with {counts['n_patients']} and {counts['n_healthy']} persons the intervals of the AUC are too narrow."
        )
    years, standardized, p_value = age_imbalance(age, patient)
    if abs(standardized) > LARGEST_AGE_DIFFERENCE:
        section.warnings.append(
            f"{title}: the patients are {abs(years):.1f} years {'older' if years > 0 else 'younger'} in the mean "
            f"({standardized:+.2f} SD, p {number(p_value, 'p_value')}), so that the gap's dependence on age mixes with the disease. "
            + (
                "The pairs still differ."
                if args.match_ages
                else "See what age alone tells, and match by age (--match_ages true)."
            )
        )


def uncertainty_section(healthy: pd.DataFrame, intervals: Intervals) -> Section:
    """Compare the promised with the observed share of intervals that hold the age."""
    age, brain_age = ages_of(healthy)
    bins = decade_of(age)
    rows: list[dict[str, Any]] = []
    for kind, normalized in (("plain", False), ("normalized", True)):
        width = intervals.half_width(brain_age, normalized)
        inside = np.abs(brain_age - age) <= width
        for bin_ in ["all", *np.unique(bins)]:
            chosen = (bins == bin_) | (bin_ == "all")
            rows.append({
                "interval": kind, "age_bin": bin_, "n": int(chosen.sum()), "nominal": intervals.coverage,
                **observed_coverage(inside[chosen]), "mean_half_width": float(width[chosen].mean()),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    overall = table[table["age_bin"] == "all"]
    section = Section(
        "uncertainty", "Uncertainty",
        f"Split-conformal intervals around the uncorrected brain age, from the errors of {intervals.n} calibration subjects. "
        "Plain: the same width for all. Normalized: wider in those decades of the brain age where errors were larger. The "
        "promise holds on the average over new subjects like those of the calibration; within an age bin it may fail, and "
        "where brain ages lean towards the mean age it does so for the youngest and oldest. In brackets: exact 95 % "
        "binomial intervals.",
        [
            f"Intervals of {intervals.coverage:.0%} ({row.interval}) hold the age of {row.coverage:.1%} "
            f"({row.coverage_low:.1%} to {row.coverage_high:.1%}) of the subjects"
            for row in overall.itertuples()
        ],
    )  # fmt: skip
    section.tables["coverage"] = Table("Promised and observed coverage", table)
    by_bin = table[table["age_bin"] != "all"]
    section.figures["coverage"] = (
        figures.plot_coverage(by_bin, intervals.coverage), "Coverage in each age bin, with exact binomial intervals.",
    )  # fmt: skip
    return section


def repeats_section(
    test: pd.DataFrame, healthy_label: str, corrections: Sequence[Correction], retest_years: float, seed: int
) -> Section | None:
    """Describe repeated scans of each group, the healthy subjects first, if there are any."""
    scans = sorted_scans(test).reset_index(drop=True)
    diagnosis = scans["person"].map(one_scan_each(test).set_index("person")["diagnosis"])  # that of the first scan
    labels = sorted(set(diagnosis), key=lambda label: (label != healthy_label, label))
    groups = {label or "all": scans[diagnosis == label].reset_index(drop=True) for label in labels}
    pairs = {label: retest_pairs(table, retest_years) for label, table in groups.items()}
    slopes = {label: yearly_slopes(table, retest_years) for label, table in groups.items()}
    if not any(map(len, [*pairs.values(), *slopes.values()])):
        return None
    section = Section(
        "repeats", "Repeated scans",
        f"Test and retest: those two scans of a person that lie closest, at most {retest_years:g} "
        f"year{'' if retest_years == 1 else 's'} apart. Their agreement is flattered by the range of ages: that of brain ages, and that "
        "of a gap as far as it depends on age, so read a corrected gap's. Slope: of a line through a person's brain ages, "
        "uncorrected, over a longer time.",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for label, (first, second) in {label: pair.T for label, pair in pairs.items()}.items():
        if len(first) < FEWEST_PAIRS:
            continue
        quantities = {"brain age": ages_of(groups[label])[1]} | {
            f"gap, {name}": gap for name, gap in gaps_of(groups[label], corrections).items()
        }
        for name, values in quantities.items():
            row: dict[str, Any] = {"group": label, "quantity": name, "n": len(first)}
            for icc, figure in intraclass_correlations(np.column_stack([values[first], values[second]])).items():
                row |= {icc if key == "value" else f"{icc}_{key}": value for key, value in figure.items()}
            rows.append(row | bland_altman(values[first], values[second]))
        agreement = rows[-len(quantities)]
        brain_age = quantities["brain age"]
        section.figures[f"bland_altman_{len(section.figures) + 1}"] = (
            figures.plot_bland_altman(
                brain_age[first], brain_age[second],
                [agreement["bias"], agreement["limit_low"], agreement["limit_high"]],
            ),
            f"Differences of two brain ages of a person against their mean (Bland and Altman), {label}.",
        )  # fmt: skip
        section.headlines.append(
            f"Test-retest, {label}, {len(first)} persons: ICC(2,1) of brain age {number(agreement['icc_2_1'])}, of the gap "
            + ", ".join(
                f"{row['quantity'].removeprefix('gap, ')} {number(row['icc_2_1'])}"
                for row in rows[1 - len(quantities) :]
            )
            + f"; within-subject SD {agreement['within_subject_sd']:.2f} years"
        )
    if rows:
        section.tables["retest"] = Table(
            "Test and retest: ICC(2,1) absolute agreement, ICC(3,1) consistency; the rest in years",
            pd.DataFrame(rows), upright=True,
        )  # fmt: skip
    followed = [
        {"group": label, "quantity": "brain age per year", "n": len(table), "mean_follow_up_years": table["years"].mean(),
         **describe_slopes(table["slope"].to_numpy(), seed)}
        for label, table in slopes.items() if len(table) >= FEWEST_PAIRS
    ]  # fmt: skip
    if followed:
        section.tables["slopes"] = Table("Years of brain age per year of follow-up", pd.DataFrame(followed))
        section.figures["slopes"] = (
            figures.plot_slopes({row["group"]: slopes[row["group"]]["slope"].to_numpy() for row in followed}),
            "Slope of each person.",
        )
        section.headlines += [
            f"Follow-up, {row['group']}, {row['n']} persons: {row['slope']:.2f} years of brain age per year"
            for row in followed
        ]
    for found, what in ((pairs, "an agreement"), (slopes, "a slope")):
        few = {label: len(rows) for label, rows in found.items() if 0 < len(rows) < FEWEST_PAIRS}
        section.warnings += [
            f"{label}: {count} persons are too few for {what}; {FEWEST_PAIRS} are needed."
            for label, count in few.items()
        ]
    return section


def truth_section(
    test: pd.DataFrame, healthy: pd.DataFrame, corrections: Sequence[Correction], seed: int
) -> Section | None:
    """Compare estimated with true gaps, where simulated subjects have them."""
    if not np.isfinite(test["true_brain_age"]).all():
        return None
    persons = one_scan_each(test)
    rows: list[dict[str, Any]] = []
    sets = {"healthy": healthy} | ({"everybody": persons} if len(persons) > len(healthy) else {})
    for name, table in sets.items():
        true_gap = (table["true_brain_age"] - table["chronological_age"]).to_numpy(np.float64)
        for correction, gap in gaps_of(table, corrections).items():

            def compare(draw: np.ndarray, gap: np.ndarray = gap, true: np.ndarray = true_gap) -> dict[str, np.ndarray]:
                pearson = correlation(gap[draw], true[draw])
                return {"pearson": pearson, "slope": pearson * gap[draw].std(-1) / true[draw].std(-1)}

            values = {key: float(value) for key, value in compare(np.arange(len(gap))).items()}
            rows.append({
                "subjects": name, "correction": correction, "n": len(gap), **values, **bootstrap(compare, len(gap), seed),
                "mean_error": float((gap - true_gap).mean()), "sd_of_error": float((gap - true_gap).std(ddof=1)),
            })  # fmt: skip
    true_gap = (persons["true_brain_age"] - persons["chronological_age"]).to_numpy(np.float64)
    section = Section(
        "truth", "Against the true gap",
        "SIMULATED subjects, whose true brain age is known. Slope: of the estimated on the true gap; 1 would be right. "
        "Errors in years.",
        [
            f"Estimated against true gap, {name}, Pearson and slope: "
            + ", ".join(
                f"{row['correction']} {number(row['pearson'])} and {number(row['slope'])}"
                for row in rows
                if row["subjects"] == name
            )
            for name in sets
        ],
    )  # fmt: skip
    section.tables["truth"] = Table("Estimated against true gap", pd.DataFrame(rows))
    section.figures["truth"] = (
        figures.plot_truth(true_gap, gaps_of(persons, corrections)), "Estimated against true gap, all subjects.",
    )  # fmt: skip
    return section


def analyse(
    args: Namespace,
    tables: dict[str, pd.DataFrame],
    healthy: pd.DataFrame,
    patient_labels: Sequence[str],
    manifest: Mapping[str, Any] | None = None,
) -> tuple[list[Section], pd.DataFrame, list[Correction]]:
    """Do the whole analysis; nothing is written.

    Parameters
    ----------
    args : Namespace of `utils.options.analysis.parse_gap_flags`
    tables : dict of str to DataFrame
        ``test``, ``fit``, ``calibration`` of `utils.analysis.gap_tables.read_tables`.
    healthy : DataFrame
        Of the test set, one scan each.
    patient_labels : sequence of str
    manifest : mapping or None
        Of the weights in `args.weights_dir`, if they are given.

    Returns
    -------
    sections : list of Section
    subjects : DataFrame, a row for each scan of the test set
    corrections : list of Correction
    """
    problems = check_healthy(tables["fit"], args.healthy_label, "--fit_predictions")
    problems += check_healthy(tables["calibration"], args.healthy_label, "--calibration_predictions")
    if problems:
        raise InputError(problems)
    test = tables["test"]
    corrections = prepare_corrections(args, tables["fit"], test)
    shipped = seen_by_weights(args.weights_dir, manifest) if manifest else Seen()
    leakage, age_ranges = leakage_section(args, tables, corrections, shipped)
    intervals = None
    if args.calibration_predictions:
        calibration = one_scan_each(tables["calibration"])
        intervals = fit_intervals(*ages_of(calibration), args.coverage, args.seed)
    # First, for groups that are too small end the analysis.
    diagnosis = diagnosis_section(args, test, patient_labels, corrections) if patient_labels else None
    data = data_section(test, healthy, age_ranges, args.label_table is not None)
    uncorrected = accuracy_row(*ages_of(healthy), args.seed)
    sections = [leakage, data, accuracy_section(healthy, uncorrected, args.seed)]
    sections.append(correction_section(healthy, tables, corrections, uncorrected, args.seed))
    optional = [
        diagnosis,
        uncertainty_section(healthy, intervals) if intervals else None,
        repeats_section(test, args.healthy_label, corrections, args.retest_years, args.seed),
        truth_section(test, healthy, corrections, args.seed),
    ]
    sections += [section for section in optional if section]
    return sections, _subjects(test, corrections, intervals, age_ranges), corrections


def _subjects(
    test: pd.DataFrame,
    corrections: Sequence[Correction],
    intervals: Intervals | None,
    age_ranges: Sequence[tuple[float, float]],
) -> pd.DataFrame:
    """Return what is known of each scan, the uncorrected gap first."""
    age, brain_age = ages_of(test)
    columns = ["subject_id", "person", "session", "diagnosis", "site", "sex", "chronological_age", "brain_age"]
    subjects = test[columns].copy()
    for name, gap in gaps_of(test, corrections).items():
        subjects["brain_age_gap" if name == UNCORRECTED else f"brain_age_gap_{name}"] = gap
    for correction in corrections:
        if correction.gives_ages:
            subjects[f"brain_age_{correction.kind}"] = age + subjects[f"brain_age_gap_{correction.kind}"]
    if intervals:
        for kind, normalized in (("plain", False), ("normalized", True)):
            width = intervals.half_width(brain_age, normalized)
            subjects[f"{kind}_interval_low"], subjects[f"{kind}_interval_high"] = brain_age - width, brain_age + width
    if age_ranges:
        subjects["outside_training_ages"] = outside_training(test, age_ranges)
    return subjects


def provenance_of(args: Namespace) -> dict[str, str]:
    """Say how the analysis was made."""
    files = [*args.predictions, *([args.label_table] if args.label_table else [])]
    return {
        "command": shlex.join(sys.argv),
        "test set": ", ".join(map(str, files)),
        "fit of the correction": ", ".join(map(str, args.fit_predictions or [args.correction_file or "none"])),
        "calibration": ", ".join(map(str, args.calibration_predictions)) or "none",
        "seed": str(args.seed),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
