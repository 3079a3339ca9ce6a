"""The parts of the report on the brain-age gap, in the order in which they are read."""

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from utils import gap_figures as figures
from utils.conformal import Intervals, fit_intervals, observed_coverage
from utils.diagnosis import (
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
from utils.errors import InputError
from utils.gap_correction import Correction, doubts, fit_correction, load_corrections
from utils.gap_report import Section, Table, cell, number
from utils.gap_tables import check_healthy, one_scan_each
from utils.leakage import find_leaks, networks_persons
from utils.metrics import accuracy, bootstrap, compare_errors, correlation, decade_of, errors_by_group
from utils.repeats import (
    FEWEST_PAIRS,
    bland_altman,
    describe_slopes,
    intraclass_correlations,
    retest_pairs,
    yearly_slopes,
)
from utils.reports import plot_ages
from utils.subjects import person_of

UNCORRECTED = "uncorrected"
FEWEST_FOR_WORST_BIN = 5
MACHINE = "SVM on the gap, "
PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "matplotlib")


def ages_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return chronological and brain ages, (N,) float64 arrays, years."""
    return table["chronological_age"].to_numpy(np.float64), table["brain_age"].to_numpy(np.float64)


def gaps_of(table: pd.DataFrame, corrections: Sequence[Correction]) -> dict[str, np.ndarray]:
    """Return the uncorrected gap, and after it each corrected one, (N,) float64 arrays, years."""
    age, brain_age = ages_of(table)
    return {UNCORRECTED: brain_age - age} | {c.kind: c.corrected_gap(table) for c in corrections}


def prepare_corrections(args: Namespace, fit: pd.DataFrame) -> list[Correction]:
    """Fit the corrections asked for, or read saved ones.

    Raises
    ------
    InputError
        If the fit holds patients or too few subjects, or the file lacks a kind.
    """
    if args.correction_file:
        saved = load_corrections(args.correction_file)
        missing = set(args.correction) - {c.kind for c in saved}
        if missing:
            raise InputError(f"{args.correction_file}: holds no {', '.join(sorted(missing))}; leave --correction out")
        return [c for c in saved if c.kind in (args.correction or {c.kind})]
    return [fit_correction(kind, one_scan_each(fit), args.fit_predictions) for kind in args.correction]


def leakage_section(
    args: Namespace, tables: dict[str, pd.DataFrame], corrections: Sequence[Correction]
) -> tuple[Section, list[float]]:
    """Look for persons on both sides; also return the networks' training ages.

    Raises
    ------
    InputError
        If there are any and ``--allow_leakage`` is not set, or if patients
        are among those for fitting.
    """
    seen, training_ages, warnings = networks_persons(args.checkpoints, args.weights_dir)
    tested, calibrated = set(tables["test"]["person"]), set(tables["calibration"]["person"])
    fitted = {f"the fit of {c.kind}": set(c.persons) for c in corrections}
    training = {name: persons for name, persons in seen.items() if "training" in name}
    leaks = [
        *find_leaks(tested, {**fitted, "the calibration set": calibrated}, "the test set"),
        *find_leaks(known_to_networks(tables["test"]), seen, "the test set"),
        *find_leaks(known_to_networks(tables["fit"]).union(*fitted.values()), training, "the correction's fit"),
        *find_leaks(known_to_networks(tables["calibration"]), training, "the calibration set"),
    ]
    if leaks and not args.allow_leakage:
        raise InputError(
            [f"leakage: {leak}; take them out, or say that it is meant (--allow_leakage true)" for leak in leaks]
        )
    checked = [*fitted, *(["the calibration set"] if calibrated else []), *(name for name in seen if seen[name])]
    text = "No person of the test set may have taken part in anything that the figures below rest on. "
    text += f"Compared with the test set: {'; '.join(checked)}. " if checked else "Nothing was given to compare with. "
    if not seen:
        warnings.append(
            "Whom the networks were trained on is not known here (--checkpoints, --weights_dir), so that leakage from "
            "training cannot be excluded."
        )
    for name, what in (("fit", "correction rests"), ("calibration", "intervals rest")):
        if len(tables[name]) and (tables[name]["diagnosis"] == "").any():
            unknown = (tables[name]["diagnosis"] == "").sum()
            warnings.append(
                f"The {what} on {unknown} scans without a diagnosis, taken to be of healthy subjects because you "
                "gave them as such."
            )
    alarms = [f"LEAKAGE, allowed by --allow_leakage: {leak}. What rests on it is too good." for leak in leaks]
    headlines = ["No leakage was found in what was compared"] if checked and not leaks else []
    return Section("leakage", "Leakage", text, headlines, warnings, alarms), training_ages


def known_to_networks(table: pd.DataFrame) -> set[str]:
    """Return the persons by the names that checkpoints know them by, whatever ``--person_column`` says."""
    return {person_of(subject_id) for subject_id in table["subject_id"]}


def data_section(test: pd.DataFrame, healthy: pd.DataFrame, training_ages: Sequence[float]) -> Section:
    """Say who was tested."""
    persons = one_scan_each(test)
    rows = []
    for name, group in persons.groupby(persons["diagnosis"].replace("", "all"), sort=False):
        age, brain_age = ages_of(group)
        sexes = group["sex"][group["sex"] != ""]
        rows.append({
            "group": name, "persons": len(group), "scans": int(test["person"].isin(group["person"]).sum()),
            "age_mean": age.mean(), "age_sd": age.std(ddof=1) if len(age) > 1 else np.nan,
            "age_min": age.min(), "age_max": age.max(), "share_of_women": (sexes == "F").mean(),
            "mean_gap": (brain_age - age).mean(),
        })  # fmt: skip
    section = Section(
        "data", "Subjects",
        "Each person counts once, with the first scan. Accuracy is that of the healthy subjects, or of everybody where no "
        "diagnosis is known. Gap: brain age minus chronological age; the one in this table is uncorrected.",
        [f"{len(persons)} persons, {len(test)} scans; accuracy on {len(healthy)}"],
    )  # fmt: skip
    section.tables["data"] = Table("Who was tested", pd.DataFrame(rows))
    if training_ages:
        outside = persons[outside_training(persons, training_ages)]
        if len(outside):
            names = ", ".join(outside["subject_id"].head(20)) + (" and more" if len(outside) > 20 else "")
            section.warnings.append(
                f"{len(outside)} persons are outside the networks' training ages, {min(training_ages):.1f} to "
                f"{max(training_ages):.1f} years: {names}. Their brain ages are extrapolations."
            )
    return section


def outside_training(table: pd.DataFrame, training_ages: Sequence[float]) -> np.ndarray:
    """Tell who is younger or older than anybody the networks were trained on, (N,) bool array."""
    age, _ = ages_of(table)
    return (age < min(training_ages)) | (age > max(training_ages))


def accuracy_section(healthy: pd.DataFrame, seed: int) -> Section:
    """State the accuracy without any correction, overall and where it is worst."""
    age, brain_age = ages_of(healthy)
    estimates = {"brain age": brain_age}
    first = healthy["first_stage_age"].to_numpy(np.float64)
    if np.isfinite(first).all():
        estimates["first stage"] = first
    rows = [{"estimate": name, **accuracy_row(age, estimate, seed)} for name, estimate in estimates.items()]
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
            f"Worst age bin: {worst['group']}, MAE {worst['mae']:.2f} years (N = {worst['n']})",
            f"Gap and age, uncorrected: Pearson {number(best['gap_age_pearson'])}, Spearman "
            f"{number(best['gap_age_spearman'])}",
        ],
    )  # fmt: skip
    section.tables["accuracy"] = Table("How well brain ages match ages", pd.DataFrame(rows), upright=True)
    if "first stage" in estimates:
        test = stats.wilcoxon(np.abs(first - age), np.abs(brain_age - age))
        gain = compare_errors(age, brain_age, first, seed)
        row = {
            "comparison": "MAE of the first stage minus MAE of the brain age (years)", "n": len(age),
            "difference": gain["difference"], "difference_low": gain["low"], "difference_high": gain["high"],
            "p_value": float(test.pvalue),
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
    healthy: pd.DataFrame, test: pd.DataFrame, corrections: Sequence[Correction], seed: int
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
        row = accuracy_row(age, age + gap, seed)
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
        list(dict.fromkeys(line for c in corrections for line in doubts(c, ages_of(one_scan_each(test))[0]))),
        figures=figure,
    )  # fmt: skip
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
        If a group has too few subjects.
    """
    persons = one_scan_each(test)
    protocol = PROTOCOLS[args.protocol]
    matched = " Pairs matched by age." if args.match_ages else ""
    section = Section("diagnosis", "Diagnosis", protocol.text + matched)
    section.text += (
        f" p: share of {args.permutations} permutations of the labels that do as well in one repeat. AUC compares "
        "patients and healthy subjects tested by the same machine. A machine that learns the direction too has no interval, which would miss 0.5 too often where there is nothing to find; its AUC may lie below 0.5 by chance. Read the gap's AUC beside that of age and sex."
    )
    pairs = {}
    problems = []
    for label in patient_labels:
        pair = persons[persons["diagnosis"].isin([args.healthy_label, label])]
        if args.match_ages:
            pair = pair.iloc[match_by_age(ages_of(pair)[0], (pair["diagnosis"] == label).to_numpy())]
        pairs[label] = pair
        counts = {name: int((pair["diagnosis"] == name).sum()) for name in (label, args.healthy_label)}
        problems += [
            f"--patient_labels {label}: {count} persons with {name}{' after matching by age' if args.match_ages else ''}; at "
            f"least {FEWEST_OF_A_CLASS} are needed for a cross-validation (leave {label} out, or add subjects)"
            for name, count in counts.items()
            if count < FEWEST_OF_A_CLASS
        ]
    if problems:
        raise InputError(problems)
    total = args.permutations * len(patient_labels) * (1 + len(corrections))
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
    section.tables["diagnosis"] = Table("Telling patients from healthy subjects", pd.DataFrame(rows))
    gap = gaps_of(persons, [])[UNCORRECTED]
    groups = {label: gap[(persons["diagnosis"] == label).to_numpy()] for label in [args.healthy_label, *patient_labels]}
    section.figures["gap_by_diagnosis"] = (figures.plot_groups(groups), "The uncorrected gap of each group.")
    return section


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
            own |= result.rates(args.seed)
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
        section.figures[re.sub(r"\W+", "_", f"roc_{label}_{name}")] = (
            figures.plot_roc(f"{title}, gap {name}", result, plain), f"ROC of the gap ({name}) for {title}.",
        )  # fmt: skip
    yield row("age itself, older is ill", without_classifier(age, patient))
    if (pair["sex"] != "").all():
        sex = (pair["sex"] == "M").to_numpy(np.float64)
        yield row("sex itself, male is ill", without_classifier(sex, patient))
        yield row("SVM on age and sex", machine(age, sex))
        yield row("SVM on age, sex and gap, uncorrected", machine(age, sex, gaps[UNCORRECTED]))
    else:
        section.warnings.append(f"{title}: the sex of some subjects is not known, so it serves as no baseline.")
        yield row("SVM on age and gap, uncorrected", machine(age, gaps[UNCORRECTED]))
    years, standardized, p_value = age_imbalance(age, patient)
    if abs(standardized) > LARGEST_AGE_DIFFERENCE:
        section.warnings.append(
            f"{title}: the patients are {abs(years):.1f} years {'older' if years > 0 else 'younger'} in the mean "
            f"({standardized:+.2f} SD, p {number(p_value, 'p_value')}), so that the gap's dependence on age mixes with the disease. "
            "See what age alone tells, and match by age (--match_ages true)."
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


def repeats_section(test: pd.DataFrame, retest_years: float, seed: int) -> Section | None:
    """Describe repeated scans, if there are any."""
    pairs, slopes = retest_pairs(test, retest_years), yearly_slopes(test, retest_years)
    if pairs.empty and slopes.empty:
        return None
    section = Section(
        "repeats", "Repeated scans",
        f"Test and retest: a person's first two scans, at most {retest_years:g} year{'' if retest_years == 1 else 's'} apart. The agreement of brain ages is "
        "flattered by the range of ages; that of gaps is not. All uncorrected. Slope: of a line through a person's brain "
        "ages over a longer time.",
    )  # fmt: skip
    if len(pairs) >= FEWEST_PAIRS:
        rows = []
        for name, stem in (("brain age", "brain_age"), ("gap", "gap")):
            values = pairs[[f"{stem}_1", f"{stem}_2"]].to_numpy(np.float64)
            row: dict[str, Any] = {"quantity": name, "n": len(pairs)}
            for icc, figure in intraclass_correlations(values).items():
                row |= {icc if key == "value" else f"{icc}_{key}": value for key, value in figure.items()}
            rows.append(row | bland_altman(values[:, 0], values[:, 1]))
        section.tables["retest"] = Table(
            "Test and retest: ICC(2,1) absolute agreement, ICC(3,1) consistency; the rest in years",
            pd.DataFrame(rows), upright=True,
        )  # fmt: skip
        agreement = rows[0]
        section.figures["bland_altman"] = (
            figures.plot_bland_altman(
                pairs["brain_age_1"].to_numpy(), pairs["brain_age_2"].to_numpy(),
                [agreement["bias"], agreement["limit_low"], agreement["limit_high"]],
            ),
            "Differences of two brain ages of a person against their mean (Bland and Altman).",
        )  # fmt: skip
        section.headlines.append(
            f"Test-retest, {len(pairs)} persons: ICC(2,1) of brain age {number(rows[0]['icc_2_1'])}, of the gap "
            f"{number(rows[1]['icc_2_1'])}; within-subject SD {agreement['within_subject_sd']:.2f} years"
        )
    elif len(pairs):
        section.warnings.append(f"{len(pairs)} pairs of scans are too few for an agreement; {FEWEST_PAIRS} are needed.")
    if len(slopes) >= FEWEST_PAIRS:
        row = {"quantity": "brain age per year", "n": len(slopes), "mean_follow_up_years": slopes["years"].mean(),
               **describe_slopes(slopes["slope"].to_numpy(), seed)}  # fmt: skip
        section.tables["slopes"] = Table("Years of brain age per year of follow-up", pd.DataFrame([row]))
        section.figures["slopes"] = (figures.plot_slopes(slopes["slope"].to_numpy()), "Slope of each person.")
        section.headlines.append(f"Follow-up, {len(slopes)} persons: {row['slope']:.2f} years of brain age per year")
    elif len(slopes):
        section.warnings.append(f"{len(slopes)} persons were followed longer; {FEWEST_PAIRS} are needed for a slope.")
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
    args: Namespace, tables: dict[str, pd.DataFrame], healthy: pd.DataFrame, patient_labels: Sequence[str]
) -> tuple[list[Section], pd.DataFrame, list[Correction]]:
    """Do the whole analysis; nothing is written.

    Parameters
    ----------
    args : Namespace of `utils.options.parse_gap_flags`
    tables : dict of str to DataFrame
        ``test``, ``fit``, ``calibration`` of `utils.gap_tables.read_tables`.
    healthy : DataFrame
        Of the test set, one scan each.
    patient_labels : sequence of str

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
    corrections = prepare_corrections(args, tables["fit"])
    leakage, training_ages = leakage_section(args, tables, corrections)
    intervals = None
    if args.calibration_predictions:
        calibration = one_scan_each(tables["calibration"])
        intervals = fit_intervals(*ages_of(calibration), args.coverage, args.seed)
    # First, for groups that are too small end the analysis.
    diagnosis = diagnosis_section(args, test, patient_labels, corrections) if patient_labels else None
    sections = [leakage, data_section(test, healthy, training_ages), accuracy_section(healthy, args.seed)]
    sections.append(correction_section(healthy, test, corrections, args.seed))
    optional = [
        diagnosis,
        uncertainty_section(healthy, intervals) if intervals else None,
        repeats_section(test, args.retest_years, args.seed),
        truth_section(test, healthy, corrections, args.seed),
    ]
    sections += [section for section in optional if section]
    return sections, _subjects(test, corrections, intervals, training_ages), corrections


def _subjects(
    test: pd.DataFrame, corrections: Sequence[Correction], intervals: Intervals | None, training_ages: Sequence[float]
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
    if training_ages:
        subjects["outside_training_ages"] = outside_training(test, training_ages)
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
